"""What a report is made of: experiments with their claims, and sweeps."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from parity_jax.analysis.claims import Answer, read_answer, read_claims
from parity_jax.analysis.report.figures import Picture, figure_bytes, picture_of
from parity_jax.analysis.report.words import Claim, order
from parity_jax.analysis.sweeps import CONFIG, final_table, swept_names
from parity_jax.config import require
from parity_jax.runs import ExperimentDirectory, RunError
from parity_jax.runs.files import read_as, read_text
from parity_jax.runs.sweep import SweepDirectory, is_sweep


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of an experiment come from."""

    commits: tuple[str, ...]
    devices: tuple[str, ...]
    minutes: float | None  # of all runs together; None: not recorded
    command: str | None = None  # None: not recorded


class Entry(NamedTuple):
    """One experiment: what it claims and where the numbers come from."""

    name: str
    claims: list[Claim]
    provenance: Provenance
    picture: Picture
    notes: str
    answer: Answer | None = None

    @property
    def held(self) -> str:
        """How many of the claims hold."""
        return f"{sum(c['holds'] for c in self.claims)} of {len(self.claims)}"

    @property
    def subject(self) -> str:
        """What the claims are about: Q1 of Q1-depth, the first of all."""
        ids = sorted((claim["id"] for claim in self.claims), key=order)
        return ids[0].partition("-")[0] if ids else self.name


class SweepEntry(NamedTuple):
    """One sweep: its last scores over what is swept."""

    name: str
    fields: list[str]
    table: list[dict[str, Any]]  # as `final_table` gives it
    figure: bytes  # PNG; empty with less than two fields


def experiments(directories: Sequence[Path]) -> list[Path]:
    """The directories of experiments: a sweep stands for those of its jobs with claims.

    ConfigError for a sweep that has none yet.
    """
    found: list[Path] = []
    for directory in directories:
        if not is_sweep(directory):
            found.append(directory)
            continue
        homes = SweepDirectory(directory).experiments()
        paths = [home.path for home in homes.values() if home.claims.exists()]
        left_out = [name for name, home in homes.items() if not home.claims.exists()]
        if left_out and paths:
            told = f"{len(left_out)} of {len(homes)} experiments have no claims yet and"
            text = f"{told} are left out: {', '.join(left_out)}"
            print(f"warning: {directory}: {text}", file=sys.stderr)
        allowed = "must have a job that has finished, with its claims"
        require(bool(paths), "DIR", str(directory), allowed)
        found += paths
    return found


def gather_sweeps(
    directories: Sequence[Path], score: str, over: Sequence[str]
) -> list[SweepEntry]:
    """The sweeps among directories that sweep more than files of experiments.

    over    two swept fields; the first two there are, if it is empty
    """
    found: list[SweepEntry] = []
    for directory in directories:
        fields = swept_names(directory) if is_sweep(directory) else []
        if [name for name in fields if name != CONFIG]:
            pair = list(over) or fields[:2]
            figure = figure_bytes(directory, score, pair) if len(pair) == 2 else b""
            table, names = final_table(directory), [each.name for each in found]
            allowed = "has the name of another sweep"
            require(name_of(directory) not in names, "DIR", str(directory), allowed)
            found.append(SweepEntry(name_of(directory), fields, table, figure))
    return found


def gather(directories: Sequence[Path], output: Path) -> list[Entry]:
    """The entries of directories; ConfigError for one that cannot be reported there.

    RunError for one that is damaged. Nothing is written.
    """
    allowed = "must be a directory"
    require(output.is_dir() or not output.exists(), "output", str(output), allowed)
    names, places = dict[str, Path](), dict[Path, Path]()
    for directory in directories:
        name, place = name_of(directory), directory.resolve()
        allowed = f"has the name of {names.get(name)}: a report has one {name}"
        require(name not in names, "DIR", str(directory), allowed)
        allowed = f"is {places.get(place)}, whose claims would count twice"
        require(place not in places, "DIR", str(directory), allowed)
        names[name] = places[place] = directory
    return [entry_of(directory, output) for directory in directories]


def name_of(directory: Path) -> str:
    """What a directory is called in the report."""
    return os.path.basename(os.path.abspath(directory))


def entry_of(directory: Path, output: Path) -> Entry:
    """The entry of a directory; ConfigError without its claims.json."""
    name = name_of(directory)
    home = ExperimentDirectory(Path(os.path.abspath(directory)))
    recorded, notes = directory / "provenance.json", output / name / "notes.md"
    allowed = "must hold claims.json, which a finished experiment writes"
    require(home.claims.exists(), "DIR", str(directory), allowed)
    is_own = home.has_config() and os.path.abspath(output / name) == str(home.path)
    require(not is_own, "output", str(output), f"would change the figure of {name}")
    if home.has_config():
        check_runs(home)
    return Entry(
        name,
        read_claims(home.claims),
        read_as(Provenance, recorded) if recorded.exists() else provenance(home),
        picture_of(home),
        read_text(notes).strip() if notes.exists() else "",
        read_answer(home.answer) if home.answer.exists() else None,
    )


def check_runs(home: ExperimentDirectory) -> None:
    """RunError unless the runs are there as they ended, of which the claims tell."""
    for run in home.planned():
        if not run.has_config():
            raise RunError(f"{run.path}: missing, which {home.claims} tells of")
        finished = run.read_finished()
        if finished is None:
            told = f"tells of {run.path}, which has not finished"
            raise RunError(f"{home.claims}: {told}")
        if altered := run.altered(finished):
            raise RunError(f"{home.claims}: damaged: {altered}")


def provenance(home: ExperimentDirectory) -> Provenance:
    """Commits and devices of all runs, the minutes they took, and their command."""
    runs = [run for run in home.runs() if run.has_lineage()]
    lineages = [run.read_lineage() for run in runs]
    processes = [x.process for x in lineages]
    processes += [later.process for x in lineages for later in x.continued]
    seconds = [run.seconds for run in runs if run.seconds is not None]
    return Provenance(
        tuple(sorted({p.commit for p in processes if p.commit})),
        tuple(sorted({p.device for p in processes})),
        round(sum(seconds) / 60, 1) if seconds else None,
        read_text(home.command).strip() if home.command.exists() else None,
    )
