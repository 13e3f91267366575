"""A real Slurm: arrays, requeues, faults; the same numbers as without."""

import os
import re
import signal
import sys

import numpy as np
import pytest
from small_runs import contents, train
from small_sweeps import LONG, ROOT, arguments, jobs, start, swept
from tiny_slurm import cluster, free_ports, missing, ran, until

from launch.job import Record
from launch.queue import places
from parity_jax.cli.run import configured
from parity_jax.config.overrides import parse
from parity_jax.runs import RunDirectory
from parity_jax.runs.files import read_json
from parity_jax.runs.sweep import SweepDirectory

GRID = ["--grid=task.num_bits=4,5", "--grid=seed=0,1"]
SLURM = ["--engine=slurm", "--slurm=time=60,cpus-per-task=1", "--grace=30"]


@pytest.fixture(scope="module")
def slurm():
    """The environment of a cluster; where CI runs, it has to be installed."""
    if missing() and "CI" not in os.environ:
        pytest.skip(f"not installed: {', '.join(missing())}")
    with cluster() as env, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", env["SLURM_CONF"])
        patch.chdir(ROOT)  # jobs start where they are submitted
        patch.setenv("PYTHONPATH", str(ROOT / "tests"))  # the analysis reads the runs
        yield env


def submit(workdir, *more):
    """Submissions with each of these, all at once: exit codes and all they said."""
    command = ["launch.sweep", *arguments(workdir, *SLURM)]
    processes = [start(*command, *each) for each in more]
    said = [process.communicate()[0] for process in processes]
    return [process.returncode for process in processes], said


def begun(workdir, name):
    """The life of a job, once it trains."""
    home = SweepDirectory(workdir)
    (job,) = [job for job in home.read().jobs if job.name == name]
    until(lambda: home.experiment(job).run("run").last_step() > 0)
    return Record(home, job).read()


def settled(workdir):
    """What status says of every job, when nothing is queued or running any more."""
    until(lambda: not places(workdir), 120)
    return jobs(workdir)


def undisturbed(workdir, name, place):
    """What a job leaves when nothing but `run` has worked on it."""
    (job,) = [job for job in SweepDirectory(workdir).read().jobs if job.name == name]
    overrides = parse([a for a in job.arguments if a.startswith("--config.")])
    train(configured(job.config, overrides)[1], place)
    sys.modules.pop("walks")
    return contents(place)


def test_jobs_are_requeued_and_end_as_if_nothing_had_happened(slurm, tmp_path):
    """Two at once submit an array of two shapes; one gets TERM, one is requeued."""
    workdir, report = tmp_path / "sweep", tmp_path / "report"
    asked = [*GRID, *LONG, f"--report={report}"]
    codes, said = submit(workdir, asked, asked)
    assert codes == [0, 0], said
    assert "".join(said).count("submitted 2 jobs as") == 1, said
    first, second = begun(workdir, "num_bits=4"), begun(workdir, "num_bits=5")
    assert re.fullmatch(r"\d+_0", first.queued_as)
    assert second.queued_as == first.queued_as[:-1] + "1"
    assert ran(slurm, "scancel", "--signal=TERM", first.queued_as)
    assert ran(slurm, "scontrol", "requeue", second.queued_as)
    until(lambda: "queued" in {job["state"] for job in jobs(workdir).values()})
    found = settled(workdir)
    assert [job["state"] for job in found.values()] == ["finished"] * 2, found
    assert [job["attempts"] for job in found.values()] == [2, 2]
    for name in found:
        here = contents(workdir / name)
        assert here == undisturbed(workdir, name, tmp_path / name)
        lineage = read_json(workdir / name / "run" / "lineage.json")
        assert len(lineage["continued"]) == 1  # it went on, it did not begin again
    until((report / "report.md").exists)
    codes, said = submit(workdir, asked)
    assert codes == [0] and "submitted" not in said[0], said
    later = tmp_path / "later"  # asked for when all had ended
    codes, said = submit(workdir, [*asked[:-1], f"--report={later}"])
    assert codes == [0] and "submitted the report as" in said[0], said
    until((later / "report.md").exists)


def test_what_fails_harms_no_other_job(slurm, tmp_path):
    """A job that diverges stays failed, one that is killed is lost; both can go on."""
    workdir, field = tmp_path / "sweep", "runs.child.hypers.learning_rate"
    asked = [f"--grid={field}=1e-3,1e30,2e-3", *LONG, "--config.runs.child.num_steps=9"]
    codes, said = submit(workdir, asked)
    assert codes == [0], said
    os.kill(begun(workdir, "learning_rate=1e-3").process, signal.SIGKILL)
    found = settled(workdir)
    states = {name: job["state"] for name, job in found.items()}
    assert states == {
        "learning_rate=1e-3": "lost",
        "learning_rate=1e30": "failed",
        "learning_rate=2e-3": "finished",
    }


REFUSED = [
    (["--slurm=partition=nowhere"], ("partition=nowhere", "invalid partition")),
    (["--slurm=colour=red"], ("--slurm='colour'", "unknown; valid: ")),
    (["--slurm=time=0"], ("--grace=30", "less than the time limit")),
]


def test_what_slurm_refuses_is_one_line(slurm, tmp_path):
    workdir = tmp_path / "sweep"
    codes, said = submit(workdir, *([GRID[1], *more] for more, _ in REFUSED))
    assert codes == [2] * len(REFUSED), said
    for text, (_, parts) in zip(said, REFUSED, strict=True):
        (line,) = text.splitlines()
        assert line.startswith("error: ") and all(p in line for p in parts), line
    assert not places(workdir) and not (workdir / "sweep.json").exists()


def test_an_option_that_sbatch_does_not_know_is_refused_at_once(slurm, tmp_path):
    asked = ("--engine=slurm", "--slurm=time=9,tiem=9", "--dry_run")
    code, _, told = swept(tmp_path / "sweep", *asked)
    assert code == 2 and "--slurm='tiem': unknown; did you mean 'time'?" in told


def test_without_slurm_it_is_one_line(tmp_path):
    workdir = tmp_path / "sweep"
    command = arguments(workdir, *SLURM, GRID[1])
    process = start("launch.sweep", *command, PATH=str(tmp_path))
    said = process.communicate()[0]
    assert process.returncode == 2, said
    assert said == "error: --engine='slurm': needs Slurm: there is no srun here\n"


PROFILE = """
[two]
setup = [
    "export JAX_COORDINATOR_ADDRESS=127.0.0.1:{port}",
    "export NPROC=64 XLA_FLAGS='{flags}2'",
]
slurm = {{time = "60", nodes = "2", ntasks-per-node = "1", cpus-per-task = "1"}}
"""
FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_force_host_platform_device_count="
FEW = [f"--config.runs.run.{name}=4" for name in ("num_steps", "eval_every")]


def test_a_job_of_two_tasks_is_one_model_over_two_nodes(slurm, tmp_path):
    """Each task is a process of one run; its numbers are those of one process."""
    workdir, alone, profiles = (tmp_path / n for n in ("sweep", "alone", "two.toml"))
    profiles.write_text(PROFILE.format(port=free_ports(1)[0], flags=FLAGS))
    config = f"--config={ROOT}/tests/two_hosts.py"
    engine = ["--engine=slurm", "--grace=30", f"--profiles={profiles}", "--profile=two"]
    command = ["launch.sweep", config, f"--workdir={workdir}", "--grid=seed=0", *FEW]
    process = start(*command, *engine)
    said = process.communicate()[0]
    assert process.returncode == 0 and "submitted 1 job as" in said, said
    env = {"NPROC": "64", "XLA_FLAGS": f"{FLAGS}4", "PYTHONPATH": str(ROOT / "tests")}
    command = ["parity_jax.cli", "run", config, f"--workdir={alone}", *FEW]
    process = start(*command, **env)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    until(lambda: not places(workdir), 300)
    home = SweepDirectory(workdir)
    (job,) = home.read().jobs
    (found,) = jobs(workdir).values()
    assert (found["state"], found["attempts"]) == ("finished", 1), found
    run = home.experiment(job).run("run")
    assert run.read_lineage().process.device == "cpu: cpu x 4"
    (head,) = run.path.glob("checkpoints/4/digest/metadata")
    assert len(read_json(head)["shards"]["params.embed.embedding"]["shards"]) == 4
    ends = []
    for directory in (run, RunDirectory(alone / "run")):
        with directory.saved() as checkpoints:
            ends.append(checkpoints.read(4).arrays)
    for name, x in ends[0].items():
        np.testing.assert_allclose(x, ends[1][name], rtol=1e-4, atol=1e-5)
