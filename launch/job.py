"""One life of a job, the same on every engine.

python -m launch.job SWEEP INDEX [--local] [--debug]

INDEX counts the jobs of SWEEP/sweep.json from 0. The job is `parity-jax run` in this
process, which continues what an earlier life left; SWEEP/jobs/NAME/life.json tells how
it went. Exit code 0: done, 1: failed, 2: refused, 75: stopped and saved, start it
again. A job that a queue started again twice without a step on disk fails. --local is
the local engine's: the job stops when its standard input ends.
"""

import datetime
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from parity_jax.cli import run
from parity_jax.cli.arguments import Parser
from parity_jax.cli.door import fail, through_the_door
from parity_jax.config import RunError, StoppedError, require, to_dict
from parity_jax.hosts import place_in_slurm
from parity_jax.runs.directory import local_path
from parity_jax.runs.files import lock, read_as, write_json
from parity_jax.runs.interrupt import EX_TEMPFAIL, stop_requests
from parity_jax.runs.lineage import git_commit
from parity_jax.runs.sweep import Sweep, SweepDirectory, SweepJob

MAX_IDLE = 2  # lives in a row without a step on disk
NO_STEP = (
    "lives in a row without a step on disk: the time limit is too short to compile and "
    "to train, or the process was killed (out of memory?)"
)


@dataclass(frozen=True)
class Life:
    """A process that worked on a job: where, how it began, how it ended."""

    attempt: int  # which life of the job it is, from 1
    host: str
    process: int
    queued_as: str  # its number in the queue; empty: it was in none
    began: str
    step: int  # what was on disk then
    idle: int  # lives just before it that a queue started and that made no step
    ended: str = ""
    code: int | None = None  # None: it goes on, or was killed
    error: str = ""


def told_on_stderr(text: str) -> None:
    """A warning, where the log of the job is written."""
    print(f"warning: {text}", file=sys.stderr)


class Record:
    """What the lives of a job leave: the newest life, and the log of all."""

    def __init__(self, home: SweepDirectory, job: SweepJob):
        self.path = home.records / job.name
        self.log = self.path / "log.txt"
        self._life = self.path / "life.json"

    def read(self, warn: Callable[[str], None] = told_on_stderr) -> Life | None:
        """The newest life; None if there was none, or, with a warning, it is damaged.

        It tells about a job, which is what its runs have on disk.
        """
        if not self._life.exists():
            return None
        try:
            life: Life = read_as(Life, self._life)
        except RunError as error:
            warn(f"{error}; what it told of this job's lives is lost")
            return None
        return life

    def write(self, life: Life) -> None:
        write_json(self._life, to_dict(life))

    def last_change(self) -> float | None:
        """When a life or its log was last written, in seconds of the epoch."""
        files = (self._life, self.log)
        return max((f.stat().st_mtime for f in files if f.exists()), default=None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held for this process; another life that is about to end is waited for."""
        self.path.mkdir(parents=True, exist_ok=True)
        with lock(self.path, wait=True):
            yield


def now() -> str:
    """The time, as it is recorded."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def steps_on_disk(home: SweepDirectory, job: SweepJob) -> int:
    """Steps that the runs of a job have on disk, step 0 of each counted as one."""
    runs = (home.experiment(job).run(name) for name in job.steps)
    return sum(run.last_step() + 1 for run in runs)


def live(path: Path, index: int, is_local: bool = False) -> int:
    """One life of a job; its exit code."""
    home = SweepDirectory(path)
    is_sweep, allowed = home.has_sweep(), "must be the directory of a sweep"
    require(is_sweep, "SWEEP", str(path), allowed)
    sweep = home.read()
    allowed = f"must be in [0, {len(sweep.jobs) - 1}]"
    require(0 <= index < len(sweep.jobs), "INDEX", index, allowed)
    job = sweep.jobs[index]
    if (place_in_slurm(os.environ) or (0, 1))[0] > 0:  # the first task tells of it
        return run_job(home, job)
    record = Record(home, job)
    with stop_requests() as stops, stops.at_once():
        if is_local:
            stop_with_standard_input()
        with record.locked():
            life = new_life(record.read(), steps_on_disk(home, job), is_local)
            record.write(life)
            with redirect_stderr(Listening(sys.stderr)) as told:
                code = code_of(home, sweep, job, life)
            error = told.error if code else ""
            record.write(replace(life, ended=now(), code=code, error=error))
    return code


def new_life(before: Life | None, step: int, is_local: bool) -> Life:
    """The life that begins; those before it count if a queue started it again."""
    queued_as, restarts = ("", 0) if is_local else place_in_queue()
    idle = 0
    if before and before.step == step and restarts != 0:
        idle = before.idle + 1 if before.code in (None, EX_TEMPFAIL) else 0
    attempt = before.attempt + 1 if before else 1
    host, process = socket.gethostname(), os.getpid()
    return Life(attempt, host, process, queued_as, now(), step, idle)


def place_in_queue() -> tuple[str, int | None]:
    """This job's number in Slurm and how often that started it again, if it is there.

    Elsewhere nobody tells whether a person or a queue starts it.
    """
    env = os.environ
    array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    number = f"{array}_{task}" if array else env.get("SLURM_JOB_ID", "")
    return number, int(env.get("SLURM_RESTART_COUNT", "0")) if number else None


def code_of(home: SweepDirectory, sweep: Sweep, job: SweepJob, life: Life) -> int:
    """Run the job, unless its lives lead nowhere; its exit code."""
    if life.idle >= MAX_IDLE:
        return fail(f"{life.idle} {NO_STEP}", 1)
    here = git_commit()
    if here != sweep.commit:
        told_on_stderr(
            f"the sweep was planned at commit {sweep.commit}, this is {here}"
        )
    code = run_job(home, job)
    is_idle = steps_on_disk(home, job) == life.step
    if code == EX_TEMPFAIL and is_idle and life.idle + 1 >= MAX_IDLE:
        return fail(f"{life.idle + 1} {NO_STEP}", 1)
    return code


def run_job(home: SweepDirectory, job: SweepJob) -> int:
    """What a user would type; its exit code."""
    workdir = f"--workdir={home.experiment(job).path}"
    try:
        return through_the_door(lambda: run.main([*job.arguments, workdir]))
    except StoppedError as error:  # before it could take note of the signal itself
        return fail(error, EX_TEMPFAIL)


def stop_with_standard_input() -> None:
    """Ask this process to stop when whoever started it closes the pipe, or is gone."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


class Listening(io.TextIOBase):
    """A stream that is written to as before; it keeps the last error that it told."""

    def __init__(self, stream: TextIO):
        self._stream, self._line, self.error = stream, "", ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line.startswith("error: "):
                self.error = line.removeprefix("error: ")
        return self._stream.write(text)

    def fileno(self) -> int:
        return self._stream.fileno()

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


def main(argv: Sequence[str]) -> int:
    """One life of the job that the arguments name; its exit code."""
    parser = Parser("launch.job", __doc__)
    parser.prog = "python -m launch.job"
    parser.add_argument("sweep", metavar="SWEEP", help="directory of the sweep")
    parser.add_argument("index", metavar="INDEX", type=int, help="of the job, from 0")
    parser.add_argument("--local", action="store_true", help="of the local engine")
    args = parser.parse_args(argv)
    return live(local_path("SWEEP", args.sweep), args.index, args.local)


def process(argv: Sequence[str]) -> int:
    """The same, with everything that goes wrong told in a line; the exit code."""
    codes: list[int] = []
    failed = through_the_door(lambda: codes.append(main(argv)), "--debug" in argv)
    return failed or codes[0]


if __name__ == "__main__":
    sys.exit(process(sys.argv[1:]))
