"""The command line: exit codes, one line for an error, and runs that continue."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from small_runs import contents

from parity_jax.cli.main import COMMANDS, run
from parity_jax.runs import RunDirectory
from parity_jax.runs.files import read_json

ROOT = Path(__file__).parents[1]
EXPERIMENT = '''
"""A tiny experiment."""

import sys
from dataclasses import replace

sys.path.insert(0, {tests!r})

from tiny import tiny_experiment

from parity_jax.analysis import Claim


def get_config():
    experiment = tiny_experiment()
    pretrain = replace(experiment.runs["pretrain"], num_steps=40, checkpoint_every=4)
    runs = experiment.runs.copy({{"pretrain": pretrain}})
    return replace(experiment, runs=runs)


def claims(results):
    return [Claim.at_least("C1", results["grpo"]["t1/p_long"], 0)]
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the experiment file."""
    place = tmp_path_factory.mktemp("cli")
    write(place / "tiny_run.py", EXPERIMENT.format(tests=str(ROOT / "tests")))
    return place


def write(path, text):
    path.write_text(text)
    return path


def start(place, *args, **env):
    """A process of its own."""
    command = [sys.executable, "-m", "parity_jax.cli", *map(str, args)]
    env = os.environ | {name: str(value) for name, value in env.items()}
    return subprocess.Popen(
        command, cwd=place, env=env, text=True, stderr=subprocess.PIPE
    )


def launch(place, *args, **env):
    """Exit code and what was said on stderr."""
    process = start(place, *args, **env)
    _, said = process.communicate()
    return process.returncode, said


def options(place, workdir):
    return "run", f"--config={place / 'tiny_run.py'}", f"--workdir={workdir}"


@pytest.fixture(scope="module")
def finished(place):
    workdir = place / "finished"
    code, said = launch(place, *options(place, workdir))
    assert code == 0, said
    return workdir


def one_line(code, expected, said, *parts):
    assert code == expected, said
    (line,) = said.splitlines()
    assert line.startswith("error: "), line
    assert all(part in line for part in parts), line


def test_a_run_leaves_the_documented_files(finished):
    files = {"config.json", "claims.json", "command.txt", "pretrain", "grpo", ".lock"}
    assert {p.name for p in finished.iterdir()} == files
    assert read_json(finished / "claims.json")[0]["holds"] is True
    files = {"config.json", "lineage.json", "checkpoints", "metrics.jsonl", ".lock"}
    for name in ("pretrain", "grpo"):
        found = {p.name for p in (finished / name).iterdir()}
        assert found == files | {"finished.json"}


@pytest.mark.parametrize("holds", [True, False])
def test_a_run_ends_with_what_holds_and_where_it_is(
    holds, finished, place, tmp_path, capsys, fresh_imports
):
    workdir = shutil.copytree(finished, tmp_path / "run")
    claim = "Claim.at_least('C{}', 1.0, {})"
    claims = f"[{claim.format(1, 0)}, {claim.format(2, 0 if holds else 2)}]"
    text = "from tiny_run import get_config\nfrom parity_jax.analysis import Claim\n"
    text += f"def claims(results): return {claims}\n"
    file = write(place / f"told_{holds}.py", text)
    command = ["run", f"--config={file}", f"--workdir={workdir}"]
    assert run([*command, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    sys.modules.pop(file.stem)
    assert run(command) == 0
    hold = "2 of 2 claims hold" if holds else "1 of 2 claims hold, not C2"
    assert capsys.readouterr().out == f"{hold}; {workdir}: claims.json\n"


def test_the_same_command_again_does_nothing(place, finished):
    rewritten = ("claims.json", "command.txt", "config.json", ".lock")

    def times():
        files = [p for p in finished.rglob("*") if p.is_file()]
        return {p: p.stat().st_mtime_ns for p in files if p.name not in rewritten}

    before = times()
    code, said = launch(place, *options(place, finished), "--quiet")
    assert (code, said, times()) == (0, "", before)
    changed = "--config.runs.grpo.hypers.p_cot=0.9"
    code, said = launch(place, *options(place, finished), changed)
    one_line(code, 2, said, "runs.grpo.hypers.p_cot=0.9", "is 0.25 there, 0.9 here")
    assert times() == before


def test_a_killed_run_continues_as_if_nothing_had_happened(place, finished):
    workdir = place / "killed"
    process = start(place, *options(place, workdir))
    checkpoints = workdir / "pretrain" / "checkpoints"
    while not any((checkpoints / str(n)).exists() for n in range(4, 40)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (workdir / "pretrain" / "finished.json").exists()
    with (workdir / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"split": "tr')  # as if cut off in the middle of a line
    code, said = launch(place, *options(place, workdir))
    assert code == 0, said
    assert int(re.search(r"continuing at step (\d+)", said)[1]) >= 4
    assert contents(workdir) == contents(finished)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_asks_to_be_requeued(place, finished, number):
    workdir = place / f"stopped_{number}"
    process = start(place, *options(place, workdir))
    while not (workdir / "pretrain" / "checkpoints" / "0").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == os.EX_TEMPFAIL == 75, said
    assert re.search(r"stopped (at|before) .*; the same command continues", said)
    code, said = launch(place, *options(place, workdir))
    assert code == 0, said
    assert contents(workdir) == contents(finished)


SLOW = """
import time

def get_config():
    from tiny_run import get_config
    return get_config()

def claims(results):
    open({mark!r}, "w").close()
    time.sleep(60)
"""


def test_a_signal_in_an_analysis_stops_at_once(place, finished):
    """Nothing is left to save: 75, and no traceback."""
    mark = place / "analysing"
    file = write(place / "slow_run.py", SLOW.format(mark=str(mark)))
    process = start(place, "run", f"--config={file}", f"--workdir={finished}")
    while not mark.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    one_line(process.returncode, 75, said, "stopped; the same command continues")


def in_process(capsys, *args):
    code = run([*map(str, args)])
    return code, capsys.readouterr().err


MISTAKES = [
    ("--config.runs.grpo.num_stepz=3", ("runs.grpo.num_stepz", "'num_steps'")),
    ("--config.model.depth=0", ("model.depth=0", "at least 1")),
    ("--config.model.depth=1000000", ("model.depth=1000000", "at most 1000")),
    ("--wokdir=x", ("wokdir",)),
    ("stray", ("stray", "options start with --")),
    ("--only=grop", ("only='grop'", "did you mean 'grpo'")),
    ("--workdir=", ("--workdir=''", "is empty")),
    ("--workdir= ", ("workdir=' '", "must be the path")),
    ("--workdir=a\\b", ("workdir=", "must not contain a backslash")),
    ("--workdir=/proc/version", ("workdir=", "/proc/version must be a directory")),
    ("--workdir=/proc/version/x", ("workdir=", "/proc/version must be a directory")),
    (f"--workdir={'a' * 300}", ("workdir=", "File name too long")),
    ("--workdir=/proc/x", ("workdir='/proc/x", "cannot be written: No such file")),
    ("--only=", ("--only=", "is empty")),
    ("--helpfull", ("--help lists the flags",)),
    ("--profile=/proc/version", ("--profile=", "must be a directory")),
    ("--profile=/proc/version/x", ("--profile=", "cannot be made: Not a directory")),
    ("--target=h100x1", ("--target='h100x1'", "--dry_run compiles")),
    ("--config.axes.learning_rate=1e39", ("axes.learning_rate", "as float32 can")),
    ("--config.runs.grpo.hypers.temperature=1e39", ("must be, as float32 can",)),
    ("--config.runs.grpo.hypers.learning_rate=1e-50", ("e-50", "as float32 can")),
    ("--config.evaluate.temperatures=1e39", ("temperatures", "as float32 can")),
    (
        "--config.axes.seed=0,0",
        ("axes.seed=(0, 0): values of an",),
    ),
    ("--config.axes.seed=1_0", ("1_0", "must be a number")),
    (f"--config.evaluate.num_prompts={2**40}", ("num_prompts", "must be at most")),
    ("--config.population.num_devices=99", ("num_devices=99", "must be at most 2")),
    ("--workdir=gs://bucket/run", ("gs://bucket/run", "file system")),
    ("--workdir=~no.body/runs", ("workdir='~no.body/runs'", "no such home")),
    ("--config=~no.body/own.py", ("config='~no.body/own.py'", "no such home")),
    ("--config.eval_file=~no.body/x", ("eval_file='~no.body/x'", "no such home")),
    ("--config.runs.pretrain.parent=~no.body/x", ("parent=", "no such home")),
    (f"--config={'a' * 300}.py", ("config=", "File name too long")),
    (f"--config.eval_file={'a' * 300}", ("eval_file=", "File name too long")),
    (f"--config.runs.pretrain.parent={'a' * 300}", ("parent=", "name too long")),
    (f"--flagfile={sys.executable}", ("flag='--flagfile=", "cannot be read")),
    ("--flagfile=/", ("flag='--flagfile=/'", "Is a directory")),
    ("--flagfile=/nonexistent", ("flag='--flagfile=/nonexistent': Unable to",)),
    ("--config=nowhere.py", ("nowhere.py", "must be an experiment file")),
    ("--config.scale=paper", ("scale='paper'", "only one scale")),
    ("--config.task.num_bits", ("task.num_bits", "needs a value")),
    ("--config.scale", ("scale=None", "needs a value")),
    ("--config.eval_file=nowhere.txt", ("eval_file='nowhere.txt'", "cannot be read")),
    ("--config.eval_file=/dev/stdin", ("eval_file='/dev/stdin'", "must be a file")),
]


@pytest.mark.parametrize(("argument", "parts"), MISTAKES)
def test_a_mistake_costs_one_line_and_exit_code_2(
    place, argument, parts, tmp_path, capsys, monkeypatch, fresh_imports
):
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "run"
    name = argument.partition("=")[0]
    given = [
        each for each in options(place, workdir) if not each.startswith(name + "=")
    ]
    one_line(*spliced(in_process(capsys, *given, argument)), *parts)
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_stays_where_it_is(
    place, tmp_path, capsys, monkeypatch, fresh_imports
):
    """A relative --workdir would be another one behind an os.chdir."""
    monkeypatch.chdir(tmp_path)
    file, elsewhere = tmp_path / "moved.py", tmp_path / "elsewhere"
    elsewhere.mkdir()
    go = f"import os\nfrom example import *\nos.chdir({str(elsewhere)!r})\n"
    file.write_text(go)
    monkeypatch.setattr(sys, "path", [str(ROOT / "experiments"), *sys.path])
    result = in_process(capsys, "run", f"--config={file}", "--workdir=run")
    one_line(*spliced(result), "must not change the working directory", "elsewhere")
    assert sorted(tmp_path.iterdir()) == [elsewhere, file]
    assert not list(elsewhere.iterdir())


def test_claims_stay_where_they_are(finished, place, tmp_path, capsys, fresh_imports):
    """Those of a finished run too, which are not rehearsed."""
    shutil.copytree(finished, place / "again")
    text = "import os\nfrom tiny_run import get_config\n"
    text += "from parity_jax.analysis import Claim\ndef claims(results):\n"
    text += (
        f"    os.chdir({str(tmp_path)!r})\n    return [Claim.at_least('C1', 1, 0)]\n"
    )
    file = write(place / "leaving.py", text)
    home = Path.cwd()
    os.chdir(place)
    try:
        result = in_process(capsys, "run", f"--config={file}", "--workdir=again")
    finally:
        os.chdir(home)
    one_line(*spliced(result), "leaving.py", "must not change the working directory")
    assert read_json(place / "again/claims.json") == read_json(finished / "claims.json")
    assert not list(tmp_path.iterdir())


def test_claims_and_answer_are_of_one_file(finished, place, capsys, fresh_imports):
    """If one of them cannot be made, the others stay what they are too."""
    home = shutil.copytree(finished, place / "both")
    text = "from tiny_run import get_config\nfrom parity_jax.analysis import *\n"
    text += "def claims(r): return [Claim.at_least('C1', {0}, 0)]\n"
    text += "def answer(r): return {1}\n"
    file = place / "answering.py"
    for number, answer, code in (
        ("1", "Answer('So?', 'It is 1.')", 0),
        ("2", "'2'", 2),
        ("3", "Answer('So?', 'It is 3.')", 0),
    ):
        write(file, text.format(number, answer))
        sys.modules.pop("answering", None)
        command = ("run", f"--config={file}", f"--workdir={home}", "--quiet")
        assert in_process(capsys, *command)[0] == code
        measured = read_json(home / "claims.json")[0]["measured"]
        assert measured == (3 if number == "3" else 1)
        answered = read_json(home / "answer.json")["answer"]
        assert answered == f"It is {measured}."


def test_the_directory_of_a_sweep_is_no_workdir(place, tmp_path, capsys, fresh_imports):
    (tmp_path / "sweep.json").write_text("{}")
    result = in_process(capsys, *options(place, tmp_path))
    one_line(*spliced(result), "is the directory of a sweep")
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.json"]


def test_settings_stay_as_they_are_while_own_code_is_called(
    place, tmp_path, capsys, fresh_imports
):
    """Programs that are traced later would be others than those that were checked."""
    text = "import jax\nimport jax.numpy as jnp\n"
    text += "def unsettled(prompt, response, data):\n"
    text += "    jax.config.update('jax_random_seed_offset', 1)\n"
    text += "    return jnp.ones(response.shape[:2])\n"
    write(place / "unsettled.py", text)
    reward = "--config.runs.grpo.stage.rollout.rewards=unsettled:unsettled"
    for more in ([], ["--dry_run"]):
        try:
            command = [*options(place, tmp_path / "run"), reward, *more]
            code, said = in_process(capsys, *command)
        finally:
            jax.config.update("jax_random_seed_offset", 0)
        assert code == 2 and not (tmp_path / "run").exists()
        last = said.splitlines()[-1]
        assert last.startswith("error: ") and "must not change jax_random" in last


def test_settings_stay_as_they_are_while_a_config_is_made(
    place, tmp_path, capsys, fresh_imports, monkeypatch
):
    """Not at the import either: a run would be in float64, unasked."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "experiments"), *sys.path])
    file, update = tmp_path / "wide.py", "jax.config.update('jax_enable_x64', True)"
    file.write_text(f"import jax\nfrom example import *\n{update}\n")
    try:
        command = ["run", f"--config={file}", f"--workdir={tmp_path / 'run'}"]
        result = in_process(capsys, *command)
    finally:
        jax.config.update("jax_enable_x64", False)
    one_line(*spliced(result), "must not change jax_enable_x64")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ("--only=nope", "only='nope': unknown; valid: grpo, pretrain"),
        ("--quiet", "--quiet=True: --dry_run is there to say what will be run"),
        ("--debug=maybe", "flag --debug=maybe: Non-boolean argument to boolean flag"),
    ],
)
def test_a_dry_run_says_what_is_wrong_and_nothing_else(
    place, tmp_path, capsys, fresh_imports, wrong, part
):
    command = options(place, tmp_path / "run")
    one_line(*spliced(in_process(capsys, *command, "--dry_run", wrong)), part)


@pytest.mark.parametrize("argument", ["--config.model.dept=3", "--dry_run"])
def test_a_trace_is_left_by_nothing_that_does_not_run(
    place, argument, tmp_path, capsys, fresh_imports
):
    trace = tmp_path / "trace"
    code, said = in_process(
        capsys, *options(place, tmp_path / "run"), f"--profile={trace}", argument
    )
    one_line(code, 2, said)
    assert list(tmp_path.iterdir()) == []


def test_no_trace_of_runs_that_had_ended_is_told(
    place, finished, tmp_path, capsys, fresh_imports
):
    command = (*options(place, finished), f"--profile={tmp_path / 'trace'}")
    code, said = in_process(capsys, *command)
    assert code == 0 and "all runs had ended, so nothing was run" in said
    assert not (tmp_path / "trace").exists()


def test_a_target_is_known_and_its_compiler_is_there(place, tmp_path):
    """In a process of its own: JAX is told that nothing will be run."""
    for name, parts in {
        "h100": ("--target='h100'", "must be one of h100x1, "),
        "h100x1": ("--target='h100x1'", "pip install -e .[cuda13]"),
    }.items():
        arguments = options(place, tmp_path / "run")
        code, said = launch(place, *arguments, "--dry_run", f"--target={name}")
        one_line(code, 2, said, *parts)
    assert not (tmp_path / "run").exists()


def spliced(result):
    code, said = result
    return code, 2, said


@pytest.fixture
def fresh_imports(monkeypatch):
    """Experiments are imported anew, and the search for imports stays as it was."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        module = sys.modules[name]
        if not str(getattr(module, "__file__", "")).startswith(sys.prefix):
            del sys.modules[name]


BROKEN = {
    "syntax": ("def get_config(:", "SyntaxError"),
    "import": ("import nowhere_at_all", "ModuleNotFoundError"),
    "raises": ("def get_config():\n    raise KeyError('x')", "KeyError"),
    "nothing": ("x = 1", "must define get_config"),
    "class": ("get_config = dict", "must define get_config as a function"),
    "base": (
        "class Mine(BaseException): pass\ndef get_config():\n    raise Mine('x')",
        "Mine: x",
    ),
    "speechless": (
        "class Mine(Exception):\n    def __str__(self): raise OSError\n"
        "def get_config():\n    raise Mine",
        "Mine:",
    ),
    "exits": ("import sys\nsys.exit(0)", "SystemExit"),
    "stops": ("def get_config():\n    raise SystemExit('x')", "SystemExit: x"),
    "returns": ("def get_config():\n    return {}", "must return an Experiment"),
    "a_class": (
        "from parity_jax.experiment import Experiment, RunConfig\n"
        "from parity_jax.stages import PretrainConfig\n"
        "def get_config():\n"
        "    return Experiment(runs={'a': RunConfig(stage=PretrainConfig)})",
        "runs.a.stage='PretrainConfig': is a class",
    ),
    "a_long_name": (
        "from parity_jax.experiment import Experiment, RunConfig\n"
        "def get_config():\n"
        "    return Experiment(runs={'x' * 300: RunConfig()})",
        "must be a name: letters, digits and _, at most 200 bytes",
    ),
}


def test_a_file_is_read_anew_and_takes_no_module_s_place(
    tmp_path, capsys, fresh_imports
):
    """As in a notebook, where a mistake is mended and the command given again."""
    file = tmp_path / "again.py"
    command = ["run", f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    for text, part in (
        ("x = 1", "must define get_config"),
        ("def get_config():\n    return {}", "must return an Experiment"),
    ):
        write(file, text)
        one_line(*spliced(in_process(capsys, *command)), part)
    other = write(tmp_path / "json.py", "x = 1")
    result = in_process(capsys, "run", f"--config={other}", command[-1])
    one_line(*spliced(result), "json is a module that is imported already")


SHOWN = ("syntax", "import", "raises", "exits", "stops", "base", "speechless")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_experiment_file_is_named(name, tmp_path, capsys, fresh_imports):
    text, part = BROKEN[name]
    file = write(tmp_path / f"broken_{name}.py", text)
    code, said = in_process(
        capsys, "run", f"--config={file}", f"--workdir={tmp_path / 'run'}"
    )
    assert code == 2 and not (tmp_path / "run").exists()
    last = said.splitlines()[-1]
    assert last.startswith("error: ") and part in last
    assert ("Traceback" in said or "SyntaxError" in said) == (name in SHOWN)


OWN = """
from dataclasses import replace
from tiny_run import get_config as base
import jax.numpy as jnp

def shape_of_prompts(prompt, response, data):
    return (prompt.token[:, 0] == 3).astype(float)

def scalar(prompt, response, data):
    return 1.0

async def awaited(prompt, response, data):
    return jnp.ones(response.shape[:2])

def complex_numbers(prompt, response, data):
    return 1j * jnp.ones(response.shape[:2])

def two_arguments(prompt, response):
    return jnp.ones(response.shape[:2])

def fails(prompt, response, data):
    raise ZeroDivisionError("never pays")

def needs_what_is_not_measured(results):
    return results["grpo"]["t0.5/p_long"]
"""


@pytest.mark.parametrize(
    ("reward", "part"),
    [
        ("shape_of_prompts", "must return an array of shape (3, 2)"),
        ("scalar", "must return an array of shape (3, 2)"),
        ("two_arguments", "TypeError"),
        ("awaited", "must be a function that is not async"),
        ("complex_numbers", "must return real numbers, not complex64"),
        ("fails", "ZeroDivisionError: never pays"),
        ("nowhere", "cannot be imported"),
    ],
)
def test_an_own_reward_is_checked_before_anything_is_trained(
    place, reward, part, tmp_path, capsys, fresh_imports
):
    write(place / "own_rewards.py", OWN)
    code, said = in_process(
        capsys,
        *options(place, tmp_path / "run"),
        f"--config.runs.grpo.stage.rollout.rewards=own_rewards:{reward}",
    )
    assert code == 2 and not (tmp_path / "run").exists()
    assert part in said.splitlines()[-1] and f"own_rewards:{reward}" in said


def test_an_analysis_says_what_it_needs_before_anything_is_trained(
    place, tmp_path, capsys, fresh_imports
):
    text = "from tiny_run import get_config\n\ndef claims(results):\n"
    file = write(place / "needy.py", text + "    results['grpo']['t0.5/p_long']\n")
    at = f"--workdir={tmp_path / 'run'}"
    for typed in ([at], [at, "--dry_run"], ["--dry_run"], ["--dry_run", "--only=grpo"]):
        code, said = in_process(capsys, "run", f"--config={file}", *typed)
        is_whole = "--only=grpo" not in typed  # else the analysis has to wait
        assert code == 2 * is_whole and not (tmp_path / "run").exists()
        last = said.splitlines()[-1] if said else ""
        assert ("needy.py: claims, rehearsed" in last) == is_whole
        assert ("t0.5/p_long" in last) == is_whole


def test_an_analysis_waits_for_a_command_that_works_on_its_runs(
    place, tmp_path, capsys, fresh_imports
):
    """It would tell of what is there no more; claims of before are left alone."""
    file, workdir = place / "tiny_run.py", tmp_path / "run"
    typed = ["run", f"--config={file}", f"--workdir={workdir}", "--quiet"]
    assert run(typed) == 0
    (workdir / "claims.json").unlink()
    with RunDirectory(workdir / "grpo").locked():
        capsys.readouterr()
        assert run(typed) == 0
    told = f"warning: {workdir}: another command works on its runs, and will make "
    assert capsys.readouterr().err == f"{told}claims and figure\n"
    assert not (workdir / "claims.json").exists()
    assert run(typed) == 0 and (workdir / "claims.json").exists()


def test_an_analysis_may_read_training_metrics(place, tmp_path, capsys, fresh_imports):
    """At all steps that are recorded, as in its rehearsal."""
    text = "from parity_jax.analysis import Claim\nfrom tiny_run import get_config\n"
    text += "def claims(results):\n    loss = results.train('pretrain')['loss']\n"
    text += "    print('steps', loss['step'].values.tolist())\n"
    text += "    return [Claim.at_least('C1', loss.isel(step=-1), -100)]\n"
    file, workdir = write(place / "trained.py", text), tmp_path / "run"
    assert run(["run", f"--config={file}", f"--workdir={workdir}", "--quiet"]) == 0
    made_up, _, real = capsys.readouterr().out.splitlines()
    assert made_up == real and len(real.split()) > 1
    text = text.replace(
        "results.train('pretrain')['loss']", "results.train('pretrain').lost"
    )
    file = write(place / "lost.py", text)
    result = in_process(
        capsys, "run", f"--config={file}", f"--workdir={tmp_path / 'x'}"
    )
    assert result[0] == 2 and "lost.py: claims, rehearsed" in result[1].splitlines()[-1]


ANALYSES = {
    "claims": ("def claims(r): raise SystemExit(0)", "SystemExit: 0"),
    "figure": ("def figure(r): return None", "must return a Figure, not NoneType"),
    "none": ("def claims(r): return []", "must return a Claim; leave claims() out"),
    "another": ("def claims(r): return r['nope']", "run='nope': unknown; valid: grpo,"),
    "nameless": (
        "from parity_jax.analysis import Check, Claim\n"
        "def claims(r): return [Claim.of(' ', 'text', x=Check.at_least(1.0, 0.0))]",
        "claim 'text': its id must not be empty",
    ),
    "negative": (
        "from parity_jax.analysis import Claim\n"
        "def claims(r): return [Claim.within('C1', 1.0, 1.0, -0.1)]",
        "tolerance=-0.1: must be finite and not negative",
    ),
    "infinite": (
        "from parity_jax.analysis import Check, Claim\n"
        "check = Check(1.0, 'at least', float('inf'), 0.0, False)\n"
        "def claims(r): return [Claim.of('C1', x=check)]",
        "claim 'C1': Out of range float",
    ),
    "answer": ("def answer(r): return 'yes'", "must return an Answer, not str"),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_returns_what_it_must(name, place, tmp_path, capsys, fresh_imports):
    """Known, and said of its file, before anything is trained."""
    text, part = ANALYSES[name]
    file = f"only_{name}.py"
    write(place / file, f"from tiny_run import get_config\n{text}\n")
    code, said = in_process(
        capsys, "run", f"--config={place / file}", f"--workdir={tmp_path / 'run'}"
    )
    assert code == 2 and not (tmp_path / "run").exists()
    last = said.splitlines()[-1]
    function = name if name in ("answer", "figure") else "claims"
    assert f"{file}: {function}, rehearsed" in last and part in last
    is_raised_there = f'{file}", line ' in said  # else one line says it all
    assert ("Traceback" in said) == is_raised_there
    assert not (is_raised_there and name == "answer")


def test_debug_shows_a_traceback_however_it_is_typed(place, tmp_path, capsys):
    wrong = (*options(place, tmp_path / "run"), "--config.model.dept=3")
    for flag in ("--debug", "--debug=true", "--debug=1"):
        code, said = in_process(capsys, *wrong, flag)
        assert code == 2 and "Traceback" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stop_while_the_program_starts_is_one_line(number, monkeypatch, capfd):
    """Most of the first second is spent on imports, which bear no exception."""

    def stopped(name):
        os.kill(os.getpid(), number)
        pytest.fail("it went on")

    before = signal.signal(number, signal.SIG_DFL)  # nohup has it ignored
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(importlib, "import_module", stopped)
    try:
        with pytest.raises(SystemExit, match="75"):
            run(["list"])
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert capfd.readouterr().err == "error: stopped\n"


def test_a_damaged_run_is_one_line_and_exit_code_1(place, finished):
    damaged = place / "damaged"
    shutil.copytree(finished, damaged)
    (damaged / "grpo" / "finished.json").write_text("{")
    code, said = launch(place, *options(place, damaged))
    one_line(code, 1, said, "grpo/finished.json: damaged")


def test_too_little_memory_is_told_before_the_first_step(place, tmp_path):
    size = "--config.runs.pretrain.stage.batch_size=100000000"
    code, said = launch(place, *options(place, tmp_path / "run"), size, "--quiet")
    one_line(code, 1, said, "run pretrain", "out of memory", "GiB", "lower its batch")
    assert not (tmp_path / "run").exists()
    rest = ("--only=pretrain", "--quiet")
    code, said = launch(place, *options(place, tmp_path / "run"), *rest)
    assert (code, said) == (0, "")  # what has trained nothing may change


@pytest.mark.parametrize("name", ["cuda", "foo"])
def test_a_device_that_is_not_there_is_one_line(name, place, tmp_path):
    code, said = launch(place, *options(place, tmp_path / "run"), JAX_PLATFORMS=name)
    one_line(code, 2, said, f"JAX_PLATFORMS='{name}'")


SCALES = """
from small_runs import walk, walks


def get_config(scale="small"):
    return walks(run=walk(num_steps={"small": 2, "large": 6}[scale]))
"""


def test_a_scale_is_typed_once(tmp_path, capsys, monkeypatch, fresh_imports):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "scales.py", SCALES)
    for first, second in (("small", "large"), ("small", "small")):
        typed = (f"--config={file}:{first}", f"--config.scale={second}")
        code, said = in_process(capsys, "run", *typed, "--workdir=w")
        one_line(code, 2, said, f"scale='{second}': has no effect beside --config=")


OWN_TASK = ["--config.runs.run.task=parity", "--config.runs.run.model=linear"]


@pytest.mark.parametrize("edit", ["task.num_bits=5", "model=transformer"])
def test_the_task_that_no_run_has_is_not_edited(
    edit, tmp_path, capsys, monkeypatch, fresh_imports
):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "scales.py", SCALES)
    typed = (f"--config={file}", "--workdir=w", *OWN_TASK, f"--config.{edit}")
    code, said = in_process(capsys, "run", *typed)
    part = edit.partition(".")[0].partition("=")[0]
    one_line(code, 2, said, f"has no effect: every run has its {part}")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("spelling", ["=", " "])
def test_a_file_and_its_scale_in_both_spellings(spelling, tmp_path, monkeypatch):
    """With a space FILE is an argument of its own, and so is the scale."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    file = write(tmp_path / "scales.py", SCALES)
    typed = f"--config{spelling}{file} --config.scale{spelling}large --workdir=w"
    code, said = launch(tmp_path, "run", *typed.split())
    assert code == 0, said
    assert read_json(tmp_path / "w/run/config.json")["schedule"]["num_steps"] == 6
    typed = f"--config{spelling}{file}:large --config.runs.run.num_steps=-1"
    code, said = launch(tmp_path, "run", *typed.split(), "--workdir=x")
    one_line(code, 2, said, "runs.run.num_steps=-1")
    assert not (tmp_path / "x").exists()


def test_programs_are_cached_beside_those_of_other_tools(place, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    env = {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    code, said = launch(
        place, *options(place, tmp_path / "run"), "--only=pretrain", **env
    )
    assert code == 0, said
    assert list((tmp_path / "parity_jax").rglob("*-cache"))


def test_no_home_and_no_git_do_not_matter(place, finished, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    env = {"HOME": "", "PATH": str(tmp_path)}
    code, said = launch(
        place, *options(place, tmp_path / "run"), "--only=pretrain", **env
    )
    assert code == 0, said
    lineage = json.loads((tmp_path / "run/pretrain/lineage.json").read_text())
    assert lineage["process"]["commit"] is None


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_no_error(command, capsys):
    arguments = [command, "--help"] if command else ["--help"]
    try:
        code = run(arguments)
    except SystemExit as stop:  # of argparse
        code = stop.code
    assert code in (0, None) and "parity-jax" in capsys.readouterr().out


def test_versions(capsys):
    assert run(["--version", "extra"]) == 2
    assert "unrecognized arguments: extra" in capsys.readouterr().err
    assert run(["--version"]) == 0
    line = r"parity_jax \S+.*, python 3\S+, jax \S+, jaxlib \S+, flax \S+, optax .*"
    out = capsys.readouterr().out
    assert re.fullmatch(line + r"orbax-checkpoint .*, cpu: cpu x 2\n", out)
    assert run(["rum"]) == 2
    assert "must be one of run, " in capsys.readouterr().err
