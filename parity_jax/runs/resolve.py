"""From what a user writes to what runs: an `Experiment` becomes `ResolvedRun`s.

Everything that is asked of a run after this is a field of its `ResolvedRun`, which is
equal to its config.json.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from flax.core import FrozenDict

from parity_jax.axes import member_labels, parent_index
from parity_jax.config import (
    ConfigError,
    Label,
    differences,
    expanded,
    in_code_of,
    kind_of,
    lines_of,
    require,
    to_dict,
    under,
    unknown_value,
)
from parity_jax.evaluate import (
    Evaluate,
    EvaluateConfig,
    held_out_prompts,
    make_evaluate,
    read_prompts,
)
from parity_jax.experiment import Experiment, RunConfig, Schedule
from parity_jax.hypers import BOUNDS, Hypers, check_hypers
from parity_jax.mesh import MeshConfig, spread
from parity_jax.models import Model, ModelConfig
from parity_jax.population import Population, PopulationConfig, make_population
from parity_jax.stages import Stage, StageConfig
from parity_jax.tasks import FiniteTask, Task, TaskConfig, TextConfig
from parity_jax.tasks.contract import check_task
from parity_jax.types import Data

SIBLING = "../"  # how the path of a parent begins that is a run of the same experiment


@dataclass(frozen=True)
class Parent:
    """Where a run starts."""

    path: str  # of the parent's directory, from the run's own; empty: from scratch
    step: int  # of all members that have no axis for it; -1: the newest there is
    member: FrozenDict[str, Any]  # axes of the parent that are pinned

    @property
    def sibling(self) -> str:
        """The run's name in the same experiment; empty if it is none of it."""
        is_sibling = self.path.startswith(SIBLING)
        return self.path.removeprefix(SIBLING) if is_sibling else ""


@dataclass(frozen=True)
class EvalFile:
    """The file of evaluation prompts; both empty: there is none."""

    path: str
    sha256: str


@dataclass(frozen=True)
class ResolvedRun:
    """Everything that defines a run."""

    task: TaskConfig
    model: ModelConfig
    stage: StageConfig
    hypers: Hypers
    axes: FrozenDict[str, tuple[Any, ...]]  # all of them, seed last: it varies fastest
    parent: Parent
    evaluate: EvaluateConfig
    eval_file: EvalFile
    schedule: Schedule
    population: PopulationConfig
    mesh: MeshConfig

    @property
    def labels(self) -> list[Label]:
        """The members."""
        return member_labels(self.axes)

    @property
    def decisive(self) -> dict[str, Any]:
        """What decides the numbers of every member at every step, as plain data."""
        names = ("task", "model", "stage", "hypers", "parent")
        order: dict[str, Any] = {"order of axes": [*self.axes]}
        order |= {"axes": to_dict(self.axes), "pins": sorted(self.parent.member)}
        return {name: to_dict(getattr(self, name)) for name in names} | order

    @property
    def own_modules(self) -> list[str]:
        """The modules of the user's own that it names, as `package.module:name`."""
        found = texts([to_dict(part) for part in (self.task, self.model, self.stage)])
        named = {text.partition(":")[0] for text in found if ":" in text}
        return sorted(named & {*sys.modules})

    @property
    def parent_steps(self) -> list[int]:
        """For every member the step of its parent; -1 is the parent's newest."""
        step = self.parent.step
        return [int(label.get("parent_step", step)) for label in self.labels]


def texts(value: Any) -> list[str]:
    """All texts in plain data."""
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list):
        return [text for item in value for text in texts(item)]
    return [value] if isinstance(value, str) else []


def resolve(experiment: Experiment) -> dict[str, ResolvedRun]:
    """All runs, parents first; ConfigError for what cannot be."""
    require(bool(experiment.runs), "runs", {}, "must name at least one run")
    eval_file = resolved_file(experiment.eval_file)
    resolved: dict[str, ResolvedRun] = {}
    for name in order_of_execution(experiment):
        config = experiment.runs[name]
        axes = {**experiment.axes, **config.axes}
        seeds = axes.pop("seed")
        run = ResolvedRun(
            task=(config.task or experiment.task).resolved(),
            model=(config.model or experiment.model).resolved(),
            stage=config.stage.resolved(),
            hypers=config.hypers,
            axes=FrozenDict({**axes, "seed": seeds}),
            parent=resolved_parent(experiment, config),
            evaluate=experiment.evaluate,
            eval_file=eval_file,
            schedule=schedule_of(config),
            population=experiment.population,
            mesh=experiment.mesh,
        )
        check(name, config, run)
        if run.parent.sibling:
            check_parent(name, run, resolved[run.parent.sibling], config.parent)
        resolved[name] = run
    check_judges(resolved.values())
    return resolved


def check_judges(runs: Collection[ResolvedRun]) -> None:
    """ConfigError for a reward on text that no run names, though some sample."""
    rollouts = [getattr(run.stage, "rollout", None) for run in runs]
    named = [{*rollout.rewards} for rollout in rollouts if rollout is not None]
    for run in runs:
        own = run.task.text_rewards if isinstance(run.task, TextConfig) else ()
        for reward in own if named else ():
            allowed = "must be among the stage.rollout.rewards of a run as well"
            is_read = any(reward in rewards for rewards in named)
            require(is_read, "task.text_rewards", reward, allowed)


def order_of_execution(experiment: Experiment) -> list[str]:
    """The runs, parents first."""
    names: list[str] = []

    def add(name: str, children: tuple[str, ...]) -> None:
        if name in children:
            cycle = " -> ".join((*children, name))
            raise ConfigError(f"runs.{name}.parent", cycle, "must not be a circle")
        parent = experiment.runs[name].parent
        if parent in experiment.runs:
            add(parent, (*children, name))
        if name not in names:
            names.append(name)

    for name in experiment.runs:
        add(name, ())
    return names


def schedule_of(config: RunConfig) -> Schedule:
    """The part of a run's config that its numbers do not depend on."""
    names = [f.name for f in dataclasses.fields(Schedule)]
    return Schedule(**{name: getattr(config, name) for name in names})


def resolved_parent(experiment: Experiment, config: RunConfig) -> Parent:
    """A sibling's last step is known; another directory's is read at the start."""
    path, step = config.parent, config.parent_step
    if path in experiment.runs:
        if step == -1 and "parent_step" not in config.axes:
            step = experiment.runs[path].num_steps
        path = SIBLING + path
    elif path:
        path = os.path.abspath(expanded("parent", path))
    return Parent(path, step, config.parent_member)


def resolved_file(path: str) -> EvalFile:
    """The file and the digest of what it holds: an edited file is another run."""
    if not path:
        return EvalFile("", "")
    file = expanded("eval_file", path)
    allowed = "must be a file, which can be read twice"  # no pipe
    require(file.is_file() or not file.exists(), "eval_file", path, allowed)
    try:
        content = file.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError("eval_file", path, f"cannot be read: {reason}") from None
    return EvalFile(path, hashlib.sha256(content).hexdigest())


def check(name: str, config: RunConfig, run: ResolvedRun) -> None:
    """ConfigError unless model, task, stage and the numbers of all members agree."""
    try:
        with in_own_code(run):
            check_parts(run)
    except ConfigError as error:
        where = error.name.partition(".")[0]
        is_shared = where in ("task", "model") and getattr(config, where) is None
        is_axis = error.name in run.axes
        is_shared = is_shared or (is_axis and error.name not in config.axes)
        number = "axes." if is_axis else "hypers." if error.name in BOUNDS else ""
        prefix = ("" if is_shared else f"runs.{name}.") + number
        raise ConfigError(prefix + error.name, error.value, error.allowed) from None


def check_parts(run: ResolvedRun) -> None:
    """What model, task and stage check themselves, of every member."""
    run.model.check(run.task)
    for label in run.labels:
        numbers = {k: v for k, v in label.items() if k in BOUNDS}
        hypers = dataclasses.replace(run.hypers, **numbers)
        check_hypers(hypers)
        run.task.check(hypers)
        run.stage.check(run.model, hypers)
    where = run.parent.sibling or run.parent.path
    allowed = "must be empty: the stage starts from no other's parameters"
    require(run.stage.starts_from_parents or not where, "parent", where, allowed)
    num = run.stage.sequences_per_step
    allowed = "must be a whole number, at least 1"
    require(type(num) is int and num >= 1, "stage.sequences_per_step", num, allowed)


@contextmanager
def under_run(name: str) -> Iterator[None]:
    """Puts the run before its own field; file and mesh are the experiment's."""
    try:
        yield
    except ConfigError as error:
        if error.name in ("eval_file", "mesh"):
            raise
        field = f"runs.{name}.{error.name}"
        raise ConfigError(field, error.value, error.allowed) from None


def in_own_code(run: ResolvedRun) -> AbstractContextManager[None]:
    """Names the user's own task, model and stage in what they raise, if there are."""
    kinds = [kind_of(type(part)) for part in (run.task, run.model, run.stage)]
    own = [kind for kind in kinds if ":" in kind]
    return in_code_of(", ".join(own)) if own else nullcontext()


def check_parent(
    name: str,
    run: ResolvedRun,
    parent: ResolvedRun,
    parent_name: str,
) -> None:
    """ConfigError unless every member has a parent, of the same task and model."""
    found = [
        d
        for part in ("task", "model")
        for d in differences(
            to_dict(getattr(parent, part)), to_dict(getattr(run, part)), part
        )
    ]
    require(not found, f"runs.{name}.parent", parent_name, lines_of(found))
    with under(f"runs.{name}"):
        parent_index(run.labels, run.hypers, parent.axes, run.parent.member)


def check_planned(name: str, run: ResolvedRun, parent: ResolvedRun) -> None:
    """ConfigError unless a parent that begins anew will have the steps saved."""
    saved = parent.schedule.kept_steps(parent.schedule.saved_steps())
    check_steps(name, run, {*run.parent_steps}, saved)


def check_steps(
    name: str, run: ResolvedRun, wanted: Collection[int], saved: Sequence[int]
) -> None:
    """ConfigError unless the parent has a checkpoint at all these steps."""
    field = "axes.parent_step" if "parent_step" in run.axes else "parent_step"
    for step in sorted(wanted):
        allowed = f"must be a checkpoint of the parent: {listed(saved)}"
        require(step in saved, f"runs.{name}.{field}", step, allowed)


def listed(steps: Sequence[int]) -> str:
    """Steps one by one, or the ends of a long list."""
    if len(steps) <= 12:
        return ", ".join(map(str, steps)) or "none"
    ends = [", ".join(map(str, part)) for part in (steps[:3], steps[-3:])]
    return f"{ends[0]}, .., {ends[1]} ({len(steps)} steps)"


def select(names: list[str], only: list[str]) -> list[str]:
    """The runs that --only names, in their order; all if it names none."""
    for name in only:
        if name not in names:
            raise unknown_value("only", name, names)
    return [name for name in names if not only or name in only]


class Parts(NamedTuple):
    """What runs of an experiment mostly have in common."""

    task: Task
    model: Model
    evaluate: Evaluate


def make_parts(run: ResolvedRun) -> Parts:
    """Task, model and evaluation of a run; its data is read."""
    task = run.task.make()
    check_task(run.task, task)
    model = spread(run.model.make(task), run.mesh)
    return Parts(task, model, make_evaluate(run.evaluate, task, model))


def parts_of(run: ResolvedRun, made: dict[str, Parts]) -> Parts:
    """`make_parts`, but for runs that have the same: data is read and evaluation is
    traced once for all of them.
    """
    same = [to_dict(part) for part in (run.task, run.model, run.mesh, run.evaluate)]
    key = json.dumps(same)
    if key not in made:
        made[key] = make_parts(run)
    return made[key]


def make_program(
    run: ResolvedRun, devices: Sequence[jax.Device] = (), parts: Parts | None = None
) -> Population:
    """The programs of a run; nothing is traced or compiled yet.

    devices   that are described only, to compile for them; empty: those that are here
    parts     of the run, if they are made already
    """
    task, model, evaluate = parts or make_parts(run)
    with under("stage"):
        stage = run.stage.make(task, model, evaluate)
        made = type(stage).__name__
        require(isinstance(stage, Stage), "make", made, "must return a Stage")
    path, allowed = run.eval_file.path, "must be left out: the task has test rows"
    require(not (path and isinstance(task, FiniteTask)), "eval_file", path, allowed)
    given = read_prompts(path, task) if path else held_out_prompts(run.evaluate, task)
    data = Data(task.data, given)
    return make_population(
        run.population,
        stage,
        run.axes,
        run.hypers,
        data,
        run.mesh,
        devices,
        keeps_states=isinstance(task, FiniteTask) and task.may_fail,
        is_judged_on_host=isinstance(task, FiniteTask) and task.is_judged_on_host,
    )
