"""Curves of TensorBoard and W&B hold what metrics.jsonl holds, each step once."""

import dataclasses
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import wandb
from small_runs import records, train, train_until, walk, walks

from parity_jax.config import ConfigError
from parity_jax.config.overrides import apply, parse
from parity_jax.experiment import Experiment
from parity_jax.metrics import Mean
from parity_jax.runs import RunDirectory, RunError
from parity_jax.runs.curves import followed as tell
from parity_jax.runs.files import read_json, write_json
from parity_jax.runs.resolve import resolve

os.environ["WANDB_MODE"] = "offline"
FULL, LAST = 1, 4


def followed(*log, **fields):
    experiment = walks(walk=walk(num_steps=6, **fields))
    return dataclasses.replace(experiment, log=log)


def expected(run):
    """(curve, metric, step) of every point that the records have."""
    out = Counter()
    for record in records(run):
        for name in record.values:
            for curve in ("seed=0", "seed=1", "median"):
                out[curve, f"{record.split}/{name}", record.step] += 1
    return out


def tensorboard(run):
    """Of all event files: points with their values, rows of hyper-parameters."""
    from tensorboardX.proto.event_pb2 import Event

    points, rows = [], []
    for path in sorted((run / "tensorboard").glob("*/events.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += size + 16
            for value in event.summary.value:
                if value.HasField("metadata"):
                    rows.append((path.parent.name, value.tag))
                else:
                    key = (path.parent.name, value.tag, event.step)
                    points.append((key, value.simple_value))
    return points, rows


def wandb_records(path):
    """The records of an offline file: the log of LevelDB behind a head of 7 bytes."""
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (FULL, LAST):
            yield whole
            whole = b""


def wandb_runs(run):
    """Of all offline files: points with their values, ids, the number of tables."""
    from wandb.proto.wandb_internal_pb2 import Record

    ids, points, tables = set(), [], 0
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for record in map(Record.FromString, wandb_records(path)):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            row = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            tables += any(name.startswith("members") for name in row)
            for name, value in row.items():
                metric, _, curve = name.rpartition("/")
                if metric.startswith(("train", "eval")):
                    points.append(((curve, metric, row["step"]), value))
    return points, ids, tables


def test_tensorboard_after_an_interruption(tmp_path):
    experiment = followed("tensorboard")
    train_until(3, experiment, tmp_path)
    train(experiment, tmp_path)
    points, rows = tensorboard(tmp_path / "walk")
    assert Counter(key for key, _ in points) == expected(tmp_path / "walk")
    values = dict(points)
    loss = records(tmp_path / "walk")[-2].values["loss"]
    assert values["seed=1", "train/loss", 6] == pytest.approx(loss[1])
    assert values["median", "train/loss", 6] == pytest.approx(sum(loss) / 2)
    assert ("seed=0", "_hparams_/session_start_info") in rows
    assert ("seed=1", "_hparams_/session_end_info") in rows


def test_wandb_goes_on_with_its_run(tmp_path):
    experiment = followed("wandb")
    train_until(3, experiment, tmp_path)
    train(experiment, tmp_path)
    points, ids, tables = wandb_runs(tmp_path / "walk")
    assert len(ids) == 1 and tables == 1
    assert Counter(key for key, _ in points) == expected(tmp_path / "walk")


READ = {"tensorboard": tensorboard, "wandb": wandb_runs}


@pytest.mark.parametrize("log", ["tensorboard", "wandb"])
def test_curves_of_a_run_that_has_ended_are_drawn(log, tmp_path):
    """But for those that it has."""
    assert train(followed(), tmp_path)
    for _ in range(2):
        assert train(followed(log), tmp_path)
        points = READ[log](tmp_path / "walk")[0]
        assert Counter(key for key, _ in points) == expected(tmp_path / "walk")


@pytest.mark.parametrize("log", ["tensorboard", "wandb"])
def test_curves_of_an_ended_run_that_were_cut_off_are_drawn(log, tmp_path):
    """By a kill while they were, say."""
    assert train(followed(log), tmp_path)
    file = tmp_path / "walk" / log / "told.json"
    told = read_json(file)
    write_json(file, told | {"is_finished": False, "step": 4, "split": "eval"})
    for edit in ({}, {"split": "test"}, {"id": 3}):
        write_json(file, edit and told | edit)
        with pytest.raises(RunError, match=r"told\.json: damaged"):
            train(followed(log), tmp_path)
    file.unlink()
    for _ in range(2):
        assert train(followed(log), tmp_path)
        assert read_json(file)["is_finished"]
    points = READ[log](tmp_path / "walk")[0]
    assert {key for key, _ in points} == {*expected(tmp_path / "walk")}


class KilledError(Exception):
    pass


def mean(row):
    return Mean(np.array(row, np.float32), np.ones(len(row), np.float32))


@pytest.mark.parametrize("log", ["tensorboard", "wandb"])
def test_a_kill_after_the_last_checkpoint(log, tmp_path):
    """What was told of the steps that are done again is not told twice."""
    train(followed(), tmp_path)
    run, directory = resolve(followed())["walk"], RunDirectory(tmp_path / "walk")
    whole = directory.metrics.read()
    with pytest.raises(KilledError), tell([log], run, directory):
        raise KilledError  # all was told
    directory.metrics.rewind(4)
    with tell([log], run, directory):
        for record in whole:
            if record.step > 4:
                means = {n: mean(row) for n, row in record.values.items()}
                directory.metrics.append(record.split, record.step, 0.0, means)
    points = READ[log](tmp_path / "walk")[0]
    assert Counter(key for key, _ in points) == expected(tmp_path / "walk")


KILLED = """
import os, signal, sys
from pathlib import Path
from small_runs import walk
from test_curves import followed
from parity_jax.runs import RunDirectory, run_experiment

home = Path(sys.argv[1])

def is_late():
    if RunDirectory(home / "walk").last_step() >= 4:
        os.kill(os.getpid(), signal.SIGKILL)

run_experiment(followed("wandb"), home, quiet=True, should_stop=is_late)
"""


def test_wandb_misses_nothing_after_a_kill(tmp_path):
    """What it was told last it may not have written; the same may come twice."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_SERVICE")}
    env |= {"PYTHONPATH": str(Path(__file__).parent)}
    assert subprocess.run(command, env=env, check=False).returncode == -signal.SIGKILL
    assert train(followed("wandb"), tmp_path)
    points, ids, _ = wandb_runs(tmp_path / "walk")
    assert len(ids) == 1
    assert {key for key, _ in points} == {*expected(tmp_path / "walk")}
    found = {}
    for key, value in points:
        assert found.setdefault(key, value) == value


def test_logs_change_no_number_and_are_free_to_change(tmp_path):
    train(followed(), tmp_path / "plain")
    train_until(2, followed(), tmp_path / "later")
    train(followed("tensorboard"), tmp_path / "later")
    assert records(tmp_path / "later/walk") == records(tmp_path / "plain/walk")
    points, _ = tensorboard(tmp_path / "later/walk")
    assert Counter(key for key, _ in points) == expected(tmp_path / "plain/walk")


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log='wandb'.*'parity-jax\[wandb\]'"):
        train(followed("wandb"), tmp_path)
    assert not [*tmp_path.iterdir()]


def test_without_an_account_one_line_says_what_to_do(tmp_path, monkeypatch):
    def refuse(**options):
        raise wandb.errors.UsageError("No API key configured.\nSee ..")

    monkeypatch.setattr(wandb, "init", refuse)
    run, line = resolve(followed())["walk"], "wandb: No API key configured. .WANDB_MODE"
    with (
        pytest.raises(RunError, match=line),
        tell(["wandb"], run, RunDirectory(tmp_path)),
    ):
        raise AssertionError("it must not begin")


def test_a_log_is_one_of_two_and_named_once():
    typed = parse(["--config.log=wandb,tensorboard"])
    assert apply(Experiment(), typed).log == ("wandb", "tensorboard")
    with pytest.raises(ConfigError, match=r"log.*'tensorbord'.*tensorboard"):
        apply(Experiment(), parse(["--config.log=tensorbord"]))
    with pytest.raises(ConfigError, match="names one twice"):
        Experiment(log=("wandb", "wandb"))
