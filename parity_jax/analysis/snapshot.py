"""A checkpoint of some members of a run, opened for reading: nothing is written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from parity_jax.checkpoint import Arrays, Checkpoints, from_arrays, subtree
from parity_jax.config import ConfigError, Experiment, from_dict, require, unknown_name
from parity_jax.models import Model, make_model
from parity_jax.population import Axes, Label, member_labels
from parity_jax.results import RunError, read_json
from parity_jax.tasks import make_task
from parity_jax.types import Params, Task

RUN = "run"  # the name of the only run of a snapshot's experiment


class Snapshot(NamedTuple):
    """What a run directory holds at one step, of the chosen members."""

    directory: Path
    config: dict[str, Any]  # config.json
    experiment: Experiment  # of this run alone; its axes make the chosen members
    steps: list[int]  # that have a checkpoint
    step: int
    labels: list[Label]  # of the chosen members
    places: list[int]  # their places among all members of the run
    arrays: Arrays  # the chosen members' states, P in front

    @property
    def task(self) -> Task:
        return make_task(self.experiment.task)

    @property
    def model(self) -> Model:
        return make_model(self.experiment.model, self.task)

    def params(self, member: int) -> Params:
        """The parameters of one chosen member, by its place among them."""
        template = jax.eval_shape(self.model.init, jax.random.key(0))
        arrays = subtree(self.arrays, "params")
        return from_arrays({k: x[member] for k, x in arrays.items()}, template)


def open_run(
    directory: Path, step: int = -1, member: Mapping[str, float] | None = None
) -> Snapshot:
    """The checkpoint of a step (-1: the newest), of the members with these axis values.

    ConfigError for a directory, step or member that is not there, RunError for one that
    is damaged.
    """
    config = read_config(directory)
    allowed = "must be the directory of one stage (an experiment holds several)"
    require("run" in config, "directory", str(directory), allowed)
    axes = narrow(config["axes"], member or {})
    labels, every = member_labels(axes), member_labels(config["axes"])
    places = [every.index(label) for label in labels]
    experiment = rebuild(directory, config, axes)
    checkpoints = Checkpoints(directory, read_only=True)
    try:
        steps = checkpoints.steps()
        if not steps:
            raise RunError(f"{directory}: has no checkpoint yet")
        step = steps[-1] if step == -1 else step
        require(step in steps, "step", step, f"must be one of {_listed(steps)}")
        arrays = {k: x[places] for k, x in checkpoints.read(step).items()}
    finally:
        checkpoints.close()
    return Snapshot(directory, config, experiment, steps, step, labels, places, arrays)


def read_config(directory: Path) -> dict[str, Any]:
    """The config.json of a run or an experiment."""
    path = directory / "config.json"
    allowed = "must be a directory that a run or an experiment made (no config.json)"
    require(path.exists(), "directory", str(directory), allowed)
    return read_json(path)


def rebuild(directory: Path, config: Mapping[str, Any], axes: Axes) -> Experiment:
    """The experiment of the one run that a config.json describes, with these axes."""
    shared = {k: v for k, v in config.items() if k not in ("run", "axes")}
    own_axes = {k: v for k, v in axes.items() if k != "seed"}
    run = {**config["run"], "axes": own_axes}
    whole = {**shared, "axes": {"seed": axes["seed"]}, "runs": {RUN: run}}
    try:
        return from_dict(Experiment, whole)
    except ConfigError as error:
        raise RunError(f"{directory}/config.json: {error}") from None


def narrow(axes: Axes, member: Mapping[str, float]) -> Axes:
    """The axes with only the member's value where it names one."""
    for name, value in member.items():
        if name not in axes:
            raise unknown_name(name, value, axes).under("member")
        allowed = f"must be one of {_listed(axes[name])}"
        require(value in axes[name], f"member.{name}", value, allowed)
    return {k: (member[k],) if k in member else tuple(v) for k, v in axes.items()}


def parse_member(text: str) -> dict[str, float]:
    """Axis values from "seed=2,p_cot=0.25"; empty is every member."""
    member = {}
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        try:
            member[name] = float(value) if not value.isdigit() else int(value)
        except ValueError:
            allowed = "must be axes with values, e.g. seed=2,p_cot=0.25"
            raise ConfigError("member", text, allowed) from None
    return member


def member_text(label: Label) -> str:
    """A member's label as it is typed: "p_cot=0.25,seed=2"."""
    return ",".join(f"{name}={value:g}" for name, value in label.items())


def only_member(snapshot: Snapshot) -> None:
    """ConfigError unless exactly one member is chosen."""
    found = [member_text(label) for label in snapshot.labels]
    allowed = f"must choose one of {'; '.join(found[:8])}{' ..' * (len(found) > 8)}"
    require(len(found) == 1, "member", "", allowed)


def _listed(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in np.asarray(values))
