"""The training steps that are compiled for accelerators and measured on them.

Those of Llama's sizes are of one member, bfloat16 compute, float32 parameters and
AdamW, with random tokens: 64 sequences a step, or 64 prompts x 8 responses with the KL
to a reference. The others are runs of the experiments at paper scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax import Array

from parity_jax.cli.run import built, load_experiment
from parity_jax.config.overrides import parse
from parity_jax.evaluate import EvaluateConfig, make_evaluate
from parity_jax.hypers import Hypers
from parity_jax.mesh import MeshConfig, spread
from parity_jax.models import ModelConfig, RopeScaling, TransformerConfig, llama
from parity_jax.optim import OptimizerConfig
from parity_jax.population import Population, PopulationConfig, make_population
from parity_jax.responses import num_tokens, response_mask
from parity_jax.runs import resolve
from parity_jax.stages import (
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    StageConfig,
)
from parity_jax.tasks import Solution, TaskConfig
from parity_jax.types import Batch, Key, Prompt, ResponseFormat

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
ONE_DEVICE = MeshConfig()
load_once = cache(load_experiment)


@dataclass(frozen=True)
class TokensConfig(TaskConfig):
    """A stand-in for text of Llama's sizes: random prompts, padded on the left."""

    vocab_size: int = 128_256
    prompt_len: int = 256
    response_len: int = 512

    def make(self) -> "Tokens":
        return Tokens(self)


class Tokens:
    """The task of a `TokensConfig`; rewards count tokens, as cheap as real ones."""

    data = ()

    def __init__(self, cfg: TokensConfig):
        self.vocab_size, self.prompt_len = cfg.vocab_size, cfg.prompt_len
        self.format = ResponseFormat(0, (1, 2, 3), cfg.response_len, short_len=16)
        self.rewards = {"e2e": self.reward, "cot": self.reward}

    def sample_prompts(self, key: Key, num_prompts: int, data: Any = ()) -> Prompt:
        shape = (num_prompts, self.prompt_len)
        token_BxL = jax.random.randint(key, shape, 4, self.vocab_size)
        length_Bx1 = jax.random.randint(key, (num_prompts, 1), 8, self.prompt_len + 1)
        mask_BxL = jnp.arange(self.prompt_len)[None] >= self.prompt_len - length_Bx1
        return Prompt(jnp.where(mask_BxL, token_BxL, 0), mask_BxL)

    def demonstrate(
        self, key: Key, prompt: Prompt, hypers: Hypers, data: Any = ()
    ) -> Batch:
        shape = (prompt.token.shape[0], self.format.max_len)
        response_BxT = jax.random.randint(key, shape, 0, self.vocab_size)
        return Batch(prompt, response_BxT, response_mask(response_BxT, self.format))

    def solution(self, prompt: Prompt, data: Any = ()) -> Solution:
        shape = (prompt.token.shape[0], self.format.max_len)
        one_BxT = jnp.ones(shape, jnp.int32)
        return Solution(one_BxT, one_BxT[:, None])

    def reward(self, prompt: Prompt, response_BxGxT: Array, data: Any = ()) -> Array:
        return (num_tokens(response_BxGxT, self.format) % 2).astype(jnp.float32)

    def is_long(self, response_BxGxT: Array) -> Array:
        return num_tokens(response_BxGxT, self.format) > self.format.short_len

    def diagnostics(self, prompt: Prompt, response_BxGxT: Array, data: Any) -> Any:
        return {}

    def to_text(self, token_T: Any) -> str:
        return " ".join(map(str, np.asarray(token_T)))

    def from_text(self, text: str) -> np.ndarray:
        return np.array(text.split(), np.int32)

    def read_prompt(self, line: str) -> np.ndarray:
        return self.from_text(line)


def llama3(depth: int, width: int, **overrides: Any) -> TransformerConfig:
    """A Llama 3.1 or 3.2 as its config.json says."""
    preset = dict(num_heads=32, num_kv_heads=8, head_size=128, dtype="bfloat16")
    preset |= dict(rope_scaling=RopeScaling(), scan=True, remat=True)
    return llama(depth, width, **preset | overrides)


LONG_ROPE = RopeScaling(factor=32.0)
MODELS = {
    "Llama-3.2-1B": llama3(
        16, 2048, mlp_width=8192, head_size=64, tie_embedding=True,
        rope_scaling=LONG_ROPE,
    ),
    "Llama-3.2-3B": llama3(
        28, 3072, mlp_width=8192, num_heads=24, tie_embedding=True,
        rope_scaling=LONG_ROPE,
    ),
    "Llama-3.1-8B": llama3(32, 4096, mlp_width=14336),
}  # fmt: skip
OPTIMIZER = OptimizerConfig(warmup_steps=20, max_grad_norm=1.0)
# 64 sequences a step; 64 prompts x 8 responses with the KL to a reference.
STAGES: dict[str, StageConfig] = {
    "next-token": PretrainConfig(batch_size=64, optimizer=OPTIMIZER),
    "GRPO": PolicyGradientConfig(
        rollout=RolloutConfig(num_prompts=64, num_generations=8), optimizer=OPTIMIZER
    ),
}
SMOLLM2 = llama(
    30, 576, num_heads=9, num_kv_heads=3, head_size=64, mlp_width=1536,
    tie_embedding=True, dtype="bfloat16", scan=True, remat=True,
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A training step of one or many members."""

    task: TaskConfig
    model: ModelConfig
    stage: StageConfig
    axes: Mapping[str, tuple[Any, ...]] = FrozenDict(seed=(0,))
    hypers: Hypers = Hypers()

    def population(
        self, mesh: MeshConfig = ONE_DEVICE, devices: Sequence[jax.Device] = ()
    ) -> Population:
        """Its program, for these devices or for all there are."""
        task = self.task.make()
        model = spread(self.model.make(task), mesh)
        evaluate = make_evaluate(EvaluateConfig(8, ()), task, model)
        stage = self.stage.make(task, model, evaluate)
        layout = PopulationConfig()
        return make_population(
            layout, stage, self.axes, self.hypers, None, mesh, devices
        )


def llama_steps() -> dict[str, Step]:
    """By model and stage."""
    return {
        f"{model_name} {stage_name}": Step(TokensConfig(), model, stage)
        for model_name, model in MODELS.items()
        for stage_name, stage in STAGES.items()
    }


def smollm2_steps() -> dict[str, Step]:
    """SmolLM2-135M's sizes, with random weights like the others."""
    task = TokensConfig(vocab_size=49_152)
    return {
        f"SmolLM2-135M {name}": Step(task, SMOLLM2, stage)
        for name, stage in STAGES.items()
    }


def experiment_step(file: str, run: str, *overrides: str) -> Step:
    """A run of an experiment of this repository, with overrides of its config."""
    given = parse([f"--config.{text}" for text in overrides])
    path = str(EXPERIMENTS / f"{file}.py")
    chosen = resolve(built(load_once(path), path, given))[run]
    parts = (chosen.task, chosen.model, chosen.stage, chosen.axes, chosen.hypers)
    return Step(*parts)


def seeds_of(num: int) -> str:
    """So many seeds, as they are typed."""
    return ",".join(map(str, range(num)))


def population_steps() -> dict[str, Step]:
    """Paper-scale runs of the experiments, some with more seeds."""
    steps = {}
    for run, name in (("pretrain", "next-token"), ("grpo", "GRPO")):
        for num in (24, 256):
            members = ("headline", run, "scale=paper", f"axes.seed={seeds_of(num)}")
            name_of_all = f"headline {name}, {num} members"
            steps[name_of_all] = experiment_step(*members)
            steps[f"{name_of_all}, bfloat16"] = experiment_step(
                *members, "model.dtype=bfloat16"
            )
    few = ("scale=paper", "task.num_digits=7", "axes.p_cot=0.25", "axes.seed=0")
    steps |= {
        "C1-C3 next-token, 27 members": experiment_step(
            "c1_c3_mixtures", "pretrain", "scale=paper"
        ),
        "C1-C3 next-token, 252 members": experiment_step(
            "c1_c3_mixtures", "pretrain", "scale=paper", f"axes.seed={seeds_of(28)}"
        ),
        "C8 next-token, 15 members": experiment_step(
            "c8_c11_timing", "pretrain", "scale=paper"
        ),
        "7x7 digits, GPT-2 small, next-token": experiment_step(
            "multiplication", "pretrain", *few
        ),
    }
    return steps
