"""The command line: exit codes, one line for an error, and runs that continue."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.main import (
    check_overrides,
    default_config,
    load_experiment,
    with_scale,
)
from parity_jax.checkpoint import Checkpoints, digest
from parity_jax.config import ConfigError
from parity_jax.results import read_json, read_records

ROOT = Path(__file__).parents[1]
EXPERIMENT = '''
"""A tiny experiment."""

import sys
from dataclasses import replace

sys.path.insert(0, {tests!r})

from tiny import tiny_experiment

from parity_jax.config import to_config_dict
from parity_jax.results import Claim, write_claims


def get_config():
    experiment = tiny_experiment()
    pretrain = replace(experiment.runs["pretrain"], num_steps=40, checkpoint_every=4)
    runs = experiment.runs.copy({{"pretrain": pretrain}})
    return to_config_dict(replace(experiment, runs=runs))


def analyse(workdir):
    write_claims(workdir, [Claim("X", "it ran", "yes", 1, "exact", True)])
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the experiment file."""
    place = tmp_path_factory.mktemp("cli")
    source = EXPERIMENT.format(tests=str(ROOT / "tests"))
    (place / "tiny_run.py").write_text(source)
    return place


def start(place, *args):
    command = [sys.executable, "-m", "experiments.main", *args]
    # Programs compiled by one process are there for the next.
    env = os.environ | {"XDG_CACHE_HOME": str(place / "cache")}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE
    )


def launch(place, *args):
    """Exit code and what was said on stderr."""
    process = start(place, *args)
    _, said = process.communicate()
    return process.returncode, said


def options(place, workdir):
    return f"--config={place / 'tiny_run.py'}", f"--workdir={workdir}"


@pytest.fixture(scope="module")
def finished(place):
    workdir = place / "finished"
    code, said = launch(place, *options(place, workdir))
    assert code == 0, said
    return workdir


def contents(workdir):
    """Records without their seconds, and the digest of the last checkpoint, by run."""
    out = {}
    for name in ("pretrain", "grpo"):
        records = read_records(workdir / name / "metrics.jsonl")
        values = [(r["split"], r["step"], r["values"]) for r in records]
        checkpoints = Checkpoints(workdir / name)
        steps = checkpoints.steps()
        out[name] = (values, steps, digest(checkpoints.read(steps[-1])))
        checkpoints.close()
    return out


def test_a_run_leaves_the_documented_files(finished):
    assert {p.name for p in finished.iterdir()} == {
        ".lock",
        "config.json",
        "claims.json",
        "pretrain",
        "grpo",
    }
    assert read_json(finished / "claims.json")[0]["holds"] is True
    for name in ("pretrain", "grpo"):
        assert {p.name for p in (finished / name).iterdir()} == {
            "config.json",
            "lineage.json",
            "checkpoints",
            "metrics.jsonl",
            "finished.json",
        }


def test_the_same_command_again_does_nothing_and_another_is_refused(place, finished):
    changing = ("claims.json", ".lock")

    def times():
        files = [p for p in finished.rglob("*") if p.is_file()]
        return {p: p.stat().st_mtime_ns for p in files if p.name not in changing}

    before = times()
    code, said = launch(place, *options(place, finished), "--verbosity=-1")
    assert (code, said, times()) == (0, "", before)
    changed = "--config.runs.grpo.num_steps=3"
    code, said = launch(place, *options(place, finished), changed)
    assert code == 2 and times() == before
    (line,) = said.splitlines()
    assert "holds another configuration" in line
    assert "runs.grpo.num_steps is 2 there, 3 here" in line


def test_a_killed_run_continues_as_if_nothing_had_happened(place, finished):
    workdir = place / "killed"
    process = start(place, *options(place, workdir))
    checkpoints = workdir / "pretrain" / "checkpoints"
    while not any((checkpoints / str(n)).exists() for n in range(4, 40)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "pretrain" / "finished.json").exists()
    with (workdir / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"split": "tr')  # as if cut off in the middle of a line
    code, said = launch(place, *options(place, workdir))
    assert code == 0, said
    assert int(re.search(r"continuing at step (\d+)", said)[1]) >= 4
    assert json.dumps(contents(workdir)) == json.dumps(contents(finished))


def test_sigterm_saves_and_asks_to_be_requeued(place, finished):
    workdir = place / "stopped"
    process = start(place, *options(place, workdir))
    while not (workdir / "pretrain" / "checkpoints" / "0").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == os.EX_TEMPFAIL == 75, said
    assert re.search(r"stopped at step \d+ and saved; the same command continues", said)
    code, said = launch(place, *options(place, workdir))
    assert code == 0, said
    assert json.dumps(contents(workdir)) == json.dumps(contents(finished))


def test_a_failed_run_costs_one_line_and_exit_code_1(place, finished):
    damaged = place / "damaged"
    shutil.copytree(finished, damaged)
    (damaged / "grpo" / "finished.json").write_text("{")
    code, said = launch(place, *options(place, damaged))
    assert code == 1
    (line,) = said.splitlines()
    assert "grpo/finished.json: damaged" in line


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("--config.runs.grpo.num_stepz=3", ("runs.grpo.num_stepz", "'num_steps'")),
        ("--config.model.depth=0", ("model.depth=0", "at least 1")),
        ("--wokdir=x", ("wokdir",)),
    ],
)
def test_a_mistake_costs_one_line_and_exit_code_2(place, argument, parts, tmp_path):
    workdir = tmp_path / "run"
    code, said = launch(place, *options(place, workdir), argument)
    assert code == 2
    (line,) = said.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in parts), line
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("override", "name", "allowed"),
    [
        ("evaluat.num_prompts=4", "evaluat", "did you mean 'evaluate'"),
        ("axes.p_cott=(0.1,)", "axes.p_cott", "did you mean 'p_cot'"),
        ("task.num_bits=four", "task.num_bits", "a whole number"),
        ("task.num_bits=4.5", "task.num_bits", "a whole number"),
        ("runs.grpo.hypers.p_cot=much", "runs.grpo.hypers.p_cot", "a number"),
        ("task.num_bits.x=1", "task.num_bits.x", "unknown field"),
    ],
)
def test_bad_overrides(place, override, name, allowed):
    with pytest.raises(ConfigError) as info:
        check_overrides(["main", options(place, "x")[0], f"--config.{override}"])
    assert info.value.name == name
    assert allowed in str(info.value)


def test_good_overrides(place):
    file = options(place, "x")[0]
    check_overrides(
        ["main", file, "--config.task.num_bits=5", "--config.axes.seed=(0,)"]
    )
    check_overrides(["main", "--workdir=x"])


def test_the_scale_is_an_argument_of_the_experiment():
    file = "--config=experiments/c1_c3_mixtures.py"
    assert with_scale(["main", file, "--config.scale=paper", "--workdir=x"]) == [
        "main",
        f"{file}:paper",
        "--workdir=x",
    ]
    large = default_config("experiments/c1_c3_mixtures.py:paper")
    assert large.task.num_bits > default_config(file.partition("=")[2]).task.num_bits


def test_a_scale_that_does_not_exist_is_an_error(place):
    with pytest.raises(ConfigError, match="valid: cpu, paper"):
        default_config("experiments/c1_c3_mixtures.py:papr")
    with pytest.raises(ConfigError, match="only one scale"):
        default_config(f"{place / 'tiny_run.py'}:paper")


def test_a_missing_experiment_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.py"):
        load_experiment("experiments/nowhere.py")
