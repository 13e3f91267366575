"""Small configurations that the tests share."""

from typing import Any

from flax.core import FrozenDict

from parity_jax.config import (
    EvaluateConfig,
    Experiment,
    ParityConfig,
    PolicyGradientConfig,
    PopulationConfig,
    PretrainConfig,
    RolloutConfig,
    RunConfig,
    StageConfig,
    StarConfig,
    TransformerConfig,
    gpt2,
    mistral,
)
from parity_jax.evaluate import make_evaluate
from parity_jax.models import make_model
from parity_jax.stages import Stage, make_stage
from parity_jax.tasks import make_task
from parity_jax.types import Hypers


def tiny_gpt2(**overrides: Any) -> TransformerConfig:
    sizes: dict[str, Any] = {"depth": 1, "width": 16, "num_heads": 2, "num_kv_heads": 2}
    return gpt2(**sizes | overrides)


def tiny_mistral(**overrides: Any) -> TransformerConfig:
    sizes: dict[str, Any] = {"depth": 1, "width": 16, "num_heads": 4, "num_kv_heads": 2}
    return mistral(**sizes | overrides)


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
    task = make_task(ParityConfig(num_bits))
    model = make_model(tiny_gpt2(**model_overrides), task)
    evaluate = make_evaluate(EvaluateConfig(8, (1.0,)), task, model)
    return make_stage(cfg, task, model, evaluate)


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
