"""Metrics of runs as labelled arrays, and the runs of an experiment together."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from parity_jax.config import ConfigError, RunError, require, unknown_value
from parity_jax.experiment import Experiment
from parity_jax.hypers import BOUNDS
from parity_jax.runs.directory import (
    ExperimentDirectory,
    RunDirectory,
    is_experiment,
    local_path,
)
from parity_jax.runs.metrics_file import SPLITS, Record
from parity_jax.runs.resolve import ResolvedRun, resolve

COUNTERS = ("rollouts", "updates", "tokens")  # per step; loaded with running totals


def load_metrics(directory: str | Path, split: str = "eval") -> xr.Dataset:
    """Metrics of a run as arrays with dimensions (*axes, step).

    split   "eval": scores at evaluated steps; "train": means over the steps since the
            previous record
    The coordinate `sequences` counts what a member trained on until a step, from the
    first stage of its chain on, as if none stopped earlier (finished.json tells which
    did); with an axis `parent_step` it depends on that too. Counters of one training
    step (`tokens`) come with running totals (`num_tokens`); those of a member that
    stopped within a record are right when the run has ended.
    ConfigError for a directory or split that is not one, RunError if nothing is there.
    """
    path = local_path("directory", directory)
    if split not in SPLITS:
        raise unknown_value("split", split, SPLITS)
    if is_experiment(path):
        names = ", ".join(d.path.name for d in ExperimentDirectory(path).runs())
        allowed = f"is an experiment's; name one of its runs: {names}"
        raise ConfigError("directory", str(path), allowed)
    files = RunDirectory(path)
    run = files.read_config()
    finished = files.verified_finish()
    records = files.metrics.read(len(run.labels))
    records = [record for record in records if record.split == split]
    if not records:
        raise RunError(f"{path}: has no record of split {split!r} yet")
    data = as_dataset(run, records, finished.step if finished else ())
    return data.assign_coords(sequences=sequences(files, run, data["step"]))


def as_dataset(
    run: ResolvedRun, records: list[Record], end_P: Sequence[int]
) -> xr.Dataset:
    """Records of one split; what a record does not have is NaN.

    end_P   the last step of every member, of a run that has ended
    """
    axes, steps = run.axes, [record.step for record in records]
    shape = [len(values) for values in axes.values()]
    names = sorted({name for record in records for name in record.values})
    missing = [None] * int(np.prod(shape))
    variables = {}
    for name in names:
        rows = [record.values.get(name, missing) for record in records]
        values_PxS = np.array(rows, dtype=float).T
        variables[name] = ([*axes, "step"], values_PxS.reshape(*shape, len(steps)))
    coords = {name: list(values) for name, values in axes.items()}
    data = xr.Dataset(variables, coords={**coords, "step": steps})
    before_S = [0, *steps[:-1]]
    steps_PxS = np.tile(np.diff(steps, prepend=0), (len(missing), 1))
    if end_P:  # within a record a member may have stopped
        steps_PxS = np.clip(np.subtract.outer(end_P, before_S), 0, steps_PxS)
    per_record = ([*axes, "step"], steps_PxS.reshape(*shape, len(steps)))
    for name in COUNTERS:
        if name in data and f"num_{name}" not in data:
            counted = data[name].fillna(0) * xr.Variable(*per_record)
            counted = counted.round()  # means are float32
            total = counted.cumsum("step")
            data[f"num_{name}"] = total
    return data


def sequences(files: RunDirectory, run: ResolvedRun, step: xr.DataArray) -> Any:
    """Training sequences of a member until each step, its ancestors' included."""
    parent = files.read_lineage().parent
    own = step * run.stage.sequences_per_step
    if parent is None:
        return own
    steps = run.axes.get("parent_step")
    if steps is None:
        return own + max(parent.sequences)
    before = [parent.sequences_at(step) for step in steps]
    coords = {"parent_step": list(steps)}
    return xr.DataArray(before, coords, ("parent_step",)) + own


class Results(Mapping[str, xr.Dataset]):
    """The runs of an experiment's directory: evaluation scores by the run's name."""

    def __init__(self, directory: str | Path):
        self.directory = local_path("directory", directory)
        allowed = "must be the directory of an experiment, not of one of its runs"
        require(is_experiment(self.directory), "directory", str(directory), allowed)
        self._home = ExperimentDirectory(self.directory)
        self._loaded: dict[tuple[str, str], xr.Dataset] = {}

    @cached_property
    def experiment(self) -> Experiment:
        """What was run."""
        return self._home.read_config()

    @cached_property
    def runs(self) -> dict[str, ResolvedRun]:
        """Everything that defines each run."""
        return resolve(self.experiment)

    def __getitem__(self, name: str) -> xr.Dataset:
        return self._load(name, "eval")

    def train(self, name: str) -> xr.Dataset:
        """Training metrics of a run."""
        return self._load(name, "train")

    def number(self, name: str, hyper: str) -> xr.DataArray | float:
        """One of a run's numbers: the values of its axis, or the one of all members."""
        if name not in self.experiment.runs:
            raise unknown_value("run", name, self.experiment.runs)
        if hyper not in BOUNDS:
            raise unknown_value("hyper", hyper, BOUNDS)
        run = self.runs[name]
        return self[name][hyper] if hyper in run.axes else getattr(run.hypers, hyper)

    def __contains__(self, name: object) -> bool:
        return name in self.experiment.runs

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            return default
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.experiment.runs)

    def __len__(self) -> int:
        return len(self.experiment.runs)

    def _load(self, name: str, split: str) -> xr.Dataset:
        if (name, split) not in self._loaded:
            if name not in self.experiment.runs:
                raise unknown_value("run", name, self.experiment.runs)
            self._home.check_run(name)
            path = self._home.run(name).path
            self._loaded[name, split] = load_metrics(path, split)
        return self._loaded[name, split].copy(deep=True)  # nobody edits another's
