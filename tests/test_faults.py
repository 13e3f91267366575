"""What goes wrong on disk: never a silently wrong state, always one clear line."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from flax.core import FrozenDict
from kills import start
from small_runs import contents, read, train, train_until, walk, walks

from parity_jax.analysis import Results
from parity_jax.analysis.snapshot import open_snapshot
from parity_jax.config import ConfigError, StoppedError
from parity_jax.hypers import Hypers
from parity_jax.models.huggingface import FolderError
from parity_jax.runs import RunDirectory, RunError, run_experiment
from parity_jax.runs.checkpoint import CheckpointError, digest
from parity_jax.runs.files import lock

EXPERIMENT = walks(run=walk(num_steps=6))  # checkpoints 0, 2, 4, 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp("faults") / "whole"
    train(EXPERIMENT, workdir)
    return workdir


@pytest.fixture
def started(whole, tmp_path):
    """As if killed when everything but finished.json was written."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/run/finished.json").unlink()
    return tmp_path / "run"


def files_of(directory):
    """Every file with its content, but for locks."""
    found = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != ".lock")
    return {path: path.read_bytes() for path in found}


def refused(workdir, error=RunError):
    """The one line of an error that touches nothing."""
    before = files_of(workdir)
    with pytest.raises(error) as info:
        train(EXPERIMENT, workdir)
    assert files_of(workdir) == before
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_stopped_run_ends_as_if_it_had_not_been(whole, tmp_path, step):
    with pytest.raises(StoppedError, match=r"^stopped before run$"):
        run_experiment(EXPERIMENT, tmp_path, quiet=True, should_stop=lambda: True)
    train_until(step, EXPERIMENT, tmp_path)
    assert RunDirectory(tmp_path / "run").saved_steps()[-1] == step
    train(EXPERIMENT, tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_a_truncated_checkpoint_falls_back(started, whole, capsys):
    for path in (started / "run/checkpoints/6").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    train(EXPERIMENT, started)
    (line,) = capsys.readouterr().err.splitlines()
    assert "6: cannot be read" in line and "continuing from step 4" in line
    assert contents(started) == contents(whole)


@pytest.mark.parametrize("steps", [(6,), (2, 4, 6)])
def test_a_deleted_checkpoint_falls_back(started, whole, steps):
    """To step 0 as well, whose records after it are written again."""
    for step in steps:
        shutil.rmtree(started / "run/checkpoints" / str(step))
    train(EXPERIMENT, started)
    assert contents(started) == contents(whole)


def test_what_was_killed_before_it_began_begins(started, whole):
    """Directories and locks are there before anything that says what is in them."""
    for name in ("config.json", "lineage.json", "metrics.jsonl"):
        (started / "run" / name).unlink()
    shutil.rmtree(started / "run/checkpoints")
    (started / "run/checkpoints").mkdir()
    train(EXPERIMENT, started)
    assert contents(started) == contents(whole)


def test_no_whole_checkpoint_left_is_an_error_and_nothing_is_deleted(started):
    for path in (started / "run/checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert "no whole checkpoint is left" in refused(started, CheckpointError)


def test_all_checkpoints_deleted_is_an_error(started):
    shutil.rmtree(started / "run/checkpoints")
    assert "has trained, but all checkpoints are gone" in refused(started)


def test_a_flipped_byte_is_never_read_as_if_nothing_was(started):
    """Each file in turn; what is not an error is what was saved."""
    place, refused = started / "run/checkpoints/6", set()
    saved = digest(read(started / "run", 6))
    for path, content in files_of(place).items():
        for index in np.linspace(0, len(content) - 1, 4, dtype=int):
            flipped = bytearray(content)
            flipped[index] ^= 0x10
            path.write_bytes(flipped)
            try:
                assert digest(read(started / "run", 6)) == saved
            except CheckpointError as error:
                assert "\n" not in str(error)
                refused.add(path.relative_to(place).parts[0])
        path.write_bytes(content)
    assert {"state", "digest"} <= refused
    assert digest(read(started / "run", 6)) == saved


def test_a_checkpoint_of_another_step_is_refused(started):
    shutil.copytree(started / "run/checkpoints/4", started / "run/checkpoints/5")
    with pytest.raises(CheckpointError, match="does not match its digest"):
        read(started / "run", 5)


def test_a_half_written_record_is_written_again(started, whole):
    with (started / "run/metrics.jsonl").open("ab") as file:
        file.write(b'{"split": "eval", "step": 6, "sec')
    shutil.rmtree(started / "run/checkpoints/6")
    train(EXPERIMENT, started)
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
        train(EXPERIMENT, started)


OTHER = ["{}", "[]", "null", "3", '"x"', '{"a": 1}', '{"step": [', "\x00\xff"]


@pytest.mark.parametrize("name", ["config.json", "lineage.json", "finished.json"])
def test_a_json_file_that_holds_something_else_is_named(started, whole, name):
    """Whatever it is: cut off, of another form, or of no form at all."""
    shutil.copy(whole / "run/finished.json", started / "run")
    path = started / "run" / name
    if name == "lineage.json":  # it is read where the run goes on
        (started / "run/finished.json").unlink()
    for text in OTHER:
        path.write_text(text, encoding="latin-1")
        assert refused(started).startswith(f"{path}: damaged: ")


@pytest.mark.parametrize(
    "name", ["config.json", "lineage.json", "finished.json", "metrics.jsonl"]
)
def test_a_pipe_is_not_waited_for(whole, tmp_path, name):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run/run" / name
    path.unlink()
    os.mkfifo(path)
    assert refused(tmp_path / "run") == f"{path}: must be a file"


def test_a_record_that_holds_something_else_is_named(started):
    path = started / "run/metrics.jsonl"
    first, *rest = path.read_text().splitlines()
    record = json.loads(first)
    bad = [{"values": {"loss": 1}}, {"values": {"loss": ["1", 2]}}, {"step": True}]
    for text in [*OTHER, *(json.dumps(record | part) for part in bad)]:
        path.write_text("\n".join([first, text, *rest, ""]), encoding="latin-1")
        assert refused(started) == f"{path}: line 2 is damaged"


def test_missing_records_of_a_finished_run_are_an_error(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    (workdir / "run/metrics.jsonl").unlink()
    assert "metrics.jsonl" in refused(workdir)


@pytest.mark.parametrize("name", ["config.json", "lineage.json"])
def test_a_missing_file_is_an_error(started, name):
    (started / "run" / name).unlink()
    assert refused(started) == f"{started / 'run' / name}: missing"


@pytest.mark.parametrize("name", ["config.json", "lineage.json", "finished.json"])
def test_a_parents_file_that_holds_something_else_is_named(whole, tmp_path, name):
    parent = shutil.copytree(whole, tmp_path / "parent") / "run"
    for text in OTHER:
        (parent / name).write_text(text, encoding="latin-1")
        with pytest.raises((RunError, FolderError)) as info:
            train(walks(child=walk(str(parent))), tmp_path / "child")
        assert str(info.value).startswith(f"{parent / name}: damaged: ")
        assert "\n" not in str(info.value)
    assert not (tmp_path / "child").exists()


def test_an_experiments_file_that_holds_something_else_is_named(started):
    """Running the experiment writes it anew; what only reads it says so."""
    path = started / "config.json"
    for text in OTHER:
        path.write_text(text, encoding="latin-1")
        with pytest.raises(RunError, match=r"config\.json: damaged: ") as info:
            _ = Results(started).experiment
        assert "\n" not in str(info.value)
    train(EXPERIMENT, started)
    assert Results(started).experiment == EXPERIMENT


LONG = walks(run=walk(num_steps=40, checkpoint_every=10))
DISKS = {"checkpoint": 3000, "metrics": 5000}  # bytes of a file that do not fit


def train_on_full_disks(place):
    """No file may grow beyond a size: writes fail as on a full disk."""
    for name, size in DISKS.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            train(LONG, place / name)
        except (RunError, OSError) as error:
            (place / f"{name}.txt").write_text(str(error))


def test_a_full_disk_is_one_error_and_space_lets_the_run_go_on(tmp_path):
    train(LONG, tmp_path / "whole")
    process = start(train_on_full_disks, tmp_path)
    process.join()
    assert process.exitcode == 0
    for name in DISKS:
        assert len((tmp_path / f"{name}.txt").read_text().splitlines()) == 1
        assert not (tmp_path / name / "run/finished.json").exists()
        train(LONG, tmp_path / name)
        assert contents(tmp_path / name) == contents(tmp_path / "whole")
    assert "cannot be saved" in (tmp_path / "checkpoint.txt").read_text()
    assert RunDirectory(tmp_path / "metrics/run").read_lineage().continued[0].step > 0


def test_a_read_only_directory_is_an_error(tmp_path):
    tmp_path.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            for parent in tmp_path.parents[:2]:
                parent.chmod(0o755)
            os.seteuid(65534)  # root may write anywhere
        with pytest.raises((PermissionError, ConfigError)):
            train(EXPERIMENT, tmp_path / "run")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)


def hold(directory, name):
    """Hold a run until the process ends."""
    with RunDirectory(directory / name).locked():
        (directory / "held").touch()
        signal.pause()


def test_two_processes_cannot_work_in_one_directory(started):
    other = start(hold, started, "run")
    while not (started / "held").exists():
        assert other.is_alive()
        time.sleep(0.01)
    assert f"in use by process {other.pid} on " in refused(started)
    other.kill()
    other.join()
    with RunDirectory(started / "run").locked():  # the kernel let go of it
        pass


def changed_lines(path, change):
    """Records edited by hand: change(lines) gives what is written instead."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))


def with_values(lines, split, index, **values):
    """One record of a split with other values."""
    own = [line for line in lines if line["split"] == split][index]
    own["values"] = {k: v for k, v in (own["values"] | values).items() if v}
    return lines


EDITS = {
    "cut": lambda lines: lines[:-1],
    "evaluation gone": lambda lines: [
        line for line in lines if (line["split"], line["step"]) != ("eval", 2)
    ],
    "first gone": lambda lines: lines[1:],
    "reversed": lambda lines: lines[::-1],
    "twice": lambda lines: [*lines, lines[-1]],
    "negative step": lambda lines: [lines[0] | {"step": -5}, *lines[1:]],
    "seconds": lambda lines: [lines[0] | {"seconds": True}, *lines[1:]],
    "nan": lambda lines: with_values(lines, "eval", 1, token=[float("nan"), 0.0]),
    "number": lambda lines: with_values(lines, "eval", 1, token=[5.0, 5.0]),
    "metric gone": lambda lines: with_values(lines, "eval", 1, token=None),
    "empty": lambda lines: [lines[0] | {"values": {}}, *lines[1:]],
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_records_of_a_finished_run_are_never_used(whole, tmp_path, edit):
    """Neither by the run, nor by an analysis, nor by a child."""
    workdir = shutil.copytree(whole, tmp_path / "run")
    changed_lines(workdir / "run/metrics.jsonl", EDITS[edit])
    refused(workdir)
    with pytest.raises(RunError, match="damaged"):
        _ = Results(workdir)["run"]
    with pytest.raises(RunError, match="damaged"):
        train(walks(child=walk(str(workdir / "run"))), tmp_path / "child")
    assert not (tmp_path / "child").exists()


@pytest.mark.parametrize("edit", ["reversed", "twice", "negative step", "metric gone"])
def test_records_are_in_their_places(started, edit):
    changed_lines(started / "run/metrics.jsonl", EDITS[edit])
    with pytest.raises(RunError, match=r"metrics\.jsonl: line \d+ is damaged"):
        train(EXPERIMENT, started)


@pytest.mark.parametrize(
    "part",
    [
        {"step": [6], "status": [0]},
        {"step": [6]},
        {"status": [77, 0]},
        {"step": [9, 9]},
        {"step": [4, 6]},
        {"status": [1, 0]},
        {"status": [1, 1]},
        {"step": [4, 6], "status": [1, 0]},
        {"records_sha256": ""},
        {"lineage_sha256": ""},
        {"config_sha256": ""},
    ],
)
def test_the_end_of_a_run_agrees_with_the_rest_of_it(whole, tmp_path, part):
    workdir = shutil.copytree(whole, tmp_path / "run")
    path = workdir / "run/finished.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | part))
    assert refused(workdir).startswith(f"{path}: damaged: ")


def test_files_that_are_further_than_a_finished_run_are_told(whole, tmp_path):
    """As what they are, and not as a number of steps that is too small."""
    workdir = shutil.copytree(whole, tmp_path / "run")
    (workdir / "run/checkpoints/7").mkdir()
    assert "a checkpoint of step 7, after its last, 6" in refused(workdir)
    (workdir / "run/checkpoints/7").rmdir()
    path = workdir / "run/metrics.jsonl"
    further = path.read_text().splitlines()[-1].replace('"step": 6', '"step": 9')
    path.write_text(path.read_text() + further + "\n")
    assert "metrics.jsonl is not as it was when the run ended" in refused(workdir)


def test_a_run_without_its_last_checkpoint_is_not_complete(whole, tmp_path):
    """Nor does a child start from the one before, as if that were the last."""
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "run/checkpoints/6")
    assert "the checkpoint of its last step, 6, is gone" in refused(workdir)
    changed_lines(
        workdir / "run/metrics.jsonl",
        lambda lines: [line for line in lines if line["step"] < 5],
    )
    for experiment in (
        walks(run=walk(num_steps=6), child=walk("run")),
        walks(child=walk(str(workdir / "run"))),
    ):
        with pytest.raises(RunError, match="is not as it was when the run ended"):
            train(experiment, workdir if "run" in experiment.runs else tmp_path / "c")


def another(tmp_path):
    """A finished run whose numbers are others."""
    other = walk(num_steps=6, hypers=Hypers(learning_rate=2e-2))
    train(walks(run=other), tmp_path / "another")
    return tmp_path / "another/run"


def test_a_checkpoint_of_another_run_is_never_used(whole, started, tmp_path, capsys):
    place = started / "run/checkpoints/6"
    shutil.rmtree(place)
    shutil.copytree(another(tmp_path) / "checkpoints/6", place)
    shutil.copy(whole / "run/finished.json", started / "run")
    text = refused(started, CheckpointError)
    assert text.startswith(f"{place}: is of another run: hypers.learning_rate is 0.02")
    (started / "run/finished.json").unlink()
    train(EXPERIMENT, started)
    assert "continuing from step 4 instead" in capsys.readouterr().err
    assert contents(started) == contents(whole)


def test_a_checkpoint_of_another_step_is_never_used(whole, started):
    place = started / "run/checkpoints/6"
    shutil.rmtree(place)
    shutil.copytree(whole / "run/checkpoints/4", place)
    shutil.copy(whole / "run/finished.json", started / "run")
    assert refused(started, CheckpointError) == f"{place}: is of step 4"


@pytest.mark.parametrize("seeds", [[1, 0], [0, 1, 2], [0]])
def test_a_parent_whose_members_were_renamed_is_refused(whole, tmp_path, seeds):
    """A child would start each member from the parameters of another."""
    parent = shutil.copytree(whole, tmp_path / "parent") / "run"
    config = json.loads((parent / "config.json").read_text())
    config["axes"]["seed"] = seeds
    (parent / "config.json").write_text(json.dumps(config))
    experiment = walks(child=walk(str(parent), parent_step=4), seeds=(0,))
    with pytest.raises(RunError) as info:
        train(experiment, tmp_path / "child")
    assert not (tmp_path / "child").exists()
    with pytest.raises(RunError, match=r"finished\.json: damaged: "):
        open_snapshot(RunDirectory(parent), 4)
    (parent / "finished.json").unlink()
    told = r"is of another run: axes\.seed is"
    with pytest.raises(RunError, match=told):
        open_snapshot(RunDirectory(parent), 4)
    with pytest.raises(RunError, match=told):
        train(experiment, tmp_path / "child")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"recorded": 4}, "does not match its digest"),
        ({"recorded": "x"}, "does not match its digest"),
        ({"members": {"step": [6, 6], "status": [0, 1]}}, "does not match its digest"),
        ({"run": {}}, "does not match its digest"),
        ({"own_sha256": None}, "does not match its digest"),
        (None, "older version"),
    ],
)
def test_what_a_checkpoint_tells_of_itself_is_verified(
    whole, started, edit, told, capsys
):
    """The step of the last record decides which records a run goes on from."""
    path = started / "run/checkpoints/6/digest/metadata"
    head = json.loads(path.read_text())
    if edit is None:
        del head["own_sha256"]
    path.write_text(json.dumps(head | (edit or {})))
    for look in (lambda: read(started / "run", 6), lambda: checked(started / "run")):
        with pytest.raises(CheckpointError, match=told):
            look()
    train(EXPERIMENT, started)
    assert "continuing from step 4 instead" in capsys.readouterr().err
    assert contents(started) == contents(whole)


def checked(run):
    with RunDirectory(run).saved() as checkpoints:
        checkpoints.check(6)


def test_a_checkpoint_of_other_parents_is_of_another_run(tmp_path):
    """Those of all seeds, and of one that was pinned."""
    train(walks(first=walk()), tmp_path / "parent")
    parent = str(tmp_path / "parent/first")
    for name, member in (("each", {}), ("one", {"seed": 1})):
        child = walk(parent, parent_member=FrozenDict(member))
        train(walks(child=child), tmp_path / name)
    place = tmp_path / "one/child/checkpoints/4"
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "each/child/checkpoints/4", place)
    with pytest.raises(CheckpointError, match="is of another run"):
        read(tmp_path / "one/child", 4)


def test_who_looks_whether_a_directory_is_in_use_is_in_nobodys_way(tmp_path):
    looks = f"""
from pathlib import Path
from parity_jax.runs.files import is_locked
place = Path({str(tmp_path)!r})
print("ready", flush=True)
while True:
    is_locked(place)
"""
    with lock(tmp_path):
        pass
    command = [sys.executable, "-c", looks]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            for _ in range(200):
                with lock(tmp_path):
                    pass
        finally:
            process.kill()
