"""Sweeps that cost next to nothing: random walks, launched by the commands."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from launch import status, sweep
from parity_jax.cli.door import through_the_door

ROOT = Path(__file__).parents[1]
EXPERIMENT = f'''
"""Two walks, one from the other's end."""

import sys

sys.path.insert(0, {str(ROOT / "tests")!r})

from small_runs import walk, walks

from parity_jax.analysis import Claim


def get_config():
    few = dict(eval_every=50, log_every=50, checkpoint_every=50)
    return walks(
        run=walk(num_steps=100, hypers=HYPERS, **few),
        child=walk("run", num_steps=2, hypers=HYPERS),
        other=walk(num_steps=2, hypers=HYPERS),
    )


def claims(results):
    return [Claim.at_least("C1", results["child"]["greedy/accuracy"], 0)]


from parity_jax.hypers import Hypers

HYPERS = Hypers(learning_rate=1e-3)
'''
# A run that takes its time, and looks for signals often.
LONG = [
    "--config.runs.run.num_steps=200000",
    "--config.runs.run.eval_every=4000",
    "--config.runs.run.log_every=4000",
    "--config.runs.run.checkpoint_every=0",
    "--config.runs.run.chunk_seconds=0.1",
    "--config.runs.run.hypers.learning_rate=1e-9",
]


def experiment_file(place: Path) -> Path:
    """The experiment, written where it is not yet."""
    file = place / "walks.py"
    if not file.exists():
        file.write_text(EXPERIMENT)
    return file


def arguments(workdir: Path, *more: object) -> list[str]:
    """Of a sweep of the experiment beside its directory."""
    file = experiment_file(workdir.parent)
    return [f"--config={file}", f"--workdir={workdir}", *map(str, more)]


def typed(command, *args: object) -> tuple[int, str, str]:
    """A command of launch in this process: exit code, what it printed and told."""
    out, told = io.StringIO(), io.StringIO()
    before, path = {*sys.modules}, [*sys.path]
    with redirect_stdout(out), redirect_stderr(told):
        code = through_the_door(lambda: command.main([str(a) for a in args]))
    sys.path[:] = path
    for name in {*sys.modules} - before:  # each command loads its own experiment
        file = str(getattr(sys.modules[name], "__file__", None) or "")
        if not file.startswith((sys.prefix, str(ROOT / "parity_jax"))):
            del sys.modules[name]
    return code, out.getvalue(), told.getvalue()


def swept(workdir: Path, *more: object) -> tuple[int, str, str]:
    """python -m launch.sweep, quietly."""
    return typed(sweep, *arguments(workdir, *more))


def jobs(workdir: Path) -> dict[str, dict]:
    """What launch.status --json says of every job."""
    code, out, told = typed(status, workdir, "--json")
    assert code == 0, told
    return {job["job"]: job for job in json.loads(out)["jobs"]}


def states(workdir: Path) -> dict[str, str]:
    return {name: job["state"] for name, job in jobs(workdir).items()}


def start(*args: object, **env: str) -> subprocess.Popen[str]:
    """A command of launch as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, args)],
        cwd=ROOT,
        env=os.environ | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
