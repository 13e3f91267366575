"""Sweeps: the runs of many experiments as one labelled dataset, a table, a figure."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parity_jax.analysis.plots import CYCLE, legend_below, style
from parity_jax.analysis.results import load_metrics
from parity_jax.analysis.scores import by_member, last
from parity_jax.config import RunError, is_finite, require, unknown_value
from parity_jax.config.labels import parse_number
from parity_jax.runs.directory import local_path
from parity_jax.runs.metrics_file import SPLITS
from parity_jax.runs.progress import SHOWN
from parity_jax.runs.resolve import ResolvedRun
from parity_jax.runs.sweep import Sweep, SweepDirectory, SweepJob, is_sweep

CONFIG = "config"  # the dimension of several experiments' files


def load_sweep(directory: str | Path, run: str, split: str = "eval") -> xr.Dataset:
    """Metrics of one run in all jobs, with dimensions (*swept fields, *axes, step).

    Fields have their short names (`num_bits`). A job without a record of it is left
    out, with a warning; what others have not measured yet is NaN. A number that is an
    axis in some jobs only has one value on it in the others. The coordinate `sequences`
    may depend on swept fields. ConfigError for a directory, run or split that is not
    one, RunError if nothing is there.
    """
    names = _run_names(_opened(directory)[1])
    if run not in names:
        raise unknown_value("run", run, names)
    if split not in SPLITS:
        raise unknown_value("split", split, SPLITS)
    parts = _parts(directory, run, split)
    if not parts:
        raise RunError(f"{directory}: no job has a record of {run} yet")
    home, sweep = _opened(directory)
    its = [job for job in sweep.jobs if run in job.steps]
    files = {job.name: home.experiment(job).run(run).metrics for job in its}
    missing = [name for name, file in files.items() if file.last(split) is None]
    if missing:
        told = f"{len(missing)} of {len(its)} jobs have no record of {run} yet"
        text = f"{told} and are left out: {', '.join(missing)}"
        print(f"warning: {directory}: {text}", file=sys.stderr)
    return _merged(parts)


def _run_names(sweep: Sweep) -> list[str]:
    """The runs of all jobs."""
    return [*dict.fromkeys(name for job in sweep.jobs for name in job.steps)]


class _Part(NamedTuple):
    """The metrics of a run in one job, which has all its swept fields as dimensions."""

    data: xr.Dataset
    run: ResolvedRun
    end: int  # its last step


def _parts(
    directory: str | Path, run: str, split: str, only_finished: bool = False
) -> list[_Part]:
    """Of every job that has any; only_finished: of those whose runs all have ended."""
    (place, sweep), found = _opened(directory), list[_Part]()
    for job in sweep.jobs:
        home = place.checked(job)
        if run not in job.steps or home.run(run).metrics.last(split) is None:
            continue
        ends = [home.run(name).read_finished() for name in job.steps]
        if all(ends) or not only_finished:
            data = load_metrics(home.run(run).path, split).reset_coords("sequences")
            part = data.expand_dims(_fields(sweep, job))
            files = home.run(run)
            found.append(_Part(part, files.read_config(), files.trained_steps()))
    return found


def _merged(parts: Sequence[_Part]) -> xr.Dataset:
    """All in one. xarray would repeat what lacks an axis at every value of it."""
    axes = dict.fromkeys(axis for part in parts for axis in part.run.axes)
    whole = []
    for data, run, _ in parts:
        own = {axis: [_number(run, axis)] for axis in axes if axis not in run.axes}
        scores = data.drop_vars("sequences").expand_dims(own)
        whole.append(scores.assign(sequences=data["sequences"]))
    merged = xr.merge(whole, join="outer", compat="no_conflicts")
    return merged.set_coords("sequences")


def _number(run: ResolvedRun, name: str) -> float:
    """That of all members, of which there is no axis."""
    is_step = name == "parent_step"
    return run.parent.step if is_step else float(getattr(run.hypers, name))


def _final_parts(directory: str | Path) -> dict[str, list[_Part]]:
    """The last evaluation of every run in the jobs that have finished, one by one.

    NaN of members that diverged.
    """
    sweep, found = _opened(directory)[1], {}
    for run in _run_names(sweep):
        parts = _parts(directory, run, "eval", only_finished=True)
        found[run] = [part._replace(data=_end(part)) for part in parts]
    return {run: parts for run, parts in found.items() if parts}


def _opened(directory: str | Path) -> tuple[SweepDirectory, Sweep]:
    path = local_path("directory", directory)
    found, allowed = is_sweep(path), "must be the directory of a sweep"
    require(found, "directory", str(path), allowed)
    home = SweepDirectory(path)
    sweep = home.read()
    sweep.find_code()
    return home, sweep


def _fields(sweep: Sweep, job: SweepJob) -> dict[str, list[Any]]:
    """The swept fields of a job as coordinates: numbers where all are numbers."""
    found = {
        sweep.short_names[name]: [_values(sweep.grid[name])[text]]
        for name, text in job.fields.items()
    }
    file, colon, scale = job.config.partition(":")
    config = {CONFIG: [Path(file).stem + colon + scale]}
    return (config if len(sweep.configs) > 1 else {}) | found


def _values(texts: Sequence[str]) -> dict[str, Any]:
    """The values of a field by how they were typed: all numbers, or all text."""
    try:
        numbers = [parse_number(text) for text in texts]
    except ValueError:
        numbers = []
    are_numbers = all(map(is_finite, numbers)) and len({*numbers}) == len(texts)
    return dict(zip(texts, numbers if are_numbers else texts, strict=True))


def _end(part: _Part) -> xr.Dataset:
    """The scores where the run ended, which is before its last step if none went on."""
    is_whole = int(part.data["step"][-1]) == part.end
    return last(part.data).where(is_whole)


def swept_names(directory: str | Path) -> list[str]:
    """What is swept, by its short names: the dimensions beside `seed` and `step`."""
    sweep = _opened(directory)[1]
    names = [name for name in sweep.short_names.values() if name != "seed"]
    return [CONFIG] * (len(sweep.configs) > 1) + names


def final_table(directory: str | Path) -> list[dict[str, Any]]:
    """The last scores of every run at every combination of swept values, seeds apart,
    of the jobs that have finished; None of members that diverged.

    {"run": .., "num_bits": 16, .., "scores": {"greedy/accuracy": {"seed=0": 0.99}}}
    """
    swept, found = swept_names(directory), dict[Any, dict[str, Any]]()
    for run, parts in _final_parts(directory).items():
        for data in (part.data for part in parts):
            names = [name for name in swept if name in data.dims]
            shown = [name for name, *_ in SHOWN if name in data]
            for values in itertools.product(*(data[name].values for name in names)):
                at = dict(zip(names, values, strict=True))
                labels = {name: _plain(value) for name, value in at.items()}
                empty: dict[str, Any] = {"run": run, **labels, "scores": {}}
                row = found.setdefault((run, *labels.items()), empty)
                here = data[shown].sel(at, drop=True)
                for name in shown:  # a job may have some of the seeds
                    row["scores"].setdefault(name, {}).update(by_member(here[name]))
    return [*found.values()]


def _plain(value: Any) -> float | str:
    return str(value) if isinstance(value, str) else value.item()


def sweep_figure(directory: str | Path, score: str, x: str, by: str) -> Figure:
    """A last score over a swept field, a line for each value of another.

    Every run that has both has a panel. Dots are members, lines their medians.
    ConfigError for a score that no run has, or a field that is not swept.
    """
    require(x != by, "--over", f"{x},{by}", "must be two fields")
    found = {run: _merged(parts) for run, parts in _final_parts(directory).items()}
    names = {str(name) for scores in found.values() for name in scores.data_vars}
    if score not in names:
        raise unknown_value("--score", score, names)
    panels = {run: scores[score] for run, scores in found.items() if score in scores}
    for name in (x, by):
        fields = [str(d) for values in panels.values() for d in values.dims]
        if name not in fields:
            raise unknown_value("--over", name, {*fields})
    panels = {run: each for run, each in panels.items() if {x, by} <= {*each.dims}}
    require(bool(panels), "--over", f"{x},{by}", "must be fields of one run")
    with style():
        size = (3.8 * len(panels), 3.2)
        figure, axes = plt.subplots(
            1, len(panels), figsize=size, sharey=True, squeeze=False
        )
        for ax, (run, values) in zip(axes[0], panels.items(), strict=True):
            draw_over(ax, values, x, by)
            ax.set_title(run, loc="left")
            ax.set(xlabel=x, ylabel=score)
        legend_below(axes[0][0], ncols=3)
        figure.tight_layout()
    return figure


def draw_over(ax: Axes, values: xr.DataArray, x: str, by: str) -> None:
    """One score over x, a colour for each value of `by`."""
    colors = itertools.cycle(CYCLE)
    for level in values[by].values:
        # without another field there is one member, which needs a dimension
        chosen, color = values.sel({by: level}).expand_dims("only"), next(colors)
        rest = [name for name in chosen.dims if name != x]
        members = chosen.stack(member=rest).transpose(x, "member")
        at = [_plain(value) for value in members[x].values]
        ax.plot(at, members, color=color, marker="o", ls="", ms=3.5, alpha=0.6)
        label, median = f"{by} = {_plain(level)}", members.median("member")
        ax.plot(at, median, color=color, lw=2.2, label=label)
        ax.set_xticks(at)
