"""What goes wrong on disk: never a silently wrong state, always one clear line."""

import dataclasses
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from flax.core import FrozenDict
from kills import contents, finish, prepare
from tiny import tiny_experiment

from parity_jax import runs
from parity_jax.checkpoint import CheckpointError, Checkpoints, digest
from parity_jax.interrupt import StoppedError, stop_requests
from parity_jax.results import RunError, lock
from parity_jax.runs import run_experiment


def experiment():
    pretrain = tiny_experiment().runs["pretrain"]
    run = dataclasses.replace(pretrain, num_steps=6)  # checkpoints 0, 2, 4, 6
    return tiny_experiment(runs=FrozenDict({"run": run}))


def execute(workdir, should_stop=lambda: False):
    run_experiment(experiment(), workdir, quiet=True, should_stop=should_stop)


@pytest.fixture(scope="module", autouse=True)
def one_compilation():
    """All runs of this module share their compiled programs."""
    with mock.patch.object(runs, "build", functools.cache(runs.build)):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp("faults") / "whole"
    execute(workdir)
    return workdir


@pytest.fixture
def started(whole, tmp_path):
    """As if killed when everything but finished.json was written."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/run/finished.json").unlink()
    return tmp_path / "run"


def asks_at(call):
    """A should_stop that says so from its n-th call on; the first is before the run."""
    calls = iter(range(1, 100))
    return lambda: next(calls) >= call


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("call", [2, 3, 5], ids=["step 0", "step 1", "step 3"])
def test_a_stopped_run_ends_as_if_it_had_not_been(whole, tmp_path, call):
    workdir = tmp_path / "run"
    with pytest.raises(StoppedError, match=f"stopped at step {call - 2} and saved"):
        execute(workdir, asks_at(call))
    assert (workdir / "run/checkpoints" / str(call - 2)).exists()
    execute(workdir)
    assert contents(workdir) == contents(whole)


def test_signals_ask_once_and_then_have_their_effect():
    numbers = (signal.SIGTERM, signal.SIGINT)  # a shell may have SIGINT ignored
    before = [signal.getsignal(number) for number in numbers]
    with stop_requests() as should_stop:
        changed = [signal.getsignal(number) for number in numbers]
        assert all(new != old for new, old in zip(changed, before, strict=True))
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
        assert [signal.getsignal(number) for number in numbers] == before
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_truncated_checkpoint_falls_back(started, whole, capsys):
    (started / "run/finished.json").unlink(missing_ok=True)
    for path in files_of(started / "run/checkpoints/6"):
        os.truncate(path, path.stat().st_size // 2)
    execute(started)
    (line,) = capsys.readouterr().err.splitlines()
    assert "6: cannot be read" in line and "continuing from step 4" in line
    assert contents(started) == contents(whole)


def test_a_deleted_checkpoint_falls_back(started, whole):
    shutil.rmtree(started / "run/checkpoints/6")
    execute(started)
    assert contents(started) == contents(whole)


def test_no_whole_checkpoint_left_is_an_error_and_nothing_is_deleted(started):
    for path in files_of(started / "run/checkpoints"):
        path.write_bytes(b"")
    before = files_of(started)
    with pytest.raises(CheckpointError, match="no whole checkpoint is left") as info:
        execute(started)
    assert "\n" not in str(info.value)
    assert files_of(started) == before


def test_all_checkpoints_deleted_is_an_error(started):
    shutil.rmtree(started / "run/checkpoints")
    with pytest.raises(RunError, match="trained to step 6, but all checkpoints are"):
        execute(started)


def test_a_flipped_byte_is_never_read_as_if_nothing_was(started):
    """Each file in turn; what is not an error is what was saved."""
    directory = started / "run"
    checkpoints = Checkpoints(directory, read_only=True)
    saved = digest(checkpoints.read(6))
    refused = set()
    for path in files_of(directory / "checkpoints/6"):
        content = path.read_bytes()
        for place in np.linspace(0, len(content) - 1, 4, dtype=int):
            flipped = bytearray(content)
            flipped[place] ^= 0x10
            path.write_bytes(flipped)
            try:
                assert digest(checkpoints.read(6)) == saved
            except CheckpointError as error:
                assert "\n" not in str(error)
                refused.add(path.relative_to(directory / "checkpoints/6").parts[0])
        path.write_bytes(content)
    assert {"state", "digest"} <= refused
    assert digest(checkpoints.read(6)) == saved
    checkpoints.close()


def test_a_checkpoint_of_another_step_is_refused(started):
    shutil.copytree(started / "run/checkpoints/4", started / "run/checkpoints/5")
    checkpoints = Checkpoints(started / "run", read_only=True)
    with pytest.raises(CheckpointError, match="does not match its digest"):
        checkpoints.read(5)
    checkpoints.close()


def test_a_half_written_record_is_written_again(started, whole):
    metrics = started / "run/metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + b'{"split": "eval", "step": 6, "sec')
    shutil.rmtree(started / "run/checkpoints/6")
    execute(started)
    assert contents(started) == contents(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:2], lines[2][:9], *lines[3:]], "line 3 is damaged"),
        (lambda lines: lines[:-3], "records up to step 6 are gone"),
        (lambda lines: [], "records up to step 6 are gone"),
    ],
)
def test_lost_records_are_an_error(started, change, message):
    metrics = started / "run/metrics.jsonl"
    lines = change(metrics.read_text().splitlines())
    metrics.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(RunError, match=message):
        execute(started)


@pytest.mark.parametrize(
    "name", ["config.json", "run/config.json", "run/lineage.json", "run/finished.json"]
)
def test_a_truncated_json_file_is_named(started, name):
    path = started / name
    path.write_text('{"step": [')
    with pytest.raises(RunError, match=rf"{path.name}: damaged: .*") as info:
        execute(started)
    assert "\n" not in str(info.value)


def test_a_missing_config_is_an_error(started):
    (started / "run/config.json").unlink()
    with pytest.raises(RunError, match=r"config\.json: missing, but there are"):
        execute(started)


DISKS = {"metrics": 3000, "checkpoint": 20_000}  # what does not fit any more


def execute_on_full_disks(place):
    """No file may grow beyond a size: writes fail as on a full disk."""
    prepare()
    runs.build = functools.cache(runs.build)
    for name, size in DISKS.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            execute(place / name)
        except (RunError, OSError) as error:
            (place / f"{name}.txt").write_text(str(error))


def test_a_full_disk_is_one_error_and_space_lets_the_run_go_on(whole, tmp_path):
    finish(execute_on_full_disks, tmp_path)
    for name in DISKS:
        assert len((tmp_path / f"{name}.txt").read_text().splitlines()) == 1
        assert not (tmp_path / name / "run/finished.json").exists()
        execute(tmp_path / name)
        assert contents(tmp_path / name) == contents(whole)


def test_a_read_only_directory_is_an_error(tmp_path):
    tmp_path.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            for parent in tmp_path.parents[:2]:
                parent.chmod(0o755)
            os.seteuid(65534)  # root may write anywhere
        with pytest.raises(PermissionError):
            execute(tmp_path / "run")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)


def test_two_processes_cannot_work_in_one_directory(started):
    hold = (
        "import sys, pathlib; from parity_jax.results import lock\n"
        "with lock(pathlib.Path(sys.argv[1])): print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, started],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(RunError, match=f"in use by process {other.pid} on "):
        execute(started)
    other.kill()
    other.communicate()
    with lock(started):  # the kernel let go of it
        pass
