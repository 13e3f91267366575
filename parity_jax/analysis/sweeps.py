"""Sweeps: the runs of many experiments as one labelled dataset, a table, a figure."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from parity_jax.runs.progress import SHOWN
from parity_jax.runs.sweep import Sweep, SweepDirectory, SweepJob, is_sweep

CONFIG = "config"  # the dimension of several experiments' files


def load_sweep(directory: str | Path, run: str, split: str = "eval") -> xr.Dataset:
    """Metrics of one run in all jobs, with dimensions (*swept fields, *axes, step).

    Fields have their short names (`num_bits`); what no job has measured yet is NaN. The
    coordinate `sequences` may depend on swept fields. ConfigError for a directory, run
    or split that is not one, RunError if nothing is there.
    """
    merged = _merged(directory, run, split)
    if merged is None:
        raise RunError(f"{directory}: no job has a record of {run} yet")
    return merged


def final_scores(directory: str | Path, run: str) -> xr.Dataset | None:
    """The last evaluation of one run in all jobs, with dimensions (*fields, *axes).

    None if no job has any.
    """
    return _merged(directory, run, "eval", last)


def _merged(
    directory: str | Path,
    run: str,
    split: str,
    chosen: Callable[[xr.Dataset], xr.Dataset] = lambda data: data,
) -> xr.Dataset | None:
    """What is chosen of the metrics of a run in every job that has any, in one."""
    home, sweep = _opened(directory)
    names = dict.fromkeys(name for job in sweep.jobs for name in job.steps)
    if run not in names:
        raise unknown_value("run", run, names)
    parts = []
    for job in sweep.jobs:
        files = home.checked(job).run(run)
        if run in job.steps and files.metrics.last(split) is not None:
            data = chosen(load_metrics(files.path, split).reset_coords("sequences"))
            parts.append(data.expand_dims(_fields(sweep, job)))
    if not parts:
        return None
    merged = xr.merge(parts, join="outer", compat="no_conflicts")
    return merged.set_coords("sequences")


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


def swept_names(directory: str | Path) -> list[str]:
    """What is swept, by its short names: the dimensions beside `seed` and `step`."""
    sweep = _opened(directory)[1]
    names = [name for name in sweep.short_names.values() if name != "seed"]
    return [CONFIG] * (len(sweep.configs) > 1) + names


def final_table(directory: str | Path) -> list[dict[str, Any]]:
    """The last scores of every run at every combination of swept values, seeds apart.

    {"run": .., "num_bits": 16, .., "scores": {"greedy/accuracy": {"seed=0": 0.99}}}
    """
    found = []
    for run, scores in _all_final_scores(directory).items():
        names = [name for name in swept_names(directory) if name in scores.dims]
        shown = [name for name, *_ in SHOWN if name in scores]
        for values in itertools.product(*(scores[name].values for name in names)):
            at = dict(zip(names, values, strict=True))
            here = scores[shown].sel(at, drop=True)
            plain = {name: by_member(here[name]) for name in shown}
            if any(v is not None for each in plain.values() for v in each.values()):
                labels = {name: _plain(value) for name, value in at.items()}
                found.append({"run": run, **labels, "scores": plain})
    return found


def _all_final_scores(directory: str | Path) -> dict[str, xr.Dataset]:
    """`final_scores` of every run that has been evaluated."""
    sweep, found = _opened(directory)[1], {}
    for run in dict.fromkeys(name for job in sweep.jobs for name in job.steps):
        scores = final_scores(directory, run)
        if scores is not None:
            found[run] = scores
    return found


def _plain(value: Any) -> float | str:
    return str(value) if isinstance(value, str) else value.item()


def sweep_figure(directory: str | Path, score: str, x: str, by: str) -> Figure:
    """A last score over a swept field, a line for each value of another.

    Every run has a panel. Dots are members, lines their medians. ConfigError for a
    score that no run has, or a field that is not swept.
    """
    require(x != by, "--over", f"{x},{by}", "must be two fields")
    found = _all_final_scores(directory)
    names = {str(name) for scores in found.values() for name in scores.data_vars}
    if score not in names:
        raise unknown_value("--score", score, names)
    panels = {run: scores[score] for run, scores in found.items() if score in scores}
    for name in (x, by):
        fields = [str(d) for values in panels.values() for d in values.dims]
        if name not in fields:
            raise unknown_value("--over", name, {*fields})
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
