"""What files and queue say of every job: its state, how far it is, what went wrong."""

import datetime
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

from launch.job import Life, Record
from launch.queue import Place
from parity_jax.analysis.claims import read_claims, told
from parity_jax.config import RunError
from parity_jax.runs.directory import ExperimentDirectory, RunDirectory
from parity_jax.runs.files import CodeNotFoundError, is_locked, is_plain
from parity_jax.runs.interrupt import EX_TEMPFAIL
from parity_jax.runs.sweep import SweepDirectory, SweepJob

STATES = ("finished", "running", "queued", "stopped", "failed", "lost", "planned")
SILENCE = 600  # seconds without a sign of life, of a process that cannot be asked
KILLED = "killed without a word: SIGKILL, out of memory, or its node is gone"
ORDINARY = ("None", "Resources", "Priority")  # reasons to wait that nobody asks for


class Row(NamedTuple):
    """A job at a glance."""

    job: str
    state: str
    members: int
    diverged: int
    step: int  # all its runs together, as are the steps
    steps: int
    accuracy: float | None  # greedy, of the median member, at the last evaluation
    seen: float | None  # the last sign of life, in seconds of the epoch
    host: str
    attempts: int
    note: str  # the error, why it waits, or which claims hold


def rows(home: SweepDirectory, queue: Mapping[int, Place]) -> list[Row]:
    """Every job in its order; `queue` has those that wait or run there, by index."""
    return [row(home, job, queue.get(n)) for n, job in enumerate(home.read().jobs)]


def row(home: SweepDirectory, job: SweepJob, place: Place | None) -> Row:
    """A job; a damaged file of it is its note, and no other job's."""
    record = Record(home, job)
    runs = {name: home.experiment(job).run(name) for name in job.steps}
    seen = [run.last_change() for run in runs.values()] + [record.last_change()]
    seen_at = max((x for x in seen if x is not None), default=None)
    life, step, accuracy, diverged = None, 0, None, 0
    warnings: list[str] = []
    try:
        life = record.read(warnings.append)
        step = sum(max(run.last_step(), 0) for run in runs.values())
        unverified = verify(home, job, runs.values())
        is_done = all(has_ended(run, job.steps[name]) for name, run in runs.items())
        accuracy = last_accuracy(runs.values())
        finished = [run.read_finished() for run in runs.values()]
        diverged = max(end.num_diverged if end else 0 for end in finished)
        state, note = state_of(life, is_done, place, record.path, seen_at)
        if state == "finished":
            note = note or unverified or what_holds(home.experiment(job))
        note = "; ".join([*filter(None, [note]), *warnings])
    except RunError as error:
        state, note = "failed", str(error)
    steps = step if state == "finished" else sum(job.steps.values())
    return Row(
        job.name,
        state,
        job.members,
        diverged,
        step,
        steps,
        accuracy,
        seen_at,
        life.host if life else "",
        life.attempt if life else 0,
        note,
    )


def has_ended(run: RunDirectory, steps: int) -> bool:
    """Whether a run has ended at the step at which it ends now."""
    return run.read_finished() is not None and run.planned_steps() == steps


def verify(home: SweepDirectory, job: SweepJob, runs: Iterable[RunDirectory]) -> str:
    """RunError unless its experiment is a job's, and the files of finished runs agree;
    why they were not compared.
    """
    try:
        home.checked(job)
        for run in runs:
            run.verified_finish()
    except CodeNotFoundError as error:
        return f"not verified: {error}"
    return ""


def what_holds(home: ExperimentDirectory) -> str:
    """Of the claims of a job that has ended, if it has any."""
    return told(read_claims(home.claims)) if is_plain(home.claims) else ""


def last_accuracy(runs: Iterable[RunDirectory]) -> float | None:
    """Greedy accuracy of the last run that was evaluated; None if all diverged."""
    found = None
    for run in runs:
        record = run.metrics.last("eval")
        if record and "greedy/accuracy" in record.values:
            values = record.values["greedy/accuracy"]
            known = [v for v in values if v is not None]
            found = median(known) if known else None
    return found


def state_of(
    life: Life | None,
    is_done: bool,
    place: Place | None,
    path: Path,
    seen: float | None,
) -> tuple[str, str]:
    """The state and what there is to say of it."""
    if place is not None and place.is_running:
        return "running", ""
    if place is not None:
        return "queued", "" if place.reason in ORDINARY else place.reason
    if life is None:
        return ("finished" if is_done else "planned"), ""
    if life.code is None:
        return ("running", "") if goes_on(life, path, seen) else ("lost", KILLED)
    if life.code == 0:
        return ("finished" if is_done else "planned"), ""
    return ("stopped" if life.code == EX_TEMPFAIL else "failed"), life.error


def goes_on(life: Life, path: Path, seen: float | None) -> bool:
    """Whether a life that did not end is still there, as far as can be told from here.

    Its lock says so on this host; elsewhere a sign of life does. What was in a queue
    and is there no more is gone.
    """
    if life.host == socket.gethostname():
        return is_locked(path)
    if life.queued_as:
        return False
    silence = datetime.datetime.now().timestamp() - (seen or 0)
    return silence < SILENCE


def totals(found: Iterable[Row]) -> str:
    """How many jobs are in which state."""
    count = Counter(each.state for each in found)
    return ", ".join(f"{count[state]} {state}" for state in STATES if count[state])
