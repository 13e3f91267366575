"""The engine of one machine: one job after the other, each fills it by itself.

Every job is a process of its own, in a session of its own: Ctrl-C reaches the launcher
alone, which closes the job's standard input, and the job saves and ends. So it does
when the launcher is killed.
"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from launch.job import Life, Record, now
from launch.rows import Row, row, rows, totals
from parity_jax.config import RunError, StoppedError
from parity_jax.runs.files import lock
from parity_jax.runs.interrupt import stop_requests
from parity_jax.runs.sweep import SweepDirectory

POLL = 0.2  # seconds between looks at the process
SECOND = 1.0  # between looks at its files
LINE = 30.0  # seconds between lines where no terminal shows one that changes


@contextmanager
def held(home: SweepDirectory) -> Iterator[None]:
    """One launcher works on a sweep at a time, whatever its engine; RunError where
    another does.
    """
    home.records.mkdir(parents=True, exist_ok=True)
    with lock(home.records):
        yield


def run(home: SweepDirectory, indices: Sequence[int], quiet: bool) -> None:
    """Run the jobs of a sweep that is held.

    StoppedError if it was asked to stop, RunError if some failed.
    """
    with stop_requests() as stops, Progress(home, quiet) as progress:
        for index in indices:
            if stops():
                break
            progress.begin(index)
            one_life(home, index, stops, progress.look)
            progress.end(index)
        found = rows(home, {})
        if stops():
            raise StoppedError(f"stopped; {totals(found)}")
    bad = [found[n] for n in indices if found[n].state != "finished"]
    if bad:
        lines = f"{bad[0].job}: {bad[0].note}"
        more = f" (and {len(bad) - 1} more: launch.status tells)" * (len(bad) > 1)
        raise RunError(f"{totals(found)}; {lines}{more}")


def one_life(
    home: SweepDirectory,
    index: int,
    should_stop: Callable[[], bool],
    look: Callable[[int], None],
) -> None:
    """A process that works on a job, until its end; asked to stop, it saves first."""
    record = Record(home, home.read().jobs[index])
    record.path.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "launch.job", str(home.path), str(index)]
    with record.log.open("ab") as log:
        process = subprocess.Popen(
            [*command, "--local"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            if should_stop() and process.stdin and not process.stdin.closed:
                process.stdin.close()
            look(index)
            time.sleep(POLL)
    finally:
        if process.stdin:
            process.stdin.close()
    note_kill(record, process)


def note_kill(record: Record, process: subprocess.Popen[bytes]) -> None:
    """Write what a process could not: that it was killed, or never got to its job."""
    number, life = -process.returncode, record.read()
    if life is not None and life.process == process.pid:
        code, error = process.returncode, "stopped"
        if number > 0:
            memory = " (out of memory?)" * (number == signal.SIGKILL)
            error = f"killed by {signal.Signals(number).name}{memory}"
            code = 128 + number
        if life.code is None:
            record.write(replace(life, ended=now(), code=code, error=error))
    elif number:
        lines = record.log.read_text(errors="replace").strip().splitlines()
        attempt = life.attempt + 1 if life else 1
        place = (attempt, socket.gethostname(), process.pid, "", now(), 0, 0)
        code = process.returncode if number < 0 else 128 + number
        record.write(Life(*place, ended=now(), code=code, error="".join(lines[-1:])))


class Progress:
    """One line for the sweep: it changes on a terminal, elsewhere it is said at times.

    quiet   only warnings and the end
    """

    def __init__(self, home: SweepDirectory, quiet: bool):
        self.home, self.jobs = home, home.read().jobs
        self.console = Console(stderr=True, emoji=False)
        self.status = Status("", console=self.console)
        self.is_live = self.console.is_terminal and not quiet
        self.quiet, self.started, self.said = quiet, 0.0, 0.0

    def __enter__(self) -> "Progress":
        if self.is_live:
            self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.status.stop()

    def begin(self, index: int) -> None:
        """A job starts."""
        self.started = self.said = time.monotonic()
        self.looked = 0.0
        self.others = totals(rows(self.home, {}))
        self.line(f"{self.place(index)}: started")

    def look(self, index: int) -> None:
        """Say how far it is, if it is time to."""
        at = time.monotonic()
        if self.quiet or at - self.looked < SECOND:
            return
        self.looked, found = at, row(self.home, self.jobs[index], None)
        text = f"{self.place(index)}: {how_far(found)}  ({self.others})"
        if self.is_live:
            self.status.update(escape(text))
        elif at - self.said >= LINE:
            self.said = at
            self.line(text)

    def end(self, index: int) -> None:
        """A job ended."""
        found = row(self.home, self.jobs[index], None)
        seconds = time.monotonic() - self.started
        note = f": {found.note}" * bool(found.note)
        self.line(f"{self.place(index)}: {found.state} after {seconds:.0f} s{note}")

    def place(self, index: int) -> str:
        return f"[{index + 1}/{len(self.jobs)}] {self.jobs[index].name}"

    def line(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def how_far(found: Row) -> str:
    """Step and score of a job."""
    score = found.accuracy
    accuracy = "" if score is None else f"  greedy accuracy {score:.3f}"
    return f"step {found.step}/{found.steps}{accuracy}"
