"""Next-token prediction on fresh demonstrations (paper section 3).

    for every step:
        x ~ prompts;  y ~ D(p_cot) given x
        loss = mean over sequences of  sum_j -log pi(y_j | x, y_<j)
        params <- AdamW(params, grad loss)

Start here: the other stages have the same shape.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
from jax import Array

from parity_jax.config import require_positive
from parity_jax.evaluate import Evaluate
from parity_jax.gradient import response_gradient
from parity_jax.metrics import Mean, Metrics
from parity_jax.models.model import Model
from parity_jax.objectives import Target, next_token_loss
from parity_jax.optim import OptimizerConfig
from parity_jax.policy import TokenScores
from parity_jax.stages.stage import (
    Stage,
    StageConfig,
    StepKeys,
    evaluator,
    make_init,
    step_prompts,
)
from parity_jax.tasks.task import Task
from parity_jax.types import Data, StageState


@dataclass(frozen=True)
class PretrainConfig(StageConfig):
    """Next-token prediction on fresh demonstrations."""

    kind: ClassVar[str] = "pretrain"
    batch_size: int = 256
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        require_positive(self, "batch_size")

    @property
    def sequences_per_step(self) -> int:
        return self.batch_size

    def make(self, task: Task, model: Model, evaluate: Evaluate) -> Stage:
        return make_pretrain(self, task, model, evaluate)


def make_pretrain(
    cfg: PretrainConfig, task: Task, model: Model, evaluate: Evaluate
) -> Stage:
    """The stage of a config."""
    optimizer = cfg.optimizer.make()

    def loss_fn(scores: TokenScores, target: Target) -> tuple[Array, Metrics]:
        return next_token_loss(scores, target, cfg.batch_size)

    def step(state: StageState, data: Data) -> tuple[StageState, Metrics]:
        k_prompt, k_demonstration = jax.random.split(StepKeys.of(state).data)
        prompt = step_prompts(task, state, k_prompt, cfg.batch_size, data)
        batch = task.demonstrate(k_demonstration, prompt, state.hypers, data.task)
        target = Target(batch.response[:, None], batch.mask[:, None])  # G = 1
        grads, loss, metrics = response_gradient(
            loss_fn, model, state.params, batch.prompt, target, task.format.short_len
        )
        state, grad_norm = optimizer.apply(state, grads)
        metrics |= {"loss": Mean.over(loss), "grad_norm": Mean.over(grad_norm)}
        return state._replace(step=state.step + 1), metrics

    return Stage(
        init=make_init(model, optimizer.transformation),
        step=step,
        evaluate=evaluator(evaluate),
    )
