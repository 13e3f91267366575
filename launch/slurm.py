"""The engine of a Slurm cluster; the only module that knows submitit.

The jobs of a submission are one array. TERM comes `grace` seconds before the time limit
and whenever a job has to make room: it saves and exits with 75, and its batch script
has Slurm start it again, at most `max_requeues` times.
"""

import io
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launch.engines import Settings
from launch.job import process
from launch.queue import (
    MARK,
    comment,
    comment_of_report,
    has_report,
    places,
    submissions,
)
from launch.table import counted
from parity_jax.cli import main as parity_jax
from parity_jax.config import ConfigError, require
from parity_jax.runs.directory import local_path
from parity_jax.runs.interrupt import EX_TEMPFAIL
from parity_jax.runs.sweep import SweepDirectory


def submit(home: SweepDirectory, indices: Sequence[int], settings: Settings) -> str:
    """Submit jobs, and the report that waits for all of the sweep; a line of numbers.

    ConfigError for what sbatch refuses; nothing is in the queue then.
    """
    there = {place.number.partition("_")[0] for place in places(home.path).values()}
    jobs, told = list[submitit.Job[None]](), ""
    if indices:
        executor = executor_of(home, settings, comment(home.path, indices))
        with refusals(settings), executor.batch():
            jobs = [executor.submit(one_life, str(home.path), n) for n in indices]
        number = jobs[0].job_id.partition("_")[0]
        there.add(number)
        told = f"submitted {counted(len(jobs), 'job')} as {number}\n"
    is_due = jobs or not (has_report(home.path) or is_made(settings))
    if settings.report and is_due:
        executor = executor_of(home, settings, comment_of_report(home.path))
        if there:
            ids = ":".join(sorted(there))
            executor.update_parameters(dependency=f"afterany:{ids}")
        try:
            with refusals(settings):
                job = executor.submit(one_report, str(home.path), settings.report)
        except ConfigError:
            for each in jobs:
                each.cancel(check=False)
            raise
        told += f"submitted the report as {job.job_id}\n"
    return told


def is_made(settings: Settings) -> bool:
    """Whether there is a report already, of jobs that all have ended before."""
    return (local_path("--report", settings.report) / "report.md").exists()


def executor_of(
    home: SweepDirectory, settings: Settings, told: str
) -> submitit.SlurmExecutor:
    """What submits with these settings; `told` is the comment of its jobs."""
    try:
        executor = submitit.SlurmExecutor(submissions(home.path.resolve()) / "%j")
    except RuntimeError:
        allowed = "needs Slurm: there is no srun here"
        raise ConfigError("--engine", "slurm", allowed) from None
    limit, allowed = settings.slurm.get("time", ""), "must be given: the time limit"
    require(bool(limit), "--slurm=time", limit, allowed)
    enough = not limit.isdecimal() or settings.grace < 60 * int(limit)
    allowed = f"must be less than the time limit, {limit} minutes"
    require(enough, "--grace", settings.grace, allowed)
    executor.update_parameters(
        job_name=MARK,
        comment=told,
        array_parallelism=settings.parallel,
        setup=list(settings.setup),
        teardown=requeue_if_saved(settings.max_requeues),
        stderr_to_stdout=True,
        additional_parameters={
            "requeue": True,
            "signal": f"TERM@{settings.grace}",
            **{name: value or True for name, value in settings.slurm.items()},
        },
    )
    return executor


def requeue_if_saved(most: int) -> list[str]:
    """The end of a batch script: start again what has saved and asks for it.

    So is what TERM killed before it could take note of it, while it was importing.
    """
    number = "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
    return [
        "rc=$?",
        f"number={number}",
        f'case "$rc" in {EX_TEMPFAIL} | {128 + signal.SIGTERM})',
        f'  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ]',
        '  then scontrol requeue "${number:-$SLURM_JOB_ID}"',
        "  fi ;;",
        "esac",
        'exit "$rc"',
    ]


@contextmanager
def refusals(settings: Settings) -> Iterator[None]:
    """What sbatch says, in one line beside the options that it was given."""
    try:
        with redirect_stderr(io.StringIO()):  # submitit repeats it there
            yield
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        told = dict.fromkeys(line for line in lines if line.startswith("sbatch: "))
        options = ",".join(f"{k}={v}" if v else k for k, v in settings.slurm.items())
        raise ConfigError("--slurm", options, "; ".join(told) or lines[0]) from None
    except OSError as error:
        allowed = f"cannot run sbatch: {error.strerror}"
        raise ConfigError("--engine", "slurm", allowed) from None


def one_life(path: str, index: int) -> None:
    """A life of a job; ends the process unless all went well."""
    code = process([path, str(index)])
    if code:
        sys.exit(code)


def one_report(path: str, output: str) -> None:
    """The report; ends the process unless all went well."""
    code = parity_jax.run(["report", path, f"--output={output}"])
    if code:
        sys.exit(code)
