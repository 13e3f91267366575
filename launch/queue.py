"""What the queue of Slurm has of a sweep; the jobs say in their comment whose they are.

A comment is "parity_jax INDICES SWEEP": task n of an array is the job with the n-th of
the indices; that of a report is "parity_jax report SWEEP". So the queue itself knows
what was submitted, whatever became of the process that did.
"""

import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from parity_jax.config import RunError, unknown_value

MARK = "parity_jax"
SQUEUE = ("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%k")
SBATCH = ("sbatch", "--help")
IN_TIME = 60  # seconds for an answer


class Place(NamedTuple):
    """A job in the queue."""

    number: str  # "12_0"
    state: str  # as Slurm says: PENDING, RUNNING, ..
    reason: str

    @property
    def is_running(self) -> bool:
        return self.state in ("RUNNING", "COMPLETING", "CONFIGURING", "STOPPED")


def submissions(sweep: Path) -> Path:
    """The directory of what is submitted: scripts, and the logs of jobs."""
    return sweep / "slurm"


def comment(sweep: Path, indices: Sequence[int]) -> str:
    """What tells the jobs of a submission from all others."""
    return f"{MARK} {ranges(indices)} {sweep.resolve()}"


def ranges(indices: Sequence[int]) -> str:
    """Ascending numbers in short: "0-3,5"."""
    parts: list[list[int]] = []
    for n in indices:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    ends = (dict.fromkeys((part[0], part[-1])) for part in parts)
    return ",".join("-".join(map(str, pair)) for pair in ends)


def numbers(text: str) -> list[int]:
    """What `ranges` says."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def places(sweep: Path) -> dict[int, Place]:
    """The sweep's jobs that wait or run, by index; RunError if nobody answers."""
    found: dict[int, Place] = {}
    for place, told in queued(sweep):
        said = re.fullmatch(rf"{MARK} ([\d,-]+) (.+)", told)
        if said and said[2] == str(sweep.resolve()):
            task = int(place.number.partition("_")[2] or 0)
            found[numbers(said[1])[task]] = place
    return found


def comment_of_report(sweep: Path) -> str:
    """What tells the report of a sweep from all others."""
    return f"{MARK} report {sweep.resolve()}"


def has_report(sweep: Path) -> bool:
    """Whether a report of the sweep waits or runs; RunError if nobody answers."""
    return comment_of_report(sweep) in [told for _, told in queued(sweep)]


def queued(sweep: Path) -> list[tuple[Place, str]]:
    """The user's own jobs and their comments.

    Of a sweep that never was submitted there are none, and nobody is asked.
    """
    if not submissions(sweep).exists():
        return []
    try:
        asked = subprocess.run(
            SQUEUE, check=True, capture_output=True, text=True, timeout=IN_TIME
        )
    except OSError as error:
        raise RunError(
            f"squeue: {error.strerror}: is this a host of the cluster?"
        ) from None
    except subprocess.CalledProcessError as error:
        text = error.stderr.strip().splitlines()[-1:]
        raise RunError(f"squeue: {''.join(text)}") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"squeue: no answer in {IN_TIME} s") from None
    lines = [line.split("|", 3) for line in asked.stdout.splitlines()]
    return [(Place(*place), told.strip()) for *place, told in lines]


def check_options(options: Iterable[str]) -> None:
    """ConfigError for an option that sbatch does not know, on a host that has it."""
    try:
        asked = subprocess.run(
            SBATCH, check=True, capture_output=True, text=True, timeout=IN_TIME
        )
    except (OSError, subprocess.SubprocessError):
        return
    known = re.findall(r"--([a-z][\w-]*)", asked.stdout)
    for name in options if known else ():
        if name not in known:
            raise unknown_value("--slurm", name, known)
