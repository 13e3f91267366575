"""What a user writes: a task, a model, a population, and the stages chained on them.

`runs.resolve` turns it into one `ResolvedRun` for each stage; nothing else reads it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from flax.core import FrozenDict

from parity_jax.config import (
    require,
    require_count,
    require_finite,
    require_positive,
    under,
    unknown_name,
)
from parity_jax.evaluate import EvaluateConfig
from parity_jax.hypers import AXES, BOUNDS, Hypers, check_hyper, check_hypers
from parity_jax.mesh import MeshConfig
from parity_jax.models import ModelConfig, TransformerConfig
from parity_jax.population import PopulationConfig
from parity_jax.stages import PretrainConfig, StageConfig
from parity_jax.tasks import ParityConfig, TaskConfig

MAX_STEPS, MAX_CHECKPOINTS = 2**31 - 1, 100_000
MAX_NAME = 200  # bytes of a file's name, and what is made beside it
MAX_SEED = 2**32 - 1  # of a key; larger ones would silently be the same


@dataclass(frozen=True)
class Schedule:
    """When a run records, evaluates, saves and ends; it changes no number of it."""

    num_steps: int = 1000  # of training
    log_every: int = 10  # steps merged into one record of training metrics
    eval_every: int = 100  # and at the first and the last step
    # Checkpoints at the first and the last step, and at all that these three name.
    checkpoint_every: int = 0  # 0: no further ones
    checkpoint_steps: tuple[int, ...] = ()  # these as well
    checkpoint_powers_of_two: bool = False  # at steps 1, 2, 4, 8, ..
    max_to_keep: int = 0  # the newest so many; 0: all
    # The loop looks for signals at least so often; 0: at records only.
    chunk_seconds: float = 15.0

    def __post_init__(self) -> None:
        require_positive(self, "num_steps", "log_every", "eval_every")
        few = self.num_steps <= MAX_STEPS
        require(few, "num_steps", self.num_steps, f"must be at most {MAX_STEPS}")
        require_finite(self, "chunk_seconds")
        every = self.checkpoint_every
        require_count(self, "checkpoint_every", "start and end only")
        require_count(self, "max_to_keep", "all")
        allowed = f"must give at most {MAX_CHECKPOINTS} checkpoints"
        few = not every or self.num_steps // every <= MAX_CHECKPOINTS
        require(few, "checkpoint_every", every, allowed)
        for step in self.checkpoint_steps:
            inside = 0 <= step <= self.num_steps
            allowed = f"must be in [0, num_steps={self.num_steps}]"
            require(inside, "checkpoint_steps", step, allowed)

    def saved_steps(self) -> tuple[int, ...]:
        """The steps that get a checkpoint, ascending."""
        last = self.num_steps
        steps = {0, last, *self.checkpoint_steps}
        if self.checkpoint_every:
            steps |= set(range(0, last, self.checkpoint_every))
        if self.checkpoint_powers_of_two:
            steps |= {2**n for n in range(last.bit_length())}
        return tuple(sorted(steps))

    def kept_steps(self, steps: Collection[int]) -> tuple[int, ...]:
        """Those of the saved steps whose checkpoints stay: max_to_keep scheduled ones.

        The newest always stays, scheduled or not: the run continues from it.
        """
        scheduled = sorted({*steps} & {*self.saved_steps()})
        newest = max(steps, default=0)
        return tuple(sorted({*scheduled[-self.max_to_keep :], newest} & {*steps}))

    def next_record(self, step: int) -> int:
        """The first step after this one at which the loop returns to the host."""
        ends = [self.num_steps]
        ends += [s for s in self.saved_steps() if s > step][:1]
        ends += [(step // n + 1) * n for n in (self.log_every, self.eval_every)]
        return min(ends) if step >= 0 else 0

    def recorded_steps(self) -> list[int]:
        """All steps at which it returns to the host, from 0."""
        every = (range(0, self.num_steps, n) for n in (self.log_every, self.eval_every))
        return sorted({*self.saved_steps()}.union(*every))

    def is_evaluated(self, step: int) -> bool:
        """Whether a step is evaluated: every so many, the first and the last."""
        return step == self.num_steps or step % self.eval_every == 0


@dataclass(frozen=True)
class RunConfig(Schedule):
    """One stage of an experiment: an algorithm, its numbers, where it starts."""

    stage: StageConfig = field(default_factory=PretrainConfig)  # the algorithm
    hypers: Hypers = field(default_factory=Hypers)  # its numbers, but for the axes
    parent: str = ""  # run of this experiment, or run directory; empty: from scratch
    parent_step: int = -1  # checkpoint of the parent to start from; -1: the last one
    # The members of the parent to start from, by axes of the parent ({"seed": 2}); on
    # its other axes a member starts from the parent with the same value.
    parent_member: FrozenDict[str, Any] = FrozenDict()
    axes: FrozenDict[str, tuple[Any, ...]] = FrozenDict()  # beside the experiment's
    task: TaskConfig | None = None  # None: the experiment's
    model: ModelConfig | None = None  # None: the experiment's

    def __post_init__(self) -> None:
        super().__post_init__()
        with under("hypers"):
            check_hypers(self.hypers)
        check_axes(self.axes)
        step, is_axis = self.parent_step, "parent_step" in self.axes
        require(step >= -1, "parent_step", step, "must be -1 (the last one) or a step")
        allowed = "is an axis of the run as well"
        require(step == -1 or not is_axis, "parent_step", step, allowed)
        if not self.parent:
            allowed = "needs a parent"
            require(step == -1, "parent_step", step, allowed)
            steps = self.axes.get("parent_step")
            require(not is_axis, "axes.parent_step", steps, allowed)
            pins = self.parent_member
            require(not pins, "parent_member", dict(pins), allowed)


@dataclass(frozen=True)
class Experiment:
    """A task, a model, a population and the stages that are chained on them."""

    task: TaskConfig = field(default_factory=ParityConfig)  # what is learned
    model: ModelConfig = field(default_factory=TransformerConfig)  # what learns it
    # Seeds and values of numbers: a member for every combination, in each run.
    axes: FrozenDict[str, tuple[Any, ...]] = FrozenDict({"seed": (0,)})
    runs: FrozenDict[str, RunConfig] = FrozenDict()  # stages by name, in their order
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)  # of every run
    eval_file: str = ""  # evaluation on its prompts, one a line; empty: on fresh ones
    # How the members are laid out on the devices.
    population: PopulationConfig = field(default_factory=PopulationConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)  # devices of one member
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()  # beside metrics.jsonl

    def __post_init__(self) -> None:
        check_axes(self.axes)
        allowed = "is for the axes of a run that has a parent"
        steps = self.axes.get("parent_step")
        require(steps is None, "axes.parent_step", steps, allowed)
        twice = len({*self.log}) < len(self.log)
        require(not twice, "log", list(self.log), "names one twice")
        seeds, allowed = self.axes.get("seed"), "must name at least one seed"
        require(bool(seeds), "axes.seed", seeds, allowed)
        for name, run in self.runs.items():
            plain = name.isidentifier() or name.replace("-", "_").isidentifier()
            allowed = f"must be a name: letters, digits and _, at most {MAX_NAME} bytes"
            require(plain and len(name.encode()) <= MAX_NAME, "runs", name, allowed)
            overlap = sorted(set(run.axes) & set(self.axes))
            allowed = "is already an axis of the experiment"
            require(not overlap, f"runs.{name}.axes", overlap, allowed)


def check_axes(axes: Mapping[str, tuple[float, ...]]) -> None:
    """ConfigError unless every axis exists and has distinct values within bounds."""
    for name, values in axes.items():
        if name not in AXES:
            raise unknown_name(f"axes.{name}", values, AXES)
        require(bool(values), f"axes.{name}", values, "must have at least one value")
        for value in values:
            if name in BOUNDS:
                with under("axes"):
                    check_hyper(name, value)
            else:
                inside = isinstance(value, int) and 0 <= value <= MAX_SEED
                allowed = f"must be a whole number (int) in [0, {MAX_SEED}]"
                require(inside, f"axes.{name}", value, allowed)
        check_values(name, values)


def check_values(name: str, values: Sequence[float]) -> None:
    """ConfigError for values of an axis that are the same: members would secretly be
    one.
    """
    seen = [np.float32(v) if name in BOUNDS else v for v in values]
    allowed = "values of an axis must be distinct"
    allowed += " (as float32)" if name in BOUNDS else ""
    require(len(set(seen)) == len(values), f"axes.{name}", values, allowed)
