"""Inspection and play: a listing that is known, exact scores, damage, wrong tokens."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from tiny import tiny_experiment, tiny_gpt2

from parity_jax.analysis.answers import first_wrong, make_answer, marked_text
from parity_jax.analysis.inspection import ancestry, members
from parity_jax.analysis.snapshot import narrowed, open_snapshot
from parity_jax.cli import main
from parity_jax.cli.import_hf import imported_run, write_run
from parity_jax.cli.inspect import Printer
from parity_jax.config import ConfigError, parse_label
from parity_jax.metrics import Mean
from parity_jax.runs import RunDirectory, run_experiment
from parity_jax.runs.checkpoint import digest
from parity_jax.runs.files import read_json
from parity_jax.runs.lineage import Imported
from parity_jax.runs.resolve import resolved_file
from parity_jax.tasks import MultiplicationConfig, ParityConfig
from parity_jax.types import Prompt

GOLDEN = Path(__file__).parent / "golden" / "inspect.txt"
# What may differ between two runs of the same code.
VOLATILE = {
    r"\d{4}-\d\d-\d\dT[\d:+]+": "DATE",
    r"cpu: .* x \d": "DEVICE",
    r"jax [\d.]+": "jax VERSION",
    r"commit \w+\+?": "commit COMMIT",
    r" +$": "",
}


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
    """Type a command: its exit code, what it printed, what it said is wrong."""

    def say(*arguments):
        code = main.run([str(a) for a in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return say


def masked(text, workdir):
    text = text.replace(str(workdir), "RUN")
    for pattern, word in VOLATILE.items():
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    return text


def test_listing(workdir, say, tmp_path):
    code, stage, error = say("inspect", workdir / "grpo")
    assert (code, error) == (0, "")
    found = masked(say("inspect", workdir)[1] + "\n" + stage, workdir)
    (tmp_path / GOLDEN.name).write_text(found)
    told = f"if intended: cp {tmp_path / GOLDEN.name} tests/golden"
    assert found == GOLDEN.read_text(), told


def test_json_agrees_with_the_directory(workdir, say):
    data = json.loads(
        say("inspect", workdir / "grpo", "--json", "--step=2", "--prompts=0")[1]
    )
    assert (data["step"], data["steps"], data["finished"]) == (2, [0, 2], True)
    assert data["config"] == read_json(workdir / "grpo" / "config.json")
    assert data["differs_from_parent"]["parent.path"] == ["", "../pretrain"]
    directory = RunDirectory(workdir / "grpo")
    with directory.saved() as checkpoints:
        arrays = checkpoints.read(2).arrays
    table = {row["path"]: row for row in data["parameters"]}
    for name, row in table.items():
        array = arrays[f"params.{name}"]
        assert (row["shape"], row["size"]) == (list(array.shape[1:]), array[0].size)
        norm = np.sqrt((array[1].astype(float) ** 2).sum())
        assert row["norm"][1] == pytest.approx(norm, rel=1e-6)
    assert data["scores"]["values"] == directory.metrics.read()[-1].values
    assert [m["member"] for m in data["members"]] == ["seed=0", "seed=1"]
    lineage = data["lineage"]
    assert [entry["stage"] for entry in lineage] == ["policy_gradient", "pretrain"]
    assert [entry["content"] for entry in lineage] == [None, "unchanged"]
    assert lineage[1]["step"] == [4]
    experiment = json.loads(say("inspect", workdir, "--json")[1])
    assert [run["name"] for run in experiment["runs"]] == ["pretrain", "grpo"]
    assert experiment["runs"][1]["scores"] == data["scores"]
    assert experiment["runs"][1]["members"] == ["seed=0", "seed=1"]


def test_members_have_their_whole_names(capsys):
    """Where lines are short, names go on in the next one."""
    names = [
        f"p_cot=0.123456789,learning_rate=0.00123456,seed=400000000{i}" for i in (0, 1)
    ]
    for rows in (names, [name.replace(",", ",temperature=0.75,") for name in names]):
        Printer().table(("member", "end"), [(name, "so " * 20) for name in rows])
        lines = capsys.readouterr().out.splitlines()
        shown = "".join(line.partition("so ")[0].strip() for line in lines[1:])
        assert shown.replace("so", "").replace(" ", "") == "".join(rows)


@pytest.mark.parametrize("member", [(), ("--member=seed=1",)])
def test_evaluating_again_gives_the_same_numbers(workdir, say, member):
    options = ("--json", "--step=2", *member, "--prompts=0")
    again = json.loads(say("inspect", workdir / "pretrain", *options, "--evaluate")[1])
    before = json.loads(say("inspect", workdir / "pretrain", *options)[1])
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
    assert say("inspect", run / "grpo", "--prompts=0")[0] == 0
    assert contents(run) == before
    assert (run / "grpo" / "checkpoints" / "3.orbax-checkpoint-tmp-1").exists()


def test_a_parent_that_changed_or_is_gone_is_told(workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    directory = RunDirectory(run / "grpo")
    lineage = directory.read_lineage()

    def content(**parent):
        directory.write_lineage(
            replace(lineage, parent=replace(lineage.parent, **parent))
        )
        entry = ancestry(directory)[1]
        return entry["run"], entry["content"]

    beside = str(run / "pretrain")  # of the same experiment, which was copied
    assert content() == (beside, "unchanged")
    assert content(run="/nowhere/pretrain") == (beside, "unchanged")
    assert content(params_sha256=(digest({}),)) == (beside, "CHANGED")
    assert content(step=(3,))[1] == "not found"
    shutil.rmtree(run / "pretrain")
    assert content() == (str(workdir / "pretrain"), "unchanged")
    assert content(run="/nowhere/other") == ("/nowhere/other", "not found")
    # a parent of the same name is not the run itself, and the line has an end
    assert content(run="/nowhere/grpo") == ("/nowhere/grpo", "not found")


def test_a_run_that_has_not_begun_and_one_that_was_stopped(workdir, say, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    shutil.rmtree(run / "grpo")
    told = say("inspect", run)[1].splitlines()
    assert re.search(r"^  grpo .* pretrain +not started", told[-1])
    directory = RunDirectory(run / "pretrain")
    (run / "pretrain" / "finished.json").unlink()
    with directory.checkpoints(directory.read_config()) as checkpoints:
        arrays = checkpoints.read(2).arrays
        checkpoints.keep_only((0, 2))
        partial = {"loss": Mean(jnp.array([jnp.nan, 1.0]), jnp.ones(2))}
        checkpoints.save(3, arrays, partial, 2)  # as a signal leaves it
        checkpoints.wait()
    assert "3/4 unfinished" in say("inspect", run)[1]
    data = json.loads(say("inspect", run / "pretrain", "--json", "--evaluate")[1])
    assert [m["non_finite"] for m in data["members"]] == [[], []]
    assert data["scores"]["step"] == 3 and data["finished"] is False


def test_evaluating_again_takes_the_prompts_of_the_run(workdir, say, tmp_path):
    """Not those of a file that was edited since."""
    run, prompts = tmp_path / "pretrain", tmp_path / "prompts.txt"
    shutil.copytree(workdir / "pretrain", run)
    prompts.write_text("+-+-=\n")
    directory = RunDirectory(run)
    config = directory.read_config()
    file = resolved_file(str(prompts))
    directory.write_config(replace(config, eval_file=file))
    directory.reopen()  # the end of a run tells of its config
    options = ("inspect", run, "--evaluate", "--json", "--prompts=0")
    values = json.loads(say(*options)[1])["scores"]["values"]
    assert {*values["greedy/accuracy"]} <= {0.0, 1.0}  # of one prompt
    prompts.write_text("----=\n")
    code, printed, error = say(*options)
    assert (code, printed) == (2, "")
    assert error.startswith(f"error: eval_file={str(prompts)!r}: holds other prompts")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "directory='nowhere': must be a directory that a run"),
        (["grpo", "--step=1"], "step=1: must be one of 0, 2"),
        (["grpo", "--member=sed=1"], "did you mean 'seed'?"),
        (["grpo", "--member=seed=7"], "member.seed=7: must be one of 0, 1"),
        (["grpo", "--member=seed"], "must be axes with values"),
        (["grpo", "--member=seed=0,seed=1"], "names seed twice"),
        (["grpo", "--prompts=-1"], "prompts=-1: must be in [0, 1000]"),
        (["grpo", "--step=x"], "argument --step: invalid int value: 'x'"),
        (["grpo", "--stepp=1"], "unrecognized arguments: --stepp=1"),
        (["grpo", "--ste=1"], "unrecognized arguments: --ste=1"),
        ([], "the following arguments are required: DIR"),
        (["gs://bucket/grpo"], "must be on a file system"),
        ([".", "--step=2"], "step=2: has an effect on the directory of one run only"),
        ([".", "--member=seed=0"], "member='seed=0': has an effect on the directory"),
        ([".", "--evaluate"], "evaluate=True: has an effect on the directory of one"),
        ([".", "--prompts=1"], "prompts=1: has an effect on the directory of one"),
        ([".", "--samples=x", "--rows=1"], "samples='x': has an effect on the dir"),
        (["grpo", "--samples=x"], "task.kind='parity': must be text for --samples"),
        (["grpo", "--samples=x", "--evaluate"], "evaluate=True: has no effect with"),
        (["grpo", "--samples=x", "--prompts=1"], "prompts=1: has no effect with"),
    ],
)
def test_a_bad_argument_costs_one_line(workdir, say, arguments, message, monkeypatch):
    monkeypatch.chdir(workdir)
    code, printed, error = say("inspect", *arguments)
    assert (code, printed) == (2, "")
    (line,) = error.splitlines()
    assert line.startswith("error: ") and message in line
    *traceback, last = say("inspect", *arguments, "--debug")[2].splitlines()
    assert last == line and traceback[0].startswith("Traceback")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name", ["config.json", "lineage.json", "metrics.jsonl", "checkpoints"]
)
def test_damage_costs_one_line(workdir, say, tmp_path, name):
    run = tmp_path / "grpo"
    shutil.copytree(workdir / "grpo", run)
    damaged = run / name
    files = damaged.rglob("*") if damaged.is_dir() else [damaged]
    for path in [p for p in files if p.is_file()]:
        truncate(path)
    if name == "metrics.jsonl":  # which ends early when a run is killed
        damaged.write_text("{}\n")
    code, printed, error = say("inspect", run)
    assert (code, printed) == (1, "")
    (line,) = error.splitlines()
    assert str(damaged) in line


def test_member_filters():
    assert parse_label("seed=2,p_cot=0.25") == {"seed": 2, "p_cot": 0.25}
    axes = {"p_cot": (0.25, 0.5), "seed": (20251125, 20251126)}
    assert narrowed(axes, {"p_cot": 0.5}) == axes | {"p_cot": (0.5,)}
    with pytest.raises(ConfigError, match=r"member\.beta"):
        narrowed(axes, {"beta": 0.0})
    with pytest.raises(ConfigError, match="must be one of 20251125, 20251126"):
        narrowed(axes, {"seed": 2.02511e7})  # numbers are told as they can be typed


def test_health_names_leaves_that_are_not_finite(workdir):
    snapshot = open_snapshot(RunDirectory(workdir / "grpo"))
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
    task = ParityConfig(4).make()
    prompt, token_T = read(task, "+-+-="), padded(task, response)
    found = int(first_wrong(task, prompt, token_T[None, None])[0, 0])
    assert found == position
    assert marked_text(task, np.asarray(token_T[: len(response)]), found) == marked


def read(task, line):
    return Prompt(jnp.array(task.read_prompt(line))[None])


def padded(task, response):
    token_T = task.from_text(response)
    pad = task.format.max_len - len(token_T)
    return jnp.pad(token_T, (0, pad), constant_values=task.format.pad_id)


def test_every_way_to_work_it_out_is_right():
    """The full chain, and the leap chain where the task has one."""
    texts = ("-+.", "+--+.", "-+-.")
    for leap, expected in ((2, [[5, 5, 2]]), (1, [[0, 5, 0]])):
        task = ParityConfig(4, leap).make()
        token_1xGxT = jnp.stack([padded(task, text) for text in texts])[None]
        found = first_wrong(task, read(task, "+-+-="), token_1xGxT)
        assert found.tolist() == expected


def test_a_wrong_digit_of_a_product():
    """The same marks for a task whose tokens are words with blanks between them."""
    task = MultiplicationConfig(2).make()
    prompt = read(task, "2 1 * 3 4||")  # 12 * 43
    solution = task.solution(prompt)
    assert task.to_text(solution.short[0]).startswith("#### 6 1 5 0 .")
    token_T = padded(task, "#### 6 1 4 0 .")
    found = int(first_wrong(task, prompt, token_T[None, None])[0, 0])
    assert marked_text(task, np.asarray(token_T[:6]), found) == "#### 6 1 [4] 0 ."
    worked_T = solution.worked[0, 0]
    wrong_T = worked_T.at[2].set(task.from_text("9")[0])
    token_1xGxT = jnp.stack([worked_T, wrong_T])[None]
    found = first_wrong(task, prompt, token_1xGxT)
    assert found.tolist() == [[task.format.max_len, 2]]


def test_bytes_that_are_no_text_are_wrong_prompts(workdir, say, monkeypatch):
    """A byte order mark is none of the prompt."""
    given = io.BytesIO(b"\xef\xbb\xbf+-+-\n\xff\xfe\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(given, encoding="utf-8"))
    code, printed, error = say("play", workdir / "grpo", "--member=seed=1")
    assert (code, error) == (0, "")
    (told,) = [line for line in printed.splitlines() if line.startswith("error")]
    assert "must be among" in told or "must begin with" in told


@pytest.mark.parametrize("argument", ["--rows=3", "--num_samples=3"])
def test_what_has_no_effect_without_samples_is_refused(workdir, say, argument):
    code, printed, error = say("inspect", workdir / "grpo", argument)
    assert (code, printed) == (2, "")
    assert "has no effect without --samples" in error


def test_play(workdir, say, monkeypatch):
    lines = ["+-+-", "+-", "x", "+=+-=", "+-+-="]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    code, printed, error = say("play", workdir / "grpo", "--member=seed=1")
    assert (code, error) == (0, "")
    errors = [line for line in printed.splitlines() if line.startswith("error")]
    assert len(errors) == 3
    assert "must begin with 4 bits" in errors[0] and errors[0] == errors[2]
    assert "must be among" in errors[1]
    snapshot = open_snapshot(RunDirectory(workdir / "grpo"), member={"seed": 1})
    task = snapshot.task
    answers = make_answer(task, snapshot.model)(
        jax.random.fold_in(jax.random.key(0), 0),
        snapshot.params(0),
        read(task, "+-+-="),
        1.0,
    )
    greedy, first = answers.token[0, 0], answers.probability[0, 0, 0]
    assert (first.sum(), greedy[0]) == (pytest.approx(1, abs=1e-5), first.argmax())
    shown = re.findall(r"^  greedy  +(\S+)", printed, flags=re.MULTILINE)
    assert len(shown) == 2 and shown[0] == shown[1]
    length = int(answers.length[0, 0]) + 1
    text = task.to_text(np.asarray(greedy[:length]))
    assert re.sub(r"[][]", "", shown[0]) == text
    assert f"      1  {text[0]} {first.max():.3f}" in printed


def test_play_leaves_unlikely_tokens_out(workdir, say, monkeypatch):
    """One token is left: the sampled answer is the greedy one, however hot."""
    for options, is_greedy in ((["--top_k=1"], 1), (["--top_p=1e-3"], 1), ([], 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO("+-+-\n" * 8))
        run = workdir / "grpo"
        code, printed, error = say("play", run, "--temperature=1.5", *options)
        assert (code, error) == (0, "")
        greedy, sampled = (
            re.findall(rf"^  {name} +(\S+)  ", printed, flags=re.MULTILINE)
            for name in ("greedy", "sampled at 1.5")
        )
        assert len(greedy) == len(sampled) == 8
        assert (sampled == greedy) == is_greedy
        assert re.search(r"\(.*0\.\d{3}", printed)  # alternatives are still shown


def untrained(directory, task_cfg):
    """A run of one member that was not trained."""
    run = imported_run(task_cfg, tiny_gpt2())
    params = run.model.make(task_cfg.make()).init(jax.random.key(0))
    write_run(RunDirectory(directory), run, params, Imported("", "", "gpt2"))


@pytest.mark.parametrize(
    ("task", "lines", "told", "num_errors"),
    [
        ("multiplication", ["2 1 * 3 4||", "2 1 * 3 4", "2 1 * 3"], " * ", 1),
        ("own", ["010", "01x"], "", 1),
    ],
)
def test_any_task_is_played_and_inspected(
    task, lines, told, num_errors, say, tmp_path, monkeypatch
):
    """Also one of a user's own, whose prompts have no common end."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "outside"))
    from toy_task import CopyConfig

    configs = {"multiplication": MultiplicationConfig(2), "own": CopyConfig(3)}
    untrained(tmp_path / "run", configs[task])
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    code, printed, error = say("play", tmp_path / "run", "--temperature=0.5")
    assert (code, error) == (0, "")
    assert told in printed.splitlines()[0]
    answers = [line for line in printed.splitlines() if line.startswith("  greedy")]
    assert len(answers) == len(lines) - num_errors
    assert len({*answers}) == 1  # of the same prompt
    assert "  sampled at 0.5 " in printed
    assert printed.count("error: ") == num_errors
    code, printed, _ = say("inspect", tmp_path / "run", "--prompts=1")
    assert code == 0 and "wrong from token" in printed


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--temperature=0", "temperature=0.0: must be finite and >= 0.001"),
        ("--temperature=1e-30", "temperature=1e-30: must be finite and >= 0.001"),
        ("--temperature=inf", "temperature=inf: must be finite and >= 0.001"),
        ("--top_k=-1", "top_k=-1: must be 0 (all tokens) or positive"),
        ("--top_p=0", "top_p=0.0: must be in (0, 1]"),
        ("--top_p=nan", "top_p=nan: must be in (0, 1]"),
        ("--seed=-1", "seed=-1: must be in [0, 4294967295]"),
    ],
)
def test_bad_numbers(workdir, say, option, message):
    code, printed, error = say("play", workdir / "grpo", option)
    assert (code, printed, error) == (2, "", f"error: {message}\n")


def test_a_closed_standard_input_is_one_line(workdir, say, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    code, printed, error = say("play", workdir / "grpo")
    assert (code, printed) == (2, "")
    assert error == "error: stdin=None: is closed; prompts are read from it\n"


class Stopped:
    """Standard input in which a signal comes."""

    def __init__(self, number):
        self.number = number

    def __iter__(self):
        yield "+-+-"
        os.kill(os.getpid(), self.number)
        yield "+-+-"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_it_with_one_line(workdir, say, number, monkeypatch):
    monkeypatch.setattr("sys.stdin", Stopped(number))
    before = signal.getsignal(number)
    code, printed, error = say("play", workdir / "grpo")
    assert (code, printed.count("greedy  ")) == (75, 2)  # the answer and its column
    assert error == "error: stopped; the same command continues\n"
    assert signal.getsignal(number) == before


def test_as_a_command(workdir):
    """The name of the module does not hide that of the standard library."""
    nowhere = str(workdir / "nowhere")
    command = [sys.executable, "-m", "parity_jax.cli", "inspect", nowhere]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: directory=")


def test_nobody_reads_on(workdir):
    """As with `| head`: no failure, and nothing to say."""
    command = [sys.executable, "-m", "parity_jax.cli", "inspect", str(workdir)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)
