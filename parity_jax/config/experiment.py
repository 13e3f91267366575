"""Runs, populations and the experiment that chains them."""

import typing
from dataclasses import dataclass, field

from flax.core import FrozenDict

from parity_jax.config.checks import (
    AXES,
    HYPER_BOUNDS,
    ConfigError,
    check_hyper,
    check_hypers,
    require,
    require_positive,
    unknown_name,
)
from parity_jax.config.model import (
    LinearConfig,
    ParityConfig,
    TaskConfig,
    TransformerConfig,
)
from parity_jax.config.stage import (
    LinearPretrainConfig,
    LinearStarConfig,
    PolicyGradientConfig,
    PretrainConfig,
    StageConfig,
    StarConfig,
)
from parity_jax.types import Hypers


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on fresh prompts: greedy, and sampled at each temperature."""

    num_prompts: int = 512
    temperatures: tuple[float, ...] = (0.75, 1.0, 1.5)
    num_samples: int = 1  # responses to each prompt at each temperature

    def __post_init__(self) -> None:
        require_positive(self, "num_prompts", "num_samples")
        for value in self.temperatures:
            require(value > 0, "temperatures", value, "must be positive")


@dataclass(frozen=True)
class PopulationConfig:
    """How the members of one program are laid out; results do not depend on it."""

    num_devices: int = 0  # members are sharded over so many devices; 0: all local ones
    vmap_width: int = 0  # members per vmap on a device; 0: all on GPU/TPU, 1 on CPU

    def __post_init__(self) -> None:
        for name in ("num_devices", "vmap_width"):
            value = getattr(self, name)
            require(value >= 0, name, value, "must be 0 (automatic) or positive")


@dataclass(frozen=True)
class RunConfig:
    """One stage of an experiment: an algorithm, its numbers, where it starts."""

    stage: StageConfig = field(default_factory=PretrainConfig)
    hypers: Hypers = field(default_factory=Hypers)
    num_steps: int = 1000
    log_every: int = 10  # steps merged into one record of training metrics
    eval_every: int = 100
    # Checkpoints at the first and the last step, and at all that these three name.
    checkpoint_every: int = 0  # 0: no further ones
    checkpoint_steps: tuple[int, ...] = ()
    checkpoint_powers_of_two: bool = False  # at steps 1, 2, 4, 8, ..
    max_to_keep: int = 0  # the newest so many; 0: all
    parent: str = ""  # run of this experiment, or run directory; empty: from scratch
    parent_step: int = -1  # checkpoint of the parent to start from; -1: the last one
    # The members of the parent to start from, by axes of the parent ({"seed": 2}); on
    # its other axes a member starts from the parent with the same value.
    parent_member: FrozenDict[str, float] = FrozenDict()
    axes: FrozenDict[str, tuple[float, ...]] = FrozenDict()  # beside the experiment's
    task: TaskConfig | None = None  # None: the experiment's
    model: TransformerConfig | LinearConfig | None = None  # None: the experiment's

    def __post_init__(self) -> None:
        require_positive(self, "num_steps", "log_every", "eval_every")
        self._check_checkpoints()
        self._check_parent()
        try:
            check_hypers(self.hypers)
        except ConfigError as error:
            raise error.under("hypers") from None
        check_axes(self.axes)
        self.check_length_price(self.axes)

    def _check_checkpoints(self) -> None:
        every, keep = self.checkpoint_every, self.max_to_keep
        allowed = "must be 0 (start and end only) or positive"
        require(every >= 0, "checkpoint_every", every, allowed)
        require(keep >= 0, "max_to_keep", keep, "must be 0 (all) or positive")
        for step in self.checkpoint_steps:
            inside = 0 <= step <= self.num_steps
            allowed = f"must be in [0, num_steps={self.num_steps}]"
            require(inside, "checkpoint_steps", step, allowed)

    def _check_parent(self) -> None:
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

    def scheduled_steps(self) -> tuple[int, ...]:
        """The steps that get a checkpoint, ascending."""
        last = self.num_steps
        steps = {0, last, *self.checkpoint_steps}
        if self.checkpoint_every:
            steps |= set(range(0, last, self.checkpoint_every))
        if self.checkpoint_powers_of_two:
            steps |= {2**n for n in range(last.bit_length())}
        return tuple(sorted(steps))

    def kept_steps(self, steps: typing.Collection[int]) -> tuple[int, ...]:
        """Those of the saved steps whose checkpoints stay: max_to_keep scheduled ones.

        The newest always stays, scheduled or not: the run continues from it.
        """
        scheduled = sorted({*steps} & {*self.scheduled_steps()})
        newest = max(steps, default=0)
        return tuple(sorted({*scheduled[-self.max_to_keep :], newest} & {*steps}))

    def check_length_price(self, axes: typing.Mapping[str, tuple[float, ...]]) -> None:
        """Refuse a price of length that would do nothing, or everything."""
        price = max(axes.get("length_price", (self.hypers.length_price,)))
        idle = (
            isinstance(self.stage, PolicyGradientConfig)
            and self.stage.rollout.num_generations == 2
            and self.stage.scale_rewards == "group"
        )
        allowed = (
            "has no size with num_generations=2 and scale_rewards='group': the std of "
            "two rewards divides it away; use more generations or scale_rewards='none'"
        )
        require(not (idle and price > 0), "hypers.length_price", price, allowed)
        allowed = "must be 0 with STaR: it keeps samples whose reward is 1"
        is_star = isinstance(self.stage, StarConfig | LinearStarConfig)
        require(not (is_star and price > 0), "hypers.length_price", price, allowed)


@dataclass(frozen=True)
class Experiment:
    """A task, a model, a population and the stages that are chained on them."""

    task: TaskConfig = field(default_factory=ParityConfig)
    model: TransformerConfig | LinearConfig = field(default_factory=TransformerConfig)
    axes: FrozenDict[str, tuple[float, ...]] = FrozenDict({"seed": (0,)})
    runs: FrozenDict[str, RunConfig] = FrozenDict()
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    eval_file: str = ""  # evaluation on its prompts, one a line; empty: on fresh ones
    population: PopulationConfig = field(default_factory=PopulationConfig)

    def __post_init__(self) -> None:
        check_axes(self.axes)
        allowed = "is for the axes of a run that has a parent"
        steps = self.axes.get("parent_step")
        require(steps is None, "axes.parent_step", steps, allowed)
        allowed = "must name at least one seed"
        require(
            bool(self.axes.get("seed")), "axes.seed", self.axes.get("seed"), allowed
        )
        for name, run in self.runs.items():
            overlap = sorted(set(run.axes) & set(self.axes))
            allowed = "is already an axis of the experiment"
            require(not overlap, f"runs.{name}.axes", overlap, allowed)
            try:
                run.check_length_price({**self.axes, **run.axes})
            except ConfigError as error:
                raise error.under(f"runs.{name}") from None
            self._check_linear(name, run)
            self._check_leap(name, run)

    def _check_linear(self, name: str, run: RunConfig) -> None:
        """Stages of the linear model need it; its responses stop at bit 1 or d."""
        is_linear = isinstance(run.model or self.model, LinearConfig)
        needs_linear = isinstance(run.stage, LinearPretrainConfig | LinearStarConfig)
        allowed = "needs model.kind='linear'"
        kind = run.stage.kind
        require(is_linear or not needs_linear, f"runs.{name}.stage.kind", kind, allowed)
        if not is_linear:
            return
        task = run.task or self.task
        if not isinstance(task, ParityConfig):
            allowed = "must be 'parity' with the linear model"
            raise ConfigError("task.kind", task.kind, allowed)
        allowed = "must be 1 with the linear model: it stops after bit 1 or bit d"
        require(task.leap == 1, "task.leap", task.leap, allowed)

    def _check_leap(self, name: str, run: RunConfig) -> None:
        """Only parity has leap chains."""
        axes = {**self.axes, **run.axes}
        share = max(axes.get("p_leap", (run.hypers.p_leap,)))
        task = run.task or self.task
        allowed = f"must be 0: task.kind={task.kind!r} has no leap chains"
        has_leap = isinstance(task, ParityConfig)
        require(has_leap or share == 0, f"runs.{name}.hypers.p_leap", share, allowed)


def check_axes(axes: typing.Mapping[str, tuple[float, ...]]) -> None:
    """ConfigError unless every axis exists and has distinct values within bounds."""
    for name, values in axes.items():
        if name not in AXES:
            raise unknown_name(name, values, AXES).under("axes")
        allowed = "values of an axis must be distinct"
        require(len(set(values)) == len(values), f"axes.{name}", values, allowed)
        for value in values:
            if name in HYPER_BOUNDS:
                try:
                    check_hyper(name, value)
                except ConfigError as error:
                    raise error.under("axes") from None
            else:
                whole = isinstance(value, int) and value >= 0
                require(whole, f"axes.{name}", value, "must be a whole number >= 0")
