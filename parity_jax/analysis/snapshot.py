"""A checkpoint of some members of a run, opened for reading: nothing is written."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax.core import FrozenDict

from parity_jax.axes import Axes
from parity_jax.config import (
    Label,
    RunError,
    label_text,
    number_text,
    require,
    unknown_name,
)
from parity_jax.models import Model
from parity_jax.runs.checkpoint import Arrays, from_arrays, subtree
from parity_jax.runs.directory import RunDirectory, is_experiment
from parity_jax.runs.resolve import ResolvedRun, listed
from parity_jax.tasks import Task
from parity_jax.types import Params


class Snapshot(NamedTuple):
    """What a run directory holds at one step, of the chosen members."""

    directory: RunDirectory
    whole: ResolvedRun  # as in config.json
    run: ResolvedRun  # the same of the chosen members alone, by its axes
    steps: list[int]  # that have a checkpoint
    step: int
    arrays: Arrays  # the chosen members' states, P in front

    @property
    def places(self) -> list[int]:
        """Of the chosen members among all of the run."""
        return places(self.whole, self.run)

    @property
    def task(self) -> Task:
        return self.run.task.make()

    @property
    def model(self) -> Model:
        return self.run.model.make(self.task)

    def params(self, member: int) -> Params:
        """The parameters of one chosen member, by its place among them."""
        template = jax.eval_shape(self.model.init, jax.random.key(0))
        arrays = subtree(self.arrays, "params")
        return from_arrays({k: x[member] for k, x in arrays.items()}, template)


def open_snapshot(
    directory: RunDirectory, step: int = -1, member: Label | None = None
) -> Snapshot:
    """The checkpoint of a step (-1: the newest), of the members with these axis values.

    ConfigError for a directory, step or member that is not there, RunError for one that
    is damaged.
    """
    path = directory.path
    allowed = "must be the directory of one run (an experiment holds several)"
    require(not is_experiment(path), "directory", str(path), allowed)
    whole = directory.read_config()
    directory.verified_finish()  # or an older checkpoint would be taken for its last
    run = dataclasses.replace(whole, axes=narrowed(whole.axes, member or {}))
    with directory.saved() as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise RunError(f"{path}: has no checkpoint yet")
        step = steps[-1] if step == -1 else step
        require(step in steps, "step", step, f"must be one of {listed(steps)}")
        saved = checkpoints.read(step).arrays
    of_states = {k: x for k, x in saved.items() if not k.startswith("metrics.")}
    arrays = {k: x[places(whole, run)] for k, x in of_states.items()}
    return Snapshot(directory, whole, run, steps, step, arrays)


def places(whole: ResolvedRun, run: ResolvedRun) -> list[int]:
    """Where the members of a narrowed run are among all members."""
    every = whole.labels
    return [every.index(label) for label in run.labels]


def narrowed(axes: Axes, member: Mapping[str, float]) -> FrozenDict[str, Any]:
    """The axes with only the member's value where it names one."""
    for name, value in member.items():
        if name not in axes:
            raise unknown_name(f"member.{name}", value, axes)
        allowed = f"must be one of {', '.join(map(number_text, axes[name]))}"
        require(value in axes[name], f"member.{name}", value, allowed)
    chosen = {k: (member[k],) if k in member else v for k, v in axes.items()}
    return FrozenDict(chosen)


def require_one_member(snapshot: Snapshot, given: str) -> None:
    """ConfigError unless exactly one member is chosen."""
    found = [label_text(label) for label in snapshot.run.labels]
    allowed = f"must choose one of {'; '.join(found[:8])}{' ..' * (len(found) > 8)}"
    require(len(found) == 1, "member", given, allowed)
