"""Two processes that train one model: the numbers of one, stopped and killed."""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax._src.clusters.slurm_cluster import SlurmCluster
from tiny_slurm import free_ports, until

from parity_jax.cli.main import run
from parity_jax.hosts import address_in_slurm, place_in_slurm
from parity_jax.runs import RunDirectory
from parity_jax.runs.files import read_json
from parity_jax.runs.shards import is_as_written, sha256, slices_of

TESTS = Path(__file__).parent
LAST = 24
LOST = "error: another process of this run is gone; the same command continues\n"


# Forked from a server that has imported everything and started no backend.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["parity_jax.cli.run", "tiny"])


class Life(NamedTuple):
    """A process that trains, and where what it says goes."""

    process: multiprocessing.Process
    log: Path


def live(arguments, num_devices, cache, log):
    """What a process of these tests does: the command, with devices of its own."""
    flag = f"--xla_force_host_platform_device_count={num_devices}"
    os.environ["XLA_FLAGS"] = f"{flag} --xla_cpu_use_fusion_emitters=false"
    os.environ["NPROC"] = "64"  # threads: collectives of devices wait for each other
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(out, number)
    os.chdir(TESTS)
    sys.exit(run(["run", "--config=two_hosts.py", "--quiet", *arguments]))


def start(workdir, *more, num_devices=2):
    """A process that trains."""
    number = len([*workdir.parent.glob("*.log")])
    log = workdir.parent / f"{number}.log"
    log.touch()
    arguments = (
        [f"--workdir={workdir}", *more],
        num_devices,
        workdir.parent / "cache",
        log,
    )
    process = SERVER.Process(target=live, args=arguments)
    process.start()
    return Life(process, log)


def start_two(workdir):
    """Two, each with half of the devices."""
    address = f"--coordinator=127.0.0.1:{free_ports(1)[0]}"
    group = (address, "--num_processes=2")
    return [start(workdir, *group, f"--process_id={i}") for i in (0, 1)]


def ended(*lives):
    """Exit codes, and what was said."""
    for life in lives:
        life.process.join(300)
    return [life.process.exitcode for life in lives], [x.log.read_text() for x in lives]


def until_trained(workdir, step=2):
    """Return when it is on its way."""
    until(lambda: RunDirectory(workdir / "run").last_step() >= step, 200)


def saved(workdir, step=LAST):
    """The arrays of a checkpoint."""
    with RunDirectory(workdir / "run").saved() as checkpoints:
        return checkpoints.read(step).arrays


def test_two_are_as_one_stopped_killed_and_continued(tmp_path):
    """TERM to one ends both, SIGKILL of one ends the other; on two processes to the
    end, and on one of one device: what one process of the same mesh has, to rounding.
    """
    two, alone, plain = (tmp_path / name for name in ("two", "alone", "plain"))
    one = start(plain, num_devices=4)
    processes = start_two(two)
    until_trained(two)
    processes[1].process.terminate()
    codes, said = ended(*processes)
    assert codes == [75, 75], said
    assert all("error: stopped at step" in text for text in said), said
    shutil.copytree(two, alone)

    processes = start_two(two)
    until_trained(two, RunDirectory(two / "run").last_step() + 2)
    processes[1].process.kill()
    killed = time.monotonic()
    codes, said = ended(*processes)
    assert time.monotonic() - killed < 60
    assert codes == [75, -signal.SIGKILL] and said[0] == LOST, said

    codes, said = ended(
        one,
        *start_two(two),
        start(alone, "--config.mesh.fsdp=1", num_devices=1),
    )
    assert codes == [0] * 4, said
    assert said[:3] == [""] * 3 and "not bit for bit" in said[3], said
    expected, begun = saved(plain), saved(plain, 0)
    for name, x in saved(two, 0).items():
        np.testing.assert_array_equal(x, begun[name], err_msg=name)
    for arrays in (saved(two), saved(alone)):
        assert arrays.keys() == expected.keys()
        for name, x in arrays.items():
            close = dict(rtol=1e-4, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(x, expected[name], **close)
    assert read_json(two / "claims.json") == read_json(plain / "claims.json")
    assert (two / "figure.png").exists()
    head = read_json(two / f"run/checkpoints/{LAST}/digest/metadata")
    assert len(head["shards"]["params.embed.embedding"]["shards"]) == 4


@pytest.mark.parametrize("index", [0, 1])
def test_one_that_waits_for_the_other_can_be_stopped(index, tmp_path):
    """JAX waits outside of Python, where no signal is handled."""
    group = (f"--coordinator=127.0.0.1:{free_ports(1)[0]}", "--num_processes=2")
    life = start(tmp_path / "run", *group, f"--process_id={index}")
    life.process.join(12)  # by now it waits, if the machine is not busy
    life.process.terminate()
    codes, said = ended(life)
    assert codes == [75]
    assert said[0].startswith("error: stopped") and said[0].count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_processes_with_other_commands_are_no_run(tmp_path):
    """As tasks of a step are that were meant to be jobs of their own."""
    group = (f"--coordinator=127.0.0.1:{free_ports(1)[0]}", "--num_processes=2")
    places = [tmp_path / "a", tmp_path / "b"]
    both = [start(p, *group, f"--process_id={i}") for i, p in enumerate(places)]
    codes, told = ended(*both)
    assert codes == [2, 2]
    for text in told:
        assert text.startswith(f"error: command of process 1='{places[1]} ")
        assert f"'{places[0]} " in text and text.count("\n") == 1
    assert not any(p.exists() for p in places)


def test_shards_are_verified(tmp_path):
    """What one process reads whole of shards: a bit, a shard or a name that is off."""
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    halves = {w: sha256(x[slices_of(w)]) for w in ("0:3,0:2", "0:3,2:4")}
    index = {"x": {"dtype": "float32", "shape": [3, 4], "shards": halves}}
    other = x.copy()
    other[1, 3] += 1
    assert is_as_written(index, {"x": x})
    assert not is_as_written(index, {"x": other})
    assert not is_as_written(index, {"x": x, "y": x})
    assert not is_as_written(index, {"x": x.astype(np.float64)})
    halves.pop("0:3,2:4")
    assert not is_as_written(index, {"x": x})


BAD = {
    "--coordinator=here:1 --num_processes=2 --process_id=2": "--process_id=2: must be ",
    "--coordinator=here:99999 --num_processes=2 --process_id=0": "--coordinator='here:",
    "--coordinator=here --num_processes=2 --process_id=0": "--coordinator='here': must",
    "--process_id=1": "--num_processes=0: must be given too",
}


@pytest.mark.parametrize("flags", list(BAD))
def test_what_cannot_be_is_one_line(tmp_path, capsys, flags):
    command = ["run", "--config=two_hosts.py", f"--workdir={tmp_path / 'w'}"]
    assert run([*command, *flags.split()]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {BAD[flags]}") and told.count("\n") == 1, told
    assert not (tmp_path / "w").exists()


def test_tasks_of_slurm_are_processes_in_a_step_only():
    step = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1"}
    step["SLURM_STEP_NUM_TASKS"] = "2"
    assert place_in_slurm(step) == (1, 2)
    assert place_in_slurm(step | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert place_in_slurm({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}) is None


@pytest.mark.parametrize(
    "nodes", ["n", "n,m", "n[01-3]", "n[01-3,7],m", "n[7,9-12]", "n-a,m[1-2]"]
)
def test_the_first_task_is_where_jax_looks_for_it(monkeypatch, nodes):
    env = {"SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "5000"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert address_in_slurm(env) == SlurmCluster.get_coordinator_address(None, None)
    told = "JAX_COORDINATOR_ADDRESS"
    assert address_in_slurm(env | {told: "there:1"}) == "there:1"
