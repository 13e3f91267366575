"""Small configurations that the tests share."""

from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict

from parity_jax.evaluate import EvaluateConfig, make_evaluate
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import Model, TransformerConfig, gpt2, mistral
from parity_jax.population import PopulationConfig
from parity_jax.stages import (
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    Stage,
    StageConfig,
    StarConfig,
)
from parity_jax.tasks import ParityConfig


def tiny_gpt2(**overrides: Any) -> TransformerConfig:
    sizes: dict[str, Any] = {"depth": 1, "width": 16, "num_heads": 2, "num_kv_heads": 2}
    return gpt2(**sizes | overrides)


def tiny_mistral(**overrides: Any) -> TransformerConfig:
    sizes: dict[str, Any] = {"depth": 1, "width": 16, "num_heads": 4, "num_kv_heads": 2}
    return mistral(**sizes | overrides)


def random_params(model: Model, std: float = 0.25) -> Any:
    """Parameters that are all random, unlike fresh ones; nothing is compiled."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(0, std, x.shape).astype(x.dtype), shapes)


PRETRAIN = PretrainConfig(batch_size=8)
POLICY_GRADIENT = PolicyGradientConfig(
    rollout=RolloutConfig(num_prompts=4, num_generations=4)
)
STAR = StarConfig(
    rollout=RolloutConfig(num_prompts=256, num_generations=1),
    batch_size=8,
    num_epochs=2,
)


def tiny_stage(cfg: StageConfig, num_bits: int = 4, **model_overrides: Any) -> Stage:
    task = ParityConfig(num_bits).make()
    model = tiny_gpt2(**model_overrides).make(task)
    return cfg.make(task, model, make_evaluate(EvaluateConfig(8, (1.0,)), task, model))


def tiny_experiment(**overrides: Any) -> Experiment:
    """Two seeds: next-token prediction, then GRPO."""
    pretrain = RunConfig(
        stage=PRETRAIN, num_steps=4, log_every=1, eval_every=2, checkpoint_every=2
    )
    grpo = RunConfig(
        stage=POLICY_GRADIENT,
        hypers=Hypers(learning_rate=1e-4),
        num_steps=2,
        log_every=1,
        eval_every=2,
        parent="pretrain",
    )
    fields: dict[str, Any] = dict(
        task=ParityConfig(4),
        model=tiny_gpt2(),
        axes=FrozenDict({"seed": (0, 1)}),
        runs=FrozenDict({"pretrain": pretrain, "grpo": grpo}),
        evaluate=EvaluateConfig(16, (1.0,)),
        population=PopulationConfig(num_devices=1, vmap_width=1),
    )
    return Experiment(**fields | overrides)
