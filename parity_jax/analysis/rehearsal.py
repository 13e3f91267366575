"""An analysis is rehearsed before anything is trained.

Claims and figure are made once of made-up scores (and training metrics) that have the
names, axes and steps which the runs will have, and once of ones that are all missing.
What would fail after hours of training, a score that is not measured at this
temperature, an axis that was cut away or a curve that never reaches its target, fails
now.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from flax.core import FrozenDict

from parity_jax.config import UserCodeError, kind_of
from parity_jax.experiment import Experiment
from parity_jax.hosts import by_itself
from parity_jax.runs.directory import ExperimentDirectory, RunDirectory
from parity_jax.runs.execute import Recorded
from parity_jax.runs.lineage import Lineage, ParentEntry, Process
from parity_jax.runs.metrics_file import SPLITS, Record
from parity_jax.runs.resolve import ResolvedRun, resolve

NOBODY = Process(
    started="2000-01-01T00:00:00+00:00",
    device="none",
    packages=FrozenDict(),
    commit=None,
    settings=FrozenDict(),
    own_code=FrozenDict(),
)


def rehearse(
    experiment: Experiment,
    workdir: Path,
    recorded: Mapping[str, Recorded],
    analyse: Callable[[Path], None],
) -> None:
    """analyse(directory) of made-up scores of these runs; UserCodeError if it fails.

    Runs that are done already are taken as they are. Where others will still be missing
    (--only), the analysis has to wait, and so has its rehearsal.
    """
    runs = resolve(experiment)
    rest = [RunDirectory(workdir / name) for name in runs if name not in recorded]
    if any(run.read_finished() is None for run in rest):
        return
    for is_missing in (False, True):
        with by_itself(), tempfile.TemporaryDirectory() as place:
            home = ExperimentDirectory(Path(place))
            home.write_config(experiment)
            for name, run in runs.items():
                if name in recorded:
                    make_up(home.run(name), run, recorded[name], runs, is_missing)
                else:
                    (Path(place) / name).symlink_to((workdir / name).resolve())
            try:
                analyse(Path(place))
            except UserCodeError as error:
                kind = "missing" if is_missing else "made-up"
                where = f"{error.where}, rehearsed on {kind} scores of these runs"
                raise UserCodeError(where, error.error) from error.error


def make_up(
    directory: RunDirectory,
    run: ResolvedRun,
    names: Recorded,
    runs: dict[str, ResolvedRun],
    is_missing: bool = False,
) -> None:
    """The files that an analysis reads, with random scores in [0, 1) or none."""
    directory.write_config(run)
    parent = None
    if run.parent.path:
        source = runs.get(run.parent.sibling, run)
        steps = sorted({*run.parent_steps})
        per_step = source.stage.sequences_per_step
        parent = ParentEntry(
            "", tuple(steps), ("",) * len(steps), tuple(n * per_step for n in steps)
        )
    directory.write_lineage(Lineage(kind_of(type(run.stage)), NOBODY, parent))
    chance, num, lines = np.random.default_rng(0), len(run.labels), []
    for step in run.schedule.recorded_steps():
        is_in = {"train": step > 0, "eval": run.schedule.is_evaluated(step)}
        for split in (split for split in SPLITS if is_in[split]):
            scores = getattr(names, split)
            missing = [[None] * num] * len(scores)
            made = chance.random((len(scores), num)).tolist()
            values = dict(zip(scores, missing if is_missing else made, strict=True))
            record = Record(split, step, 0.0, values)
            lines.append(json.dumps(record._asdict()) + "\n")
    directory.metrics.path.write_text("".join(lines))
