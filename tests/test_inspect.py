"""Inspection and play: a listing that is known, exact scores, damage, wrong tokens."""

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from tiny import tiny_experiment

from experiments import inspect, play
from experiments.arguments import exit_code
from parity_jax.answers import first_wrong, make_answer, marked_text
from parity_jax.checkpoint import Checkpoints, digest
from parity_jax.config import ConfigError, MultiplicationConfig, ParityConfig
from parity_jax.inspection import ancestry, members
from parity_jax.results import read_json, read_records, write_json
from parity_jax.runs import run_experiment
from parity_jax.snapshot import narrow, open_run, parse_member
from parity_jax.tasks import make_task
from parity_jax.types import Hypers

GOLDEN = Path(__file__).parent / "golden" / "inspect.txt"
# What may differ between two runs of the same code.
VOLATILE = {
    r"\d{4}-\d\d-\d\dT[\d:+]+": "DATE",
    r"cpu: .* x \d": "DEVICE",
    r"jax [\d.]+": "jax VERSION",
    r"commit \w+\+?": "commit COMMIT",
    r" +$": "",
}


KEY, SHORT = jax.random.key(0), Hypers(p_cot=0.0)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two stages that learn nothing, so that no number depends on rounding."""
    experiment = tiny_experiment()
    runs = {
        name: replace(run, hypers=replace(run.hypers, learning_rate=0.0))
        for name, run in experiment.runs.items()
    }
    directory = tmp_path_factory.mktemp("inspect") / "run"
    run_experiment(replace(experiment, runs=FrozenDict(runs)), directory, quiet=True)
    return directory


@pytest.fixture
def say(capsys):
    """Run a command: its exit code, what it printed, what it said is wrong."""

    def say(command, *arguments):
        code = exit_code(command.main, [str(a) for a in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return say


def masked(text, workdir):
    text = text.replace(str(workdir), "RUN")
    for pattern, word in VOLATILE.items():
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    return text


def test_listing(workdir, say, tmp_path):
    code, stage, error = say(inspect, workdir / "grpo")
    assert (code, error) == (0, "")
    found = masked(say(inspect, workdir)[1] + "\n" + stage, workdir)
    (tmp_path / GOLDEN.name).write_text(found)
    told = f"if intended: cp {tmp_path / GOLDEN.name} tests/golden"
    assert found == GOLDEN.read_text(), told


def test_json_agrees_with_the_directory(workdir, say):
    data = json.loads(
        say(inspect, workdir / "grpo", "--json", "--step=2", "--prompts=0")[1]
    )
    assert (data["step"], data["steps"], data["finished"]) == (2, [0, 2], True)
    assert data["config"] == read_json(workdir / "grpo" / "config.json")
    assert data["differs_from_parent"]["run.parent"] == ["", "pretrain"]
    checkpoints = Checkpoints(workdir / "grpo", read_only=True)
    arrays = checkpoints.read(2)
    checkpoints.close()
    table = {row["path"]: row for row in data["parameters"]}
    for name, row in table.items():
        array = arrays[f"params.{name}"]
        assert (row["shape"], row["size"]) == (list(array.shape[1:]), array[0].size)
        norm = np.sqrt((array[1].astype(float) ** 2).sum())
        assert row["norm"][1] == pytest.approx(norm, rel=1e-6)
    record = read_records(workdir / "grpo" / "metrics.jsonl")[-1]
    assert data["scores"]["values"] == record["values"]
    assert [m["member"] for m in data["members"]] == ["seed=0", "seed=1"]
    lineage = data["lineage"]
    assert [entry["stage"] for entry in lineage] == ["policy_gradient", "pretrain"]
    assert [entry["content"] for entry in lineage] == [None, "unchanged"]
    assert lineage[1]["step"] == 4


@pytest.mark.parametrize("member", ["", "seed=1"])
def test_evaluating_again_gives_the_same_numbers(workdir, say, member):
    options = ("--json", "--step=2", f"--member={member}", "--prompts=0")
    again = json.loads(say(inspect, workdir / "pretrain", *options, "--evaluate")[1])
    before = json.loads(say(inspect, workdir / "pretrain", *options)[1])
    assert again["scores"].pop("source") == "evaluated again"
    assert before["scores"].pop("source") == "recorded"
    assert again["scores"] == before["scores"]
    assert before["scores"]["step"] == 2
    assert again["parameters"] == before["parameters"]
    assert len(before["members"]) == (1 if member else 2)


def contents(directory):
    files = [p for p in directory.rglob("*") if p.is_file()]
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def test_nothing_is_touched(workdir, say, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    (run / "grpo" / "checkpoints" / "3.orbax-checkpoint-tmp-1").mkdir()
    before = contents(run)
    assert say(inspect, run / "grpo", "--prompts=0")[0] == 0
    assert contents(run) == before
    assert (run / "grpo" / "checkpoints" / "3.orbax-checkpoint-tmp-1").exists()


def test_a_parent_that_changed_or_is_gone_is_told(workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    lineage = read_json(run / "grpo" / "lineage.json")

    def content(**parent):
        changed = lineage | {"parent": lineage["parent"] | parent}
        write_json(run / "grpo" / "lineage.json", changed)
        entry = ancestry(run / "grpo")[1]
        return entry["run"], entry["content"]

    assert content() == (str(workdir / "pretrain"), "unchanged")
    beside = str(run / "pretrain")  # the recorded place is gone: it moved with the run
    assert content(run="/nowhere/pretrain") == (beside, "unchanged")
    assert content(params_sha256=digest({})) == (str(workdir / "pretrain"), "CHANGED")
    assert content(step=3)[1] == "not found"
    assert content(run="/nowhere/other")[1] == "not found"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "directory='nowhere': must be a directory that a run"),
        (["grpo", "--step=1"], "step=1: must be one of 0, 2"),
        (["grpo", "--member=sed=1"], "did you mean 'seed'?"),
        (["grpo", "--member=seed=7"], "member.seed=7: must be one of 0, 1"),
        (["grpo", "--member=seed"], "must be axes with values"),
    ],
)
def test_a_bad_argument_costs_one_line(workdir, say, arguments, message, monkeypatch):
    monkeypatch.chdir(workdir)
    code, printed, error = say(inspect, *arguments)
    assert (code, printed) == (2, "")
    (line,) = error.splitlines()
    assert line.startswith("error: ") and message in line


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["config.json", "lineage.json", "checkpoints"])
def test_damage_costs_one_line(workdir, say, tmp_path, name):
    run = tmp_path / "grpo"
    shutil.copytree(workdir / "grpo", run)
    damaged = run / name
    files = damaged.rglob("*") if damaged.is_dir() else [damaged]
    for path in [p for p in files if p.is_file()]:
        truncate(path)
    code, printed, error = say(inspect, run)
    assert (code, printed) == (1, "")
    (line,) = error.splitlines()
    assert str(damaged) in line


def test_member_filters():
    assert parse_member("seed=2,p_cot=0.25") == {"seed": 2, "p_cot": 0.25}
    axes = {"p_cot": (0.25, 0.5), "seed": (0, 1)}
    assert narrow(axes, {"p_cot": 0.5}) == {"p_cot": (0.5,), "seed": (0, 1)}
    with pytest.raises(ConfigError, match=r"member\.beta"):
        narrow(axes, {"beta": 0.0})


def test_health_names_leaves_that_are_not_finite(workdir):
    snapshot = open_run(workdir / "grpo")
    snapshot.arrays["params.embed.embedding"][1, 0, 0] = np.nan
    snapshot.arrays["status"][1] = 1
    well, ill = members(snapshot)
    assert (well["frozen"], well["non_finite"]) == (False, [])
    assert (ill["frozen"], ill["non_finite"]) == (True, ["params.embed.embedding"])
    assert ill["status"].startswith("diverged")


@pytest.mark.parametrize(
    ("response", "position", "marked"),
    [
        ("+--+.", 5, "+--+."),
        ("+--.", 3, "+--[.]"),  # ends early
        ("+-++.", 2, "+-[+]+."),
        ("--++.", 0, "[-]-++."),
        ("+--++", 4, "+--+[+]"),  # does not end
        ("+.", 5, "+."),
        ("-.", 0, "[-]."),
        (".", 0, "[.]"),
    ],
)
def test_first_wrong_token(response, position, marked):
    task = make_task(ParityConfig(4))
    prompt_1xL, token_T = task.from_text("+-+-=")[None], padded(task, response)
    found = int(first_wrong(task, prompt_1xL, token_T[None, None], False)[0, 0])
    assert found == position
    assert marked_text(task, np.asarray(token_T[: len(response)]), found) == marked


def padded(task, response):
    token_T = task.from_text(response)
    return jnp.pad(token_T, (0, task.response_len - len(token_T)))


def test_leap_chains_are_right_where_they_are_taught():
    task = make_task(ParityConfig(4, leap=2))
    prompt_1xL = task.from_text("+-+-=")[None]
    responses = [padded(task, text) for text in ("-+.", "+--+.", "-+-.")]
    token_1xGxT = jnp.stack(responses)[None]
    assert first_wrong(task, prompt_1xL, token_1xGxT, True).tolist() == [[5, 5, 2]]
    assert first_wrong(task, prompt_1xL, token_1xGxT, False).tolist() == [[0, 5, 0]]


def test_a_wrong_digit_of_a_product():
    """The same marks for a task whose tokens are words with blanks between them."""
    task = make_task(MultiplicationConfig(2))
    prompt_1xL = task.read_prompt("2 1 * 3 4||")[None]  # 12 * 43
    answer = task.to_text(task.demonstrate(KEY, prompt_1xL, SHORT).response[0])
    assert answer.startswith("#### 6 1 5 0 .")
    token_T = padded(task, "#### 6 1 4 0 .")
    found = int(first_wrong(task, prompt_1xL, token_T[None, None], False)[0, 0])
    assert marked_text(task, np.asarray(token_T[:6]), found) == "#### 6 1 [4] 0 ."


def test_play(workdir, say, monkeypatch):
    lines = ["+-+-", "+-", "x", "+=+-=", "+-+-="]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    code, printed, error = say(play, workdir / "grpo", "--member=seed=1")
    assert (code, error) == (0, "")
    errors = [line for line in printed.splitlines() if line.startswith("error")]
    assert len(errors) == 3
    assert "must begin with 4 bits" in errors[0] and errors[0] == errors[2]
    assert "must be among" in errors[1]
    snapshot = open_run(workdir / "grpo", member={"seed": 1})
    prompt_1xL = snapshot.task.from_text("+-+-=")[None]
    answers = make_answer(snapshot)(
        jax.random.fold_in(jax.random.key(0), 0),
        snapshot.params(0),
        prompt_1xL,
        jnp.float32(1.0),
    )
    greedy, first = answers.token[0, 0], answers.probability[0, 0, 0]
    assert (first.sum(), greedy[0]) == (pytest.approx(1, abs=1e-5), first.argmax())
    shown = re.findall(r"^  greedy  +(\S+)", printed, flags=re.MULTILINE)
    assert len(shown) == 2 and shown[0] == shown[1]
    length = int(answers.length[0, 0]) + 1
    text = snapshot.task.to_text(np.asarray(greedy[:length]))
    assert re.sub(r"[][]", "", shown[0]) == text
    assert f"      1  {text[0]} {first.max():.3f}" in printed


def test_bad_temperature(workdir, say):
    code, printed, error = say(play, workdir / "grpo", "--temperature=0")
    assert (code, printed) == (2, "")
    assert error == "error: temperature=0.0: must be positive\n"


def test_as_a_command(workdir):
    """The name of the module does not hide that of the standard library."""
    command = [sys.executable, "-m", "experiments.inspect", str(workdir / "nowhere")]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: directory=")
