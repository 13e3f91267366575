"""Which engine runs the jobs, and how; profiles name a cluster's own settings."""

import importlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flax.core import FrozenDict

from launch import local
from launch.queue import places
from launch.rows import rows
from parity_jax.cli import report
from parity_jax.config import (
    ConfigError,
    expanded,
    from_dict,
    require,
    require_positive,
    to_dict,
    under,
    unknown_value,
)
from parity_jax.runs.files import read_as, write_json
from parity_jax.runs.sweep import Sweep, SweepDirectory

Engine = Literal["local", "slurm", "none"]
FILE = "launch.json"
# Options of sbatch that requeues and status rely on.
OWN = ("array", "comment", "dependency", "open-mode", "output", "requeue", "signal")


@dataclass(frozen=True)
class Settings:
    """How the jobs of a sweep are run; launch.json keeps what was used last."""

    engine: Engine = "local"  # none: only plan, for an engine that starts launch.job
    # Options of sbatch by their long names; those that take no value have an empty one.
    slurm: FrozenDict[str, str] = FrozenDict()
    setup: tuple[str, ...] = ()  # shell lines before a job: modules, variables
    grace: int = 120  # seconds before the time limit at which a job is asked to save
    max_requeues: int = 20
    parallel: int = 256  # jobs of a submission that run at the same time
    report: str = ""  # directory of a report, made when all jobs have ended

    def __post_init__(self) -> None:
        for name in self.slurm:
            allowed = f"is set by launch, as are {', '.join(OWN)}"
            require(name not in OWN, f"slurm.{name}", self.slurm[name], allowed)
        require_positive(self, "grace", "parallel")
        few = self.max_requeues >= 0
        require(few, "max_requeues", self.max_requeues, "must be 0 or positive")


def read_profile(name: str, path: str | Path) -> dict[str, Any]:
    """The settings of a named cluster; ConfigError without that name or file."""
    file = expanded("--profiles", path)
    try:
        profiles = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            "--profiles", str(path), f"cannot be read: {reason}"
        ) from None
    if name not in profiles:
        raise unknown_value("--profile", name, profiles)
    profile = profiles[name]
    require(isinstance(profile, dict), "--profile", name, "must be a table")
    options = profile.get("slurm", {})
    allowed = f"must be a table of sbatch's options, not {options!r}"
    require(isinstance(options, dict), f"--profile={name} slurm", options, allowed)
    return dict(profile)


def settings_of(profile: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
    """Those of a profile, with what was given beside it; ConfigError for an unknown."""
    both = dict(profile) | dict(given)
    options = {**profile.get("slurm", {}), **given.get("slurm", {})}
    both["slurm"] = {
        name.replace("_", "-"): "" if value is True else str(value)
        for name, value in options.items()
        if value is not False
    }
    with under("launch"):
        return from_dict(Settings, both)


def submit(home: SweepDirectory, indices: Sequence[int], settings: Settings) -> str:
    """Give jobs to an engine that has a queue of its own; what was done, in a line."""
    if settings.engine != "slurm":
        return ""
    try:
        slurm = importlib.import_module("launch.slurm")
    except ModuleNotFoundError:
        allowed = "needs submitit: pip install -e .[slurm]"
        raise ConfigError("--engine", "slurm", allowed) from None
    return slurm.submit(home, indices, settings)


def check_busy(home: SweepDirectory, before: Sweep, sweep: Sweep) -> None:
    """ConfigError if a job that runs, or waits in a queue, would become another one."""
    found = rows(home, places(home.path))
    for row, was, now in zip(found, before.jobs, sweep.jobs, strict=False):
        changed = [text for text in now.arguments if text not in was.arguments]
        changed += [text for text in was.arguments if text not in now.arguments]
        allowed = f"must stay as it is while job {row.job} is {row.state}"
        is_busy = row.state in ("queued", "running")
        require(not (is_busy and changed), "--config", " ".join(changed), allowed)


def run_here(
    home: SweepDirectory, indices: Sequence[int], settings: Settings, quiet: bool
) -> None:
    """Run the jobs of the local engine, and the report where all have finished."""
    local.run(home, indices, quiet)
    if settings.report:
        report.main([str(home.path), f"--output={settings.report}"])


def to_do(home: SweepDirectory, settings: Settings) -> list[int]:
    """The jobs that are neither finished nor in a queue, nor begun elsewhere."""
    queue = places(home.path)
    done = ("finished",) if settings.engine == "local" else ("finished", "running")
    return [
        n
        for n, found in enumerate(rows(home, queue))
        if found.state not in done and n not in queue
    ]


def read_settings(home: SweepDirectory) -> Settings:
    """What was used last; RunError if nothing was launched."""
    return read_as(Settings, home.path / FILE)


def write_settings(home: SweepDirectory, settings: Settings) -> None:
    """Keep what is used, for a relaunch."""
    write_json(home.path / FILE, to_dict(settings))
