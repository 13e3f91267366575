"""Two processes that train one model: the numbers of one, stopped and killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_runs import contents
from tiny_slurm import free_ports, until

from parity_jax.runs import RunDirectory
from parity_jax.runs.files import read_json

TESTS = Path(__file__).parent
LAST = 24
LOST = "error: another process of this run is gone; the same command continues\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, which all of these processes share."""
    return tmp_path_factory.mktemp("cache")


def start(cache, workdir, *more, num_devices=2):
    """A process that trains."""
    flag = f"--xla_force_host_platform_device_count={num_devices}"
    env = os.environ | {
        "NPROC": "64",  # threads: collectives of devices wait for each other
        "XLA_FLAGS": f"{flag} --xla_cpu_use_fusion_emitters=false",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "parity_jax.cli", "run", "--config=two_hosts.py"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", "--quiet", *more],
        env=env,
        cwd=TESTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(cache, workdir):
    """Two, each with half of the devices."""
    address = f"--coordinator=127.0.0.1:{free_ports(1)[0]}"
    group = (address, "--num_processes=2")
    return [start(cache, workdir, *group, f"--process_id={i}") for i in (0, 1)]


def ended(*processes):
    """Exit codes, and what was said."""
    said = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], said


def until_trained(workdir, step=2):
    """Return when it is on its way."""
    until(lambda: RunDirectory(workdir / "run").last_step() >= step, 200)


def saved(workdir, step=LAST):
    """The arrays of a checkpoint."""
    with RunDirectory(workdir / "run").saved() as checkpoints:
        return checkpoints.read(step).arrays


def assert_close(a, b):
    assert a.keys() == b.keys()
    for name, x in a.items():
        np.testing.assert_allclose(x, b[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory):
    """What two processes leave when nothing happens to them."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    codes, said = ended(*start_two(cache, workdir))
    assert codes == [0, 0] and said == ["", ""], said
    return workdir


def test_two_processes_are_as_one(cache, undisturbed, tmp_path):
    codes, said = ended(start(cache, tmp_path, num_devices=4))
    assert codes == [0], said
    assert_close(saved(undisturbed), saved(tmp_path))
    begun = saved(undisturbed, 0), saved(tmp_path, 0)
    assert all(np.array_equal(x, begun[1][name]) for name, x in begun[0].items())
    (head,) = undisturbed.glob(f"run/checkpoints/{LAST}/digest/metadata")
    shards = read_json(head)["shards"]["params.embed.embedding"]["shards"]
    assert len(shards) == 4


def test_stopped_or_killed_they_end_together_and_go_on(cache, undisturbed, tmp_path):
    """TERM to one, SIGKILL to the other; on two processes to the end, and on one."""
    workdir, alone = tmp_path / "two", tmp_path / "alone"
    processes = start_two(cache, workdir)
    until_trained(workdir)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = ended(*processes)
    assert codes == [75, 75], said
    assert all("error: stopped at step" in text for text in said), said
    shutil.copytree(workdir, alone)

    processes = start_two(cache, workdir)
    until_trained(workdir, RunDirectory(workdir / "run").last_step() + 2)
    processes[1].kill()
    killed = time.monotonic()
    codes, said = ended(*processes)
    assert time.monotonic() - killed < 60
    assert codes == [75, -signal.SIGKILL] and said[0] == LOST, said

    codes, said = ended(*start_two(cache, workdir))
    assert codes == [0, 0], said
    assert contents(workdir) == contents(undisturbed)
    codes, said = ended(start(cache, alone, "--config.mesh.fsdp=1", num_devices=1))
    assert codes == [0] and "not bit for bit" in said[0], said
    assert_close(saved(alone), saved(undisturbed))


def test_what_cannot_be_is_one_line(cache, tmp_path):
    bad = ["--num_processes=2 --process_id=2 --coordinator=here:1"]
    bad += ["--num_processes=2 --process_id=0 --coordinator=here", "--process_id=1"]
    fields = ["--process_id=2: must be in [0, 1]", "--coordinator='here'", "--num_pro"]
    processes = [start(cache, tmp_path, *text.split()) for text in bad]
    codes, said = ended(*processes)
    assert codes == [2, 2, 2], said
    for text, field in zip(said, fields, strict=True):
        assert text.startswith(f"error: {field}") and text.count("\n") == 1
