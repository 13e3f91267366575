"""The contract of a training stage: pure functions of one member."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from parity_jax.config import Configured
from parity_jax.evaluate import Evaluate
from parity_jax.hypers import Hypers
from parity_jax.metrics import Metrics
from parity_jax.models.model import Model, ModelConfig
from parity_jax.tasks.task import FiniteTask, Task
from parity_jax.types import RUNNING, Data, Key, Params, Prompt, StageState


class Stage(NamedTuple):
    """What `population` runs."""

    init: Callable[[Key, Hypers, Params | None], StageState]
    step: Callable[[StageState, Data], tuple[StageState, Metrics]]
    evaluate: Callable[[StageState, Data], Metrics]


class StageConfig(Configured):
    """A frozen dataclass that makes a stage, with the rules of its algorithm."""

    starts_from_parents: ClassVar[bool] = True  # a parent's parameters are trained on

    @property
    def sequences_per_step(self) -> int:
        """How many sequences a member trains on, or samples, in one step."""
        raise NotImplementedError

    def make(self, task: Task, model: Model, evaluate: Evaluate) -> Stage:
        """The stage."""
        raise NotImplementedError

    def check(self, model: ModelConfig, hypers: Hypers) -> None:
        """ConfigError for a model it cannot train, or numbers that do nothing."""


class StepKeys(NamedTuple):
    """Independent keys of one step, folded from the member's key: no hidden stream."""

    data: Key  # prompts and demonstrations
    sample: Key  # responses
    evaluate: Key
    reward: Key  # noise of the rewards
    update: Key  # order of the minibatches

    @classmethod
    def of(cls, state: StageState) -> "StepKeys":
        return cls(*jax.random.split(jax.random.fold_in(state.key, state.step), 5))


def step_prompts(
    task: Task, state: StageState, key: Key, num_prompts: int, data: Data
) -> Prompt:
    """The prompts of a step: fresh ones, or the next rows of a task that has rows."""
    if isinstance(task, FiniteTask):
        return task.epoch_prompts(state.key, state.step, num_prompts, data.task)
    return task.sample_prompts(key, num_prompts, data.task)


def make_init(
    model: Model,
    optimizer: optax.GradientTransformation,
    keeps_reference: bool = False,
) -> Callable[[Key, Hypers, Params | None], StageState]:
    """init(key, hypers, params=None): a fresh optimizer on given or new parameters."""

    def init(key: Key, hypers: Hypers, params: Params | None = None) -> StageState:
        k_init, k_steps = jax.random.split(key)
        params = model.init(k_init) if params is None else params
        return StageState(
            key=k_steps,
            step=jnp.int32(0),
            params=params,
            opt_state=optimizer.init(params),
            hypers=hypers,
            status=jnp.int32(RUNNING),
            reference=params if keeps_reference else None,
        )

    return init


def evaluator(evaluate: Evaluate) -> Callable[[StageState, Data], Metrics]:
    """Evaluation of a member on prompts that no step trains on."""
    return lambda state, data: evaluate(StepKeys.of(state).evaluate, state.params, data)
