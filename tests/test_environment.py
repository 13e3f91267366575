"""What a run depends on beside its config: settings, packages, code, an edited file."""

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from small_runs import digests, stop, train, train_until, walk, walks

from parity_jax.analysis.inspection import rescored
from parity_jax.analysis.snapshot import open_snapshot
from parity_jax.cli.devices import set_up_jax
from parity_jax.cli.main import run as command
from parity_jax.config import ConfigError, RunError, lines_of
from parity_jax.population import PopulationConfig
from parity_jax.runs import ExperimentDirectory, RunDirectory, lineage, resolve
from parity_jax.runs.execute import tell_ended
from parity_jax.runs.forecast import forecast
from parity_jax.runs.lineage import edited_code

TESTS = Path(__file__).parent
FILE = """
from small_runs import walk, walks


def get_config():
    return walks(run=walk())
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Stopped at step 2 of 4, in this environment."""
    workdir = tmp_path_factory.mktemp("environment") / "run"
    train_until(2, walks(run=walk()), workdir)
    return workdir


@pytest.fixture
def workdir(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def contents_of_files(workdir):
    return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


def launch(workdir, **env):
    """The command: exit code and what it said on stderr."""
    file = workdir.parent / "walk_file.py"
    file.write_text(FILE)
    command = [sys.executable, "-m", "parity_jax.cli", "run", "--quiet"]
    command += [f"--config={file}", f"--workdir={workdir}"]
    own = {"PYTHONPATH": str(TESTS), "XDG_CACHE_HOME": str(file.parent)}
    env = os.environ | own | env
    done = subprocess.run(command, check=False, env=env, text=True, capture_output=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("JAX_ENABLE_X64", "1", "JAX_ENABLE_X64='True': must be False"),
        (
            "JAX_DEFAULT_PRNG_IMPL",
            "rbg",
            "JAX_DEFAULT_PRNG_IMPL='rbg': must be threefry2x32",
        ),
    ],
)
def test_settings_that_make_it_another_run_are_refused(workdir, name, value, line):
    before = contents_of_files(workdir)
    code, said = launch(workdir, **{name: value})
    assert (code, said) == (2, f"error: {line}, as when the run began\n")
    assert contents_of_files(workdir) == before


def test_settings_that_change_rounding_are_told(workdir, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    path = workdir / "run" / "lineage.json"
    content = json.loads(path.read_text())
    content["process"]["packages"]["numpy"] = "0.1"
    path.write_text(json.dumps(content))
    assert train(walks(run=walk()), workdir)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: continuing elsewhere than before, so not bit for")
    assert "packages.numpy is '0.1' there" in line
    assert "--xla_cpu_enable_fast_math=true' here" in line
    (later,) = RunDirectory(workdir / "run").read_lineage().continued
    assert later.step == 2
    assert later.process.settings["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=true"


def test_a_stage_that_begins_elsewhere_than_its_parent_ran_says_so(
    tmp_path, monkeypatch, capsys
):
    """One command, stopped between its stages."""
    experiment = walks(first=walk(), child=walk("first"))
    here, there = tmp_path / "here", tmp_path / "there"
    for home in (here, there):
        assert not train(experiment, home, "first")
    assert train(experiment, here)
    assert "elsewhere" not in capsys.readouterr().err
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert train(experiment, there)
    (line,) = capsys.readouterr().err.splitlines()
    told = "warning: its parent ran elsewhere, so not bit for bit: settings.XLA_FLAGS"
    assert line.startswith(told)


def test_a_plugin_of_jax_that_cannot_start_is_told_in_a_line(tmp_path):
    """As CUDA's on a machine whose driver is gone: JAX logs a traceback."""
    plugin = tmp_path / "jax_plugins/broken/__init__.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text("def initialize():\n    raise RuntimeError('no driver')\n")
    text = "from parity_jax.cli.main import main; main()"
    command = [sys.executable, "-c", text, "--version"]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, check=False, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.endswith("jax_plugins.broken.initialize(): no driver")


def test_an_edited_file_of_prompts_is_another_evaluation(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("++-+=\n+---=\n")

    def experiment(file):
        return dataclasses.replace(walks(run=walk()), eval_file=str(file))

    train(experiment(file), tmp_path / "whole")
    train_until(2, experiment(file), tmp_path / "run")
    moved = tmp_path / "moved.txt"
    shutil.copy(file, moved)
    file.write_text("++-+=\n+--+=\n")
    before = contents_of_files(tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"^eval_file='.*/prompts.txt': .* another config"
    ) as info:
        train(experiment(file), tmp_path / "run")
    assert "\n" not in str(info.value)
    assert contents_of_files(tmp_path / "run") == before
    assert train(experiment(moved), tmp_path / "run")  # what it holds counts
    assert digests(tmp_path / "run/run") == digests(tmp_path / "whole/run")


def test_training_needs_no_git(tmp_path, monkeypatch):
    assert lineage.git_commit()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lineage.git_commit() is None
    stop(walks(run=walk()), tmp_path / "run", iter([False, True]).__next__)
    started = RunDirectory(tmp_path / "run/run").read_lineage().process
    assert started.commit is None


def test_code_inside_another_repository_has_no_commit(tmp_path):
    def git(*args):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", "-C", str(tmp_path), *identity, *args]
        return subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout

    def commit():
        spec = importlib.util.spec_from_file_location("copied_lineage", copy)
        module = importlib.util.module_from_spec(spec)
        sys.modules["copied_lineage"] = module  # its dataclasses look themselves up
        spec.loader.exec_module(module)
        del sys.modules["copied_lineage"]
        return module.git_commit()

    copy = tmp_path / "site-packages" / "lineage.py"
    copy.parent.mkdir()
    shutil.copy(lineage.__file__, copy)
    git("init")
    git("commit", "--allow-empty", "-m", "somebody's project")
    assert commit() is None
    git("add", ".")
    git("commit", "-m", "now it is part of it")
    head = git("rev-parse", "HEAD").strip()
    assert commit() == head
    (tmp_path / "new").touch()
    assert commit() == head + "+"


def damaged(workdir, *steps):
    for step in steps:
        for path in (workdir / "run/checkpoints" / str(step) / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damage_is_told_in_a_line_and_by_nothing_else(workdir, stopped):
    """Orbax and asyncio, too, keep their tracebacks to themselves."""
    damaged(workdir, 2)
    code, said = launch(workdir)
    (line, *rest) = said.splitlines()
    assert line.startswith(f"warning: {workdir}/run/checkpoints/2: cannot be read: ")
    assert line.endswith("continuing from step 0 instead")
    assert all("continuing elsewhere" in line for line in rest), said
    assert code == 0 and digests(workdir / "run").keys() == {0, 2, 4}
    shutil.rmtree(workdir)
    shutil.copytree(stopped, workdir)
    damaged(workdir, 0, 2)
    code, said = launch(workdir)
    assert code == 1 and len(said.splitlines()) == 1, said
    assert said.startswith("error: no whole checkpoint is left: ")


OWN = """
import jax.numpy as jnp
from small_runs import WalkConfig
from dataclasses import dataclass


@dataclass(frozen=True)
class Mine(WalkConfig):
    pass
"""


JUDGE = """
def reward(prompt, response, data):
    return (response[..., 1] > 0).astype(float)
"""
EXPERIMENT_WITH = """
import dataclasses, sys

sys.path.insert(0, {tests!r})

from flax.core import FrozenDict
from tiny import tiny_experiment


def get_config():
    whole = tiny_experiment()
    stage = whole.runs["grpo"].stage
    rollout = dataclasses.replace(stage.rollout, rewards=("judge_of_mine:reward",))
    stage = dataclasses.replace(stage, rollout=rollout)
    grpo = dataclasses.replace(whole.runs["grpo"], stage=stage, parent="")
    return dataclasses.replace(whole, runs=FrozenDict(grpo=grpo))
"""


def test_own_code_that_changed_is_told(tmp_path, monkeypatch, capsys):
    """lineage.json has the digest of its file, whatever the repository says."""
    file = tmp_path / "walk_of_mine.py"
    file.write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    stage = importlib.import_module("walk_of_mine").Mine()
    experiment = walks(run=walk(stage=stage))
    train_until(2, experiment, tmp_path / "run")
    own = RunDirectory(tmp_path / "run/run").read_lineage().process.own_code
    digest = hashlib.sha256(OWN.encode()).hexdigest()
    assert own == {"walk_of_mine": digest}
    file.write_text(OWN + "\n# another reward\n")
    assert train(experiment, tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: steps from 3 on are of other code of your own: ")
    assert f"own_code.walk_of_mine is '{digest}' there" in line
    file.write_text(OWN + "\n# a third one\n")
    assert train(experiment, tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: run has ended and stays as it is: own_code.walk")
    said = "run trained with other code: own_code.walk_of_mine is"
    assert command(["inspect", f"{tmp_path}/run/run", "--step=4"]) == 1
    line, error = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and said in line
    assert "of another program" in error  # a walk is no model
    child = walks(child=walk(f"{tmp_path}/run/run", stage=stage))
    assert train(child, tmp_path / "child")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: its parent trained with other code: own_code.walk")
    del sys.modules["walk_of_mine"]  # as in another process, which has made nothing
    run = resolve(experiment)["run"]
    tell_ended("run", run, RunDirectory(tmp_path / "run/run"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "own_code.walk_of_mine is" in line
    del sys.modules["walk_of_mine"]
    file.unlink()
    with pytest.raises(RunError, match="walk_of_mine"):  # what it is goes with it
        RunDirectory(tmp_path / "run/run").read_config()
    process = RunDirectory(tmp_path / "run/run").read_lineage().last_process
    told = f"is '{process.own_code['walk_of_mine']}' there, 'cannot be imported' here"
    assert lines_of(edited_code(process)) == f"own_code.walk_of_mine {told}"


def test_a_reward_that_changed_is_told_by_who_opens_a_checkpoint(tmp_path):
    """Which makes no reward, and so imports none."""
    file = tmp_path / "judge_of_mine.py"
    file.write_text(JUDGE)
    text = EXPERIMENT_WITH.format(tests=str(TESTS))
    (tmp_path / "own.py").write_text(text)

    def typed(*args):
        env = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-m", "parity_jax.cli", *map(str, args)]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    workdir = tmp_path / "run"
    run = ("run", f"--config={tmp_path}/own.py", f"--workdir={workdir}", "--quiet")
    assert typed(*run) == ""
    look = ("inspect", workdir / "grpo", "--prompts=0")
    assert typed(*look) == ""
    file.write_text(JUDGE + "# another one")
    assert "grpo trained with other code: own_code.judge_of_mine is" in typed(*look)
    file.unlink()
    assert "there, 'cannot be imported' here" in typed(*look)
    assert "grpo has ended and stays as it is: own_code.judge_of_mine" in typed(*run)


def test_a_layout_that_an_ended_run_cannot_take_is_told(tmp_path, capsys):
    assert train(walks(run=walk()), tmp_path)
    other = dataclasses.replace(
        walks(run=walk()), population=PopulationConfig(vmap_width=2)
    )
    assert train(other, tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: run has ended and stays as it is: population.")


@pytest.fixture
def setting():
    """Changes settings of JAX, for one test."""
    before = {}

    def change(name, value):
        before[name] = jax.config.values[name]
        jax.config.update(name, value)

    yield change
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [
        ("jax_random_seed_offset", 7, 0),
        ("jax_high_dynamic_range_gumbel", True, False),
    ],
)
def test_settings_that_change_what_is_drawn_are_refused(
    workdir, setting, name, value, was
):
    setting(name, value)
    with pytest.raises(ConfigError) as info:
        train(walks(run=walk()), workdir)
    told = f"{name.upper()}='{value}': must be {was}, as when the run began"
    assert str(info.value) == told
    with pytest.raises(ConfigError, match=name.upper()):
        rescored(open_snapshot(RunDirectory(workdir / "run")))


def test_settings_of_a_parent_are_those_of_its_child(tmp_path, setting):
    """Also where a command was killed between them, or the parent is elsewhere."""
    experiment, home = walks(run=walk(), child=walk("run")), tmp_path / "home"
    train(experiment, home, "run")
    elsewhere, path = walks(child=walk(str(home / "run"))), tmp_path / "elsewhere"
    before = contents_of_files(home)
    for name, value, was in (
        ("jax_threefry_partitionable", False, True),
        ("jax_default_prng_impl", "rbg", "threefry2x32"),
        ("jax_random_seed_offset", 7, 0),
    ):
        setting(name, value)
        for each, workdir in ((experiment, home), (elsewhere, path)):
            told = (
                rf"{name.upper()}='{value}': must be {was}, as when its parent, .*run"
            )
            with pytest.raises(ConfigError, match=told):
                train(each, workdir)
            with pytest.raises(ConfigError, match=told):
                forecast(each, [], print, ExperimentDirectory(workdir))
        jax.config.update(name, was)
    assert contents_of_files(home) == before and not path.exists()
    assert train(experiment, home) and train(elsewhere, path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_debug_infs", True),
        ("jax_debug_key_reuse", True),
        ("jax_debug_nans", True),
        ("jax_disable_jit", True),
        ("jax_transfer_guard", "disallow"),
        ("jax_numpy_dtype_promotion", "strict"),
    ],
)
def test_settings_under_which_nothing_works_are_refused(setting, name, value):
    setting(name, value)
    with pytest.raises(ConfigError, match=name.upper()):
        set_up_jax()


@pytest.mark.parametrize("is_told", [True, False])
def test_a_number_of_devices_that_is_told_stays(monkeypatch, is_told):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if is_told:
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    changed = []
    monkeypatch.setattr(jax.config, "update", lambda name, _: changed.append(name))
    set_up_jax()
    assert ("jax_num_cpu_devices" in changed) != is_told
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "0")
    with pytest.raises(ConfigError, match=r"^JAX_NUM_CPU_DEVICES='0': must be posi"):
        set_up_jax()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_ENABLE_X64", "foo"),
        ("MPLBACKEND", "garbage"),
        ("XLA_FLAGS", "--garbage=1"),
    ],
)
def test_a_variable_that_means_nothing_is_one_line(workdir, name, value):
    before = contents_of_files(workdir)
    code, said = launch(workdir, **{name: value})
    assert code == 2 and said.startswith("error: ") and len(said.splitlines()) == 1
    assert value in said and contents_of_files(workdir) == before


IMPORTS = """
import importlib, json, logging, pkgutil
import jax, matplotlib, parity_jax

def seen():
    logs = [*map(repr, logging.root.handlers), logging.root.level]
    # of the dict below: to read rcParams itself would choose a backend
    look = sorted((k, repr(v)) for k, v in dict.items(matplotlib.rcParams))
    return {"logging": logs, "matplotlib": look, "jax": repr(dict(jax.config.values))}

importlib.import_module("matplotlib.pyplot")
before = seen()
for module in pkgutil.walk_packages(parity_jax.__path__, "parity_jax."):
    if module.name != "parity_jax.cli.__main__":
        importlib.import_module(module.name)
changed = [name for name, value in seen().items() if value != before[name]]
print(json.dumps([changed, bool(jax._src.xla_bridge._backends)]))
"""


def test_importing_the_library_changes_nothing_of_the_user():
    """Neither logging, matplotlib nor JAX; no backend is started, no device taken."""
    code = [sys.executable, "-c", IMPORTS]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], False]
