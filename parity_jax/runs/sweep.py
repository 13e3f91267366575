"""The files of a sweep: many experiments in one directory, each of them a job.

    sweep.json            what was asked, and every job with its place in it
    jobs/NAME/            what the lives of a job left: life.json, log.txt
    NAME/                 the experiment's directory of a job, or of several

`launch` writes them; reports and analyses only read.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax.core import FrozenDict

from parity_jax.config import RunError, differences, lines_of, number_text, to_dict
from parity_jax.config.overrides import PREFIX, SCALE, Override, apply
from parity_jax.runs.directory import ExperimentDirectory
from parity_jax.runs.files import CodeNotFoundError, lock, read_as, write_json


@dataclass(frozen=True)
class SweepJob:
    """One job: some or all runs of one experiment."""

    name: str
    directory: str  # of the experiment, below the sweep's own; chains share it
    overrides: tuple[str, ...]  # what follows `--config.` beside the grid
    config: str  # the experiment's file, as it was typed
    fields: FrozenDict[str, str]  # the swept fields that are static, as typed
    axes: FrozenDict[str, tuple[Any, ...]]  # the job's part of the swept axes
    chain: str  # the first run of its chain; empty: all runs
    steps: FrozenDict[str, int]  # its runs and where each will end
    members: int

    @property
    def arguments(self) -> list[str]:
        """Of `parity-jax run`, without --workdir."""
        edits = [edit.text for edit in swept_edits(self.fields, self.axes)]
        only = [f"--only={','.join(self.steps)}"] if self.chain else []
        texts = [f"--{PREFIX}{text}" for text in (*self.overrides, *edits)]
        return [f"--config={self.config}", *texts, *only]


def swept_edits(
    fields: Mapping[str, str], axes: Mapping[str, Sequence[Any]]
) -> list[Override]:
    """What tells a job from the others of its sweep, as overrides of a config."""
    edits = [Override(name, value) for name, value in fields.items()]
    for name, values in axes.items():
        edits.append(Override(f"axes.{name}", ",".join(map(number_text, values))))
    return edits


@dataclass(frozen=True)
class Sweep:
    """sweep.json."""

    configs: tuple[str, ...]
    grid: FrozenDict[str, tuple[str, ...]]  # every swept name, as typed
    chains: bool  # whether the chains of an experiment are jobs of their own
    commit: str | None  # of the code that planned it last
    jobs: tuple[SweepJob, ...]  # in the order in which they were planned first
    axes: tuple[str, ...] = ()  # that its runs have

    @property
    def short_names(self) -> dict[str, str]:
        """What a swept name is called: its last part, where that says enough and is
        no other dimension of the scores.
        """
        last = [name.rpartition(".")[2] for name in self.grid]
        taken = ("seed", "parent_step", "step", "sequences", "config", *self.axes)
        return {
            name: end if last.count(end) == 1 and end not in taken else name
            for name, end in zip(self.grid, last, strict=True)
        }

    def find_code(self) -> None:
        """The user's own stages and tasks may stand beside the experiments' files."""
        for config in self.configs:
            folder = str(Path(config.partition(":")[0]).resolve().parent)
            if folder not in sys.path:
                sys.path.append(folder)


class SweepDirectory:
    """sweep.json, the experiments' directories and the records of the jobs."""

    def __init__(self, path: Path):
        self.path = path
        self._sweep = path / "sweep.json"

    def has_sweep(self) -> bool:
        """Whether a sweep was planned here."""
        return self._sweep.exists()

    def read(self) -> Sweep:
        """What is swept; RunError if the file is missing or damaged."""
        sweep: Sweep = read_as(Sweep, self._sweep)
        names = [job.name for job in sweep.jobs]
        places = [*names, *(job.directory for job in sweep.jobs)]
        bad = [name for name in names if names.count(name) > 1]
        bad += [p for p in places if Path(p).name != p or p in ("", "..")]
        bad += [job.name for job in sweep.jobs if not is_whole(job, sweep)]
        if bad:
            raise RunError(f"{self._sweep}: damaged: job {bad[0]!r}")
        return sweep

    def write(self, sweep: Sweep) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._sweep, to_dict(sweep))

    def restore(self, sweep: Sweep | None) -> None:
        """What was swept before, or nothing."""
        if sweep is None:
            self._sweep.unlink(missing_ok=True)
        else:
            self.write(sweep)

    def experiment(self, job: SweepJob) -> ExperimentDirectory:
        """Where a job's experiment is."""
        return ExperimentDirectory(self.path / job.directory)

    def checked(self, job: SweepJob) -> ExperimentDirectory:
        """The same; RunError if another one is there, of other swept values."""
        home = self.experiment(job)
        edits = [e for e in swept_edits(job.fields, job.axes) if e.path != SCALE]
        if home.has_config():
            there = home.read_config()
            found = differences(to_dict(there), to_dict(apply(there, edits)))
            if found:
                raise RunError(f"{home.path}: is not of this job: {lines_of(found)}")
        return home

    def experiments(self) -> dict[str, ExperimentDirectory]:
        """The experiments' directories by name, in the order of the jobs.

        RunError for one that is of another job, as far as its code is found from here.
        """
        sweep = self.read()
        sweep.find_code()
        for job in sweep.jobs:
            with suppress(CodeNotFoundError):
                self.checked(job)
        return {job.directory: self.experiment(job) for job in sweep.jobs}

    @property
    def records(self) -> Path:
        """The directory of the jobs' records."""
        return self.path / "jobs"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held by this process while it plans and submits; others wait."""
        self.path.mkdir(parents=True, exist_ok=True)
        with lock(self.path, wait=True):
            yield


def is_whole(job: SweepJob, sweep: Sweep) -> bool:
    """Whether a job has members and runs, and fields that are swept."""
    runs = all(Path(run).name == run for run in job.steps)
    swept = all(text in sweep.grid.get(k, ()) for k, text in job.fields.items())
    return job.members > 0 and bool(job.steps) and runs and swept


def is_sweep(path: Path) -> bool:
    """Whether a sweep was planned in a directory."""
    return SweepDirectory(path).has_sweep()
