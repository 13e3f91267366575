"""From a grid to jobs: what is one program, what is a job of its own, what is new.

A swept name that can be an axis of a population (`p_cot`, `seed`) stays in one program:
it becomes an axis of the experiment. Any other is a field of the config, or `scale`,
and every combination of those is a shape bucket: a program, and a job, of its own. Jobs
that a sweep has keep their names, directories and places; a larger grid adds jobs for
the members that it lacks.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from flax.core import FrozenDict

from parity_jax.cli.run import built
from parity_jax.config import (
    ConfigError,
    number_text,
    require,
    to_dict,
    unknown_value,
)
from parity_jax.config.labels import parse_number
from parity_jax.config.overrides import Override
from parity_jax.experiment import Experiment, check_values
from parity_jax.hypers import AXES
from parity_jax.runs.resolve import ResolvedRun, resolve
from parity_jax.runs.sweep import Sweep, SweepJob, swept_edits

Box = dict[str, tuple[Any, ...]]  # members: the product of values of axes

TAKEN = ("jobs", "slurm")  # directories of a sweep that are no experiment's
MAX_NAME = 255  # bytes, of file systems
NOT_IN_NAMES = re.compile(r"[^\w.,=+-]+")


@dataclass(frozen=True)
class Asked:
    """What is to be swept, as it was typed."""

    configs: tuple[str, ...]  # experiment files, FILE.py or FILE.py:SCALE
    overrides: tuple[Override, ...]
    grid: Mapping[str, tuple[str, ...]]
    split: Mapping[str, int]  # values of an axis to a job
    chains: bool


@dataclass(frozen=True)
class Built:
    """An experiment of the sweep, checked; one for each directory."""

    job: SweepJob  # the first that works on it
    module: ModuleType
    experiment: Experiment
    runs: dict[str, ResolvedRun]

    @property
    def bucket(self) -> tuple[Any, ...]:
        """What its shapes follow from: the same bucket, the same programs."""
        return self.job.config, tuple(self.job.fields.items())


def parse_grid(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The swept names of `NAME=VALUE,..`; a value in brackets may hold commas."""
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        parts = tuple(v.strip() for v in re.split(r",(?![^(\[]*[)\]])", values))
        is_right = bool(equals and name) and all(parts)
        require(is_right, "--grid", text, "must be NAME=VALUE,VALUE,..")
        require(name not in grid, "--grid", text, f"{name} is swept twice")
        twice = [v for v in parts if parts.count(v) > 1]
        require(not twice, "--grid", text, f"has {''.join(twice[:1])} twice")
        parent, _, axis = name.rpartition(".")
        allowed = f"must name the axis alone: {axis}"
        if axis == "parent_step":  # which is of one run only
            own = parent.removesuffix("axes") + axis
            allowed = f"must be {own}, a job for each step"
        require(parent.rpartition(".")[2] != "axes", "--grid", text, allowed)
        grid[name] = parts
    for name, swept in grid.items():
        parent, _, number = name.rpartition(".")
        idle = number in grid and parent.endswith("hypers")
        allowed = f"has no effect beside the axis {number}"
        require(not idle, f"--grid={name}", ",".join(swept), allowed)
    return grid


def parse_split(texts: Sequence[str], grid: Mapping[str, Any]) -> dict[str, int]:
    """Values to a job by axis, from `AXIS:NUMBER`; only a swept axis is split."""
    split: dict[str, int] = {}
    for text in texts:
        name, _, number = text.partition(":")
        is_right = number.isdecimal() and int(number) > 0
        require(is_right, "--split", text, "must be AXIS:NUMBER, at least 1 to a job")
        require(name not in split, "--split", text, f"{name} is split twice")
        axes = [axis for axis in grid if axis in AXES]
        if name not in axes:
            raise unknown_value("--split", name, axes or ["an axis that --grid sweeps"])
        split[name] = int(number)
    return split


def plan(
    asked: Asked,
    modules: Mapping[str, ModuleType],
    before: Sweep | None,
    commit: str | None,
) -> tuple[Sweep, list[Built]]:
    """The sweep and its experiments, built; ConfigError names the job and the field.

    modules of the experiments' files, by path
    before  what the directory holds; it may only grow
    """
    old = check_growth(asked, before) if before else ()
    fields = {k: v for k, v in asked.grid.items() if k not in AXES}
    axes = {k: numbers(k, v) for k, v in asked.grid.items() if k in AXES}
    for name, swept in axes.items():  # of all jobs, each of which may have one value
        check_values(name, swept)
    sweep = Sweep(asked.configs, FrozenDict(asked.grid), asked.chains, commit, ())
    jobs: list[SweepJob] = []
    experiments: list[Built] = []
    for config in asked.configs:
        module = modules[config.partition(":")[0]]
        for values in itertools.product(*fields.values()):
            chosen = dict(zip(fields, values, strict=True))
            there = {
                job.directory: dict(job.axes)
                for job in old
                if (job.config, dict(job.fields)) == (config, chosen)
            }
            missing = lacking(axes, asked.split, list(there.values()))
            new = {name_of(sweep, config, chosen, axes, box): box for box in missing}
            for directory, box in (there | new).items():
                own, experiment = jobs_of(asked, module, config, directory, chosen, box)
                jobs += own
                experiments.append(experiment)
    check_distinct(experiments)
    places = {(job.directory, job.chain): n for n, job in enumerate(old)}
    jobs.sort(key=lambda j: places.get((j.directory, j.chain), len(places)))
    runs = [run for each in experiments for run in each.runs.values()]
    whole = tuple(sorted({axis for run in runs for axis in run.axes}))
    return replace(sweep, jobs=tuple(jobs), axes=whole), experiments


def check_growth(asked: Asked, before: Sweep) -> tuple[SweepJob, ...]:
    """The jobs there are; ConfigError unless all of them are asked for again."""
    wanted = asked.configs, [*asked.grid], asked.chains
    same = set(asked.configs) >= set(before.configs)
    allowed = f"the directory holds a sweep of {', '.join(before.configs)}"
    require(same, "--config", ",".join(wanted[0]), allowed)
    names = list(before.grid)
    allowed = f"the directory holds a sweep over {', '.join(names) or 'nothing'}"
    require(set(wanted[1]) == set(names), "--grid", ",".join(wanted[1]), allowed)
    allowed = f"the directory holds a sweep with --chains={before.chains}"
    require(asked.chains == before.chains, "--chains", asked.chains, allowed)
    for name, values in before.grid.items():
        gone = [v for v in values if v not in asked.grid[name]]
        allowed = f"the directory holds jobs with {','.join(gone)}: a sweep only grows"
        require(not gone, f"--grid={name}", ",".join(asked.grid[name]), allowed)
    return before.jobs


def numbers(name: str, values: Sequence[str]) -> tuple[Any, ...]:
    """The values of an axis."""
    try:
        return tuple(parse_number(value) for value in values)
    except ValueError:
        allowed = "must be numbers"
        raise ConfigError(f"--grid={name}", ",".join(values), allowed) from None


def lacking(whole: Box, split: Mapping[str, int], there: Sequence[Box]) -> list[Box]:
    """The members of a box that are in none of those there, as boxes that fit."""
    missing = [whole]
    for other in there:
        missing = [piece for box in missing for piece in without(box, other)]
    return [piece for box in missing for piece in cut(box, split)]


def without(box: Box, other: Box) -> list[Box]:
    """The members of a box that are not in the other, as boxes."""
    pieces, rest = [], dict(box)
    for name, values in box.items():
        outside = tuple(v for v in values if v not in other[name])
        if outside:
            pieces.append(rest | {name: outside})
        rest[name] = tuple(v for v in values if v in other[name])
        if not rest[name]:
            return pieces
    return pieces


def cut(box: Box, split: Mapping[str, int]) -> list[Box]:
    """A box in pieces with at most so many values of an axis."""
    pieces = {
        name: [values[i : i + n] for i in range(0, len(values), n)]
        for name, values in box.items()
        for n in [split.get(name, len(values))]
    }
    return [
        dict(zip(pieces, parts, strict=True))
        for parts in itertools.product(*pieces.values())
    ]


def name_of(
    sweep: Sweep, config: str, chosen: Mapping[str, str], whole: Box, box: Box
) -> str:
    """The directory of an experiment: what tells it from the others of the sweep."""
    file, _, scale = config.partition(":")
    parts = [
        f"{short}={chosen[k]}" for k, short in sweep.short_names.items() if k in chosen
    ]
    if len(sweep.configs) > 1 or not parts:
        parts = [Path(file).stem, *([scale] if scale else []), *parts]
    for name, values in box.items():
        if values != whole[name]:
            ends = dict.fromkeys((number_text(values[0]), number_text(values[-1])))
            parts.append(f"{name}={'..'.join(ends)}")
    return NOT_IN_NAMES.sub("_", ",".join(parts))


def jobs_of(
    asked: Asked,
    module: ModuleType,
    config: str,
    directory: str,
    chosen: Mapping[str, str],
    box: Box,
) -> tuple[list[SweepJob], Built]:
    """The jobs of an experiment: one, or one for each of its chains."""
    edits = swept_edits(chosen, box)
    swept = {edit.path for edit in edits}
    for given in asked.overrides:
        short = given.path.removeprefix("axes.")
        is_swept = given.path in swept
        allowed = f"has no effect beside --grid={short}, which sweeps it"
        require(not is_swept, given.path, given.value, allowed)
    with of_job(directory):
        experiment = built(module, config, [*asked.overrides, *edits])
        runs = resolve(experiment)
    jobs = []
    for chain, names in (chains(runs) if asked.chains else {"": [*runs]}).items():
        job = SweepJob(
            name=f"{directory},{chain}" if chain else directory,
            directory=directory,
            overrides=tuple(override.text for override in asked.overrides),
            config=config,
            fields=FrozenDict(chosen),
            axes=FrozenDict(box),
            chain=chain,
            steps=FrozenDict({name: runs[name].schedule.num_steps for name in names}),
            members=max(len(runs[name].labels) for name in names),
        )
        size = len(job.name.encode())
        allowed = f"is the name of a directory: must have at most {MAX_NAME} bytes"
        require(size <= MAX_NAME, "job", job.name, f"{allowed}, not {size}")
        jobs.append(job)
    return jobs, Built(jobs[0], module, experiment, runs)


def chains(runs: Mapping[str, ResolvedRun]) -> dict[str, list[str]]:
    """The runs by the first of their chain; no chain needs another."""
    first: dict[str, str] = {}
    for name, run in runs.items():  # parents come first
        first[name] = first[run.parent.sibling] if run.parent.sibling else name
    return {
        root: [name for name in runs if first[name] == root]
        for root in dict.fromkeys(first.values())
    }


def check_distinct(experiments: Sequence[Built]) -> None:
    """ConfigError where two jobs would do the same, or work in the same place."""
    seen: dict[str, str] = {}
    for each in experiments:
        name, file = each.job.directory, Path(str(each.module.__file__)).resolve()
        content = json.dumps([as_float32(what_runs(each.runs)), str(file)])
        allowed = "has the name of another job; write the swept values otherwise"
        require(name not in seen.values(), "job", name, allowed)
        require(name not in TAKEN, "job", name, "is the name of a directory of sweeps")
        allowed = f"is the same as job {seen.get(content)}"
        require(content not in seen, "job", name, allowed)
        seen[content] = name


def what_runs(runs: Mapping[str, ResolvedRun]) -> dict[str, Any]:
    """All that is set, but from where files and texts come whose digest is known."""
    found: dict[str, Any] = to_dict(dict(runs))
    for run in found.values():
        del run["eval_file"]["path"]
        for part in ("source", "tokenizer") if run["task"].get("content") else ():
            del run["task"][part]
    return found


def as_float32(value: Any) -> Any:
    """A plain value with its numbers as programs read them."""
    if isinstance(value, dict):
        return {name: as_float32(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_float32(each) for each in value]
    return float(np.float32(value)) + 0.0 if isinstance(value, float) else value  # -0.0


@contextmanager
def of_job(name: str) -> Iterator[None]:
    """Puts the job before the field of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        field = f"job {name}: {error.name}"
        raise ConfigError(field, error.value, error.allowed) from None
