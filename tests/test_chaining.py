"""Runs that start from members and steps of another, on any layout of devices."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from small_runs import (
    DIVERGES,
    contents,
    digests,
    read,
    train,
    train_until,
    walk,
    walks,
)
from tiny import tiny_gpt2

from parity_jax.analysis import Results, load_metrics
from parity_jax.analysis.snapshot import open_snapshot
from parity_jax.cli import main
from parity_jax.config import ConfigError
from parity_jax.hypers import Hypers
from parity_jax.population import PopulationConfig
from parity_jax.runs import RunDirectory, RunError, make_program
from parity_jax.runs.checkpoint import digest, from_arrays, subtree, to_arrays
from parity_jax.runs.forecast import forecast
from parity_jax.stages import PretrainConfig, RolloutConfig, StarConfig
from parity_jax.tasks import ParityConfig
from parity_jax.types import DIVERGED

STEPS = (0, 2, 4)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two walks; in one launch a child from every checkpoint of them."""
    directory = tmp_path_factory.mktemp("chaining") / "run"
    child = walk("first", axes=FrozenDict({"parent_step": STEPS}))
    assert train(walks(first=walk(), child=child), directory)
    return directory


@pytest.fixture
def first(workdir, tmp_path):
    """A finished run in another directory, to be changed."""
    return shutil.copytree(workdir / "first", tmp_path / "elsewhere" / "first")


def with_axis(name, values=(0.1, 0.2), parent=""):
    return walk(parent, axes=FrozenDict({name: values}))


def test_an_axis_that_no_run_reads_is_refused(workdir, tmp_path):
    """Its members would secretly be one."""
    for runs in (
        {"a": with_axis("step_noise")},
        {"a": walk(), "b": with_axis("step_noise", parent="a")},
        {"a": with_axis("emit_noise", parent=str(workdir / "first"))},
    ):
        told = r"^(runs\.b\.)?axes.*, 0.2\): is read by no run"
        with pytest.raises(ConfigError, match=told):
            train(walks(**runs), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    assert train(walks(a=with_axis("step_noise", (0.0,))), tmp_path / "alone")


def test_a_number_that_no_run_reads_is_refused(tmp_path):
    """But one that came along from, or for, a relative that reads it."""
    priced = Hypers(learning_rate=1e-2, length_price=0.5)
    other = Hypers(learning_rate=1e-2, temperature=2.0)
    for runs in (
        {"a": walk(hypers=priced)},
        {"a": walk(), "b": walk("a", hypers=priced)},
    ):
        with pytest.raises(ConfigError, match=r"^runs.*price=0.5: is read by no"):
            train(walks(**runs), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    assert train(walks(a=walk(hypers=other), b=walk("a")), tmp_path / "run")


def test_what_a_parent_reads_tells_its_children_apart(tmp_path):
    parent = with_axis("learning_rate")
    child = dataclasses.replace(with_axis("learning_rate", parent="a"), num_steps=1)
    experiment = walks(a=parent, b=child)
    assert train(experiment, tmp_path / "run")
    elsewhere = with_axis("learning_rate", parent=str(tmp_path / "run/a"))
    assert train(walks(c=elsewhere), tmp_path / "other")


def params(run, step):
    return subtree(read(run, step), "params")


def test_every_checkpoint_of_a_run_can_be_an_axis(workdir):
    child = params(workdir / "child", 0)
    for i, step in enumerate(STEPS):
        for name, array in params(workdir / "first", step).items():
            np.testing.assert_array_equal(child[name][2 * i : 2 * i + 2], array)
    scores = load_metrics(workdir / "child")
    assert scores["greedy/accuracy"].dims == ("parent_step", "seed", "step")
    assert scores["parent_step"].values.tolist() == list(STEPS)
    assert scores["sequences"].sel(step=4).values.tolist() == [8, 12, 16]


@pytest.mark.parametrize("start", STEPS)
def test_the_sequences_of_a_grandchild_are_those_of_its_own_chain(
    workdir, tmp_path, start
):
    pinned = FrozenDict({"parent_step": start})
    grandchild = walk(str(workdir / "child"), parent_member=pinned, parent_step=2)
    assert train(walks(run=grandchild), tmp_path / "run")
    scores = load_metrics(tmp_path / "run" / "run")
    assert scores["sequences"].values.tolist() == [
        2 * (start + 2 + step) for step in scores["step"].values
    ]


def test_no_stage_of_a_chain_draws_what_an_earlier_one_drew(tmp_path):
    """What a step draws follows from the key and the step, which begins at 0."""
    pinned = walk("first", parent_member=FrozenDict({"seed": 1}))
    chain = {"first": walk(), "second": walk("first"), "third": walk("second")}
    assert train(walks(**chain, pinned=pinned), tmp_path)
    found = [read(tmp_path / name, 0)["key"] for name in (*chain, "pinned")]
    keys = {tuple(key.tolist()) for key_P in found for key in key_P}
    assert len(keys) == 4 * 2 - 1  # seed=1 of second and pinned have the same parent
    (again,) = [read(tmp_path / "third", step)["key"] for step in STEPS[-1:]]
    np.testing.assert_array_equal(again, found[2])


def test_lineage_names_stage_steps_and_hashes(workdir):
    lineage = RunDirectory(workdir / "child").read_lineage()
    assert lineage.stage == "small_runs:WalkConfig" and lineage.continued == ()
    assert lineage.parent.run == str(workdir / "first")
    assert lineage.parent.step == STEPS
    expected = tuple(digest(params(workdir / "first", step)) for step in STEPS)
    assert lineage.parent.params_sha256 == expected
    assert {"jax", "orbax-checkpoint"} <= lineage.process.packages.keys()


@pytest.mark.parametrize(
    ("fields", "step", "index"),
    [
        ({"parent_member": FrozenDict({"seed": 1}), "parent_step": 2}, 2, [1, 1]),
        ({"axes": FrozenDict({"temperature": (0.5, 1.0)})}, 4, [0, 1, 0, 1]),
    ],
    ids=["one seed for all", "a new axis"],
)
def test_members_are_sliced_and_broadcast(first, tmp_path, fields, step, index):
    train(walks(child=walk(str(first), **fields)), tmp_path / "run")
    child = params(tmp_path / "run" / "child", 0)
    for name, array in params(first, step).items():
        np.testing.assert_array_equal(child[name], array[index])


LAYOUTS = [PopulationConfig(1, 1), PopulationConfig(1, 2), PopulationConfig(2, 1)]


def test_a_checkpoint_restores_on_other_devices_and_layouts(workdir):
    """Bit for bit as it was, and the next steps agree to rounding."""
    assert jax.local_device_count() == 2
    first, ends = workdir / "first", []
    run, saved = RunDirectory(first).read_config(), read(first, 2)
    for layout in LAYOUTS:
        program = make_program(dataclasses.replace(run, population=layout))
        states = from_arrays(saved, jax.eval_shape(program.init, None))
        assert digest(to_arrays(states)) == digest(saved)
        start = program.place((states, program.no_metrics()))
        ends.append(to_arrays(program.advance(*start, 2)[0].params))
    for end in ends:
        for name, array in params(first, 4).items():
            np.testing.assert_allclose(end[name], array, rtol=1e-5, err_msg=name)


def refused(run, tmp_path, error=ConfigError):
    """The one line with which a child is refused, before anything is written."""
    place = tmp_path / "refused"
    with pytest.raises(error) as info:
        train(walks(child=run), place)
    assert not place.exists()
    return str(info.value)


def test_a_parent_that_cannot_be_is_refused(first, tmp_path):
    home = first.parent
    text = refused(walk(str(first), parent_step=3), tmp_path)
    assert text == "runs.child.parent_step=3: " + (
        "must be a checkpoint of the parent: 0, 2, 4"
    )
    text = refused(walk(str(tmp_path / "no")), tmp_path)
    assert text.startswith("runs.child.parent=") and "must be a run" in text
    train(walks(first=walk()), home)  # it is an experiment's directory now
    text = refused(walk(str(home)), tmp_path)
    assert "is an experiment's directory; name one of its runs: first" in text
    pin = FrozenDict({"seed": 5})
    text = refused(walk(str(first), parent_member=pin), tmp_path)
    assert "runs.child.parent_member.seed=5: must be one of the parent's (0, 1)" in text
    text = refused(walk(str(first), task=ParityConfig(3)), tmp_path)
    assert text.endswith("task.num_bits is 4 there, 3 here")


def test_an_unfinished_parent_needs_a_step(first, tmp_path):
    """It may go on to train while the child does."""
    home = first.parent
    train_until(6, walks(first=walk(num_steps=8)), home)
    text = refused(walk(str(first)), tmp_path)
    assert text.startswith("runs.child.parent=") and "is not finished" in text
    assert text.endswith("one of its checkpoints: 0, 2, 4, 6")
    text = refused(walk(str(first), parent_step=8), tmp_path)
    assert "is not finished" in text
    assert train(walks(child=walk(str(first), parent_step=2)), tmp_path / "run")
    child, parent = params(tmp_path / "run" / "child", 0), params(first, 2)
    assert digest(child) == digest(parent)


def test_a_member_whose_parent_diverged_starts_frozen(tmp_path, capsys):
    axes = FrozenDict({"learning_rate": (1e-2, DIVERGES)})
    experiment = walks(first=walk(axes=axes), child=walk("first", axes=axes))
    assert train(experiment, tmp_path)
    child = RunDirectory(tmp_path / "child")
    assert read(child.path, 0)["status"].tolist() == [0, 0, DIVERGED, DIVERGED]
    finished = child.read_finished()
    assert finished.step == (4, 4, 0, 0)
    assert finished.status == (0, 0, DIVERGED, DIVERGED)
    before, after = params(tmp_path / "first", 4)["w"], params(child.path, 4)["w"]
    assert (before[:2] != after[:2]).all() and (before[2:] == after[2:]).all()
    assert np.isfinite(after).all()
    told = capsys.readouterr().err
    assert "member learning_rate=1e+30,seed=1 diverged" in told
    assert "after step 0; it stays frozen there" in told


def test_nothing_starts_from_parents_that_all_diverged(tmp_path):
    """The parent ended early; its last checkpoint is of the step at which it did."""
    first = walk(hypers=Hypers(learning_rate=DIVERGES), num_steps=100)
    with pytest.raises(RunError, match="the parents of all members diverged") as info:
        train(walks(first=first, child=walk("first")), tmp_path)
    assert "\n" not in str(info.value)
    for _ in range(2):  # nor is it a success when the command is given again
        with pytest.raises(RunError, match=r"^first: all members diverged; their"):
            train(walks(first=first), tmp_path)
    assert RunDirectory(tmp_path / "first").saved_steps()[-1] < 100


def no_reward(prompt, response_BxGxT, data):
    """Of any response."""
    return jnp.zeros(response_BxGxT.shape[:2])


def test_the_last_step_of_a_parent_is_where_it_ended(tmp_path):
    """As an axis too: a round of STaR that keeps nothing is the last one."""
    reward = f"{__name__}:no_reward"
    rollout = RolloutConfig(num_prompts=2, num_generations=2, rewards=(reward,))
    stage = StarConfig(rollout, batch_size=4)
    first = walk(stage=stage, num_steps=6, hypers=Hypers(), checkpoint_every=0)
    child = walk(stage=PretrainConfig(2))
    axes, pin = FrozenDict({"parent_step": (0, 6)}), FrozenDict({"parent_step": 6})
    several = dataclasses.replace(child, parent="first", axes=axes)
    pinned = dataclasses.replace(child, parent="several", parent_member=pin)
    experiment = walks(first=first, several=several, pinned=pinned)
    experiment = dataclasses.replace(experiment, model=tiny_gpt2())
    assert train(experiment, tmp_path)
    end = RunDirectory(tmp_path / "first").trained_steps()
    assert 0 < end < 6
    assert load_metrics(tmp_path / "first")["step"].values[-1] == end  # evaluated there
    started = RunDirectory(tmp_path / "several").read_lineage().parent.step
    assert started == (0, end)
    sequences = load_metrics(tmp_path / "pinned")["sequences"].values.tolist()
    assert sequences == [4 * end + 2 * 4 + 2 * step for step in (0, 2, 4)]


def test_the_step_that_a_diverged_parent_did_not_reach_is_told_as_that(tmp_path):
    first = walk(hypers=Hypers(learning_rate=DIVERGES), num_steps=100)
    runs = walks(first=first, child=walk("first", parent_step=90))
    for _ in range(2):  # the parent diverges, then is found diverged
        with pytest.raises(RunError, match="/first: all members diverged before step"):
            train(runs, tmp_path)


def test_a_parent_without_its_last_checkpoint_is_refused(first, tmp_path):
    """An older one would do as well, but it is not what was asked for."""
    shutil.rmtree(first / "checkpoints" / "4")
    gone = (
        f"{first}/finished.json: damaged: the checkpoint of its last step, 4, is gone"
    )
    for run in (walk(str(first)), walk(str(first), parent_step=4)):
        assert refused(run, tmp_path, RunError) == gone
    with pytest.raises(RunError, match="its last step, 4, is gone"):
        open_snapshot(RunDirectory(first))  # what inspect, export_hf and play take
    home = first.parent
    before = sorted(home.rglob("*"))
    with pytest.raises(RunError, match="its last step, 4, is gone"):
        train(walks(first=walk(), child=walk("first")), home)
    assert sorted(home.rglob("*")) == before


def test_a_step_that_is_past_cannot_be_saved_any_more(first, tmp_path):
    """It is known before the parent trains on."""
    train_until(2, walks(first=walk()), tmp_path)
    past = walk(checkpoint_steps=(1,))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as info:
        train(walks(first=past, child=walk("first", parent_step=1)), tmp_path)
    assert str(info.value) == "runs.child.parent_step=1: " + (
        "must be a checkpoint of the parent: 0, 2, 4"
    )
    assert sorted(tmp_path.rglob("*")) == before
    coming = walk(checkpoint_steps=(3,))
    assert train(walks(first=coming, child=walk("first", parent_step=3)), tmp_path)


def test_a_parent_killed_between_its_last_record_and_checkpoint_goes_on(tmp_path):
    """The checkpoint that its child starts from is still to come."""
    experiment = walks(first=walk(), child=walk("first"))
    train(experiment, tmp_path / "whole")
    run = shutil.copytree(tmp_path / "whole" / "first", tmp_path / "run" / "first")
    (run / "finished.json").unlink()
    shutil.rmtree(run / "checkpoints/4")
    assert train(experiment, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_child_of_another_parent_is_not_used(first, tmp_path):
    """The parent was deleted and run anew as another, here or elsewhere."""
    home, other = first.parent, walk(hypers=Hypers(learning_rate=0.1))
    assert train(walks(first=walk(), child=walk("first")), home)
    outside = walks(child=walk(str(first)))
    assert train(outside, tmp_path / "outside")
    before = digests(home / "child")
    shutil.rmtree(first)
    told = "child started from other parameters than its parent has now"
    with pytest.raises(RunError, match=told):
        train(walks(first=other, child=walk("first")), home)
    with pytest.raises(ConfigError, match=f"^runs.child.parent='first': .*{told}$"):
        train(walks(first=other, child=walk("first")), home)
    with pytest.raises(ConfigError, match=f"^runs.child.parent='{first}': .*{told}$"):
        train(outside, tmp_path / "outside")
    shutil.rmtree(first)
    first.mkdir()
    model = first / "config.json"  # of Hugging Face
    model.write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match=f"^runs.child.parent='{first}': .*{told}$"):
        train(outside, tmp_path / "outside")
    model.write_text("{")
    assert train(outside, tmp_path / "outside")  # damaged, it cannot be compared
    shutil.rmtree(first)
    assert train(walks(first=walk(), child=walk("first")), home)
    assert digests(home / "child") == before


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"parent": None}, "are not of one run"),
        ({"stage": "star"}, "are not of one run"),
        ({"parent": {"sequences": []}}, "must be of each of step"),
        (
            {"parent": {"sequences": [0, 0, 99999]}},
            "is not as it was when the run ended",
        ),
        ({"parent": {"run": "/elsewhere"}}, "is not as it was when the run ended"),
        ({"process": {"started": "now"}}, "must be a date"),
    ],
)
def test_an_edited_lineage_is_refused(workdir, tmp_path, fields, part):
    child = shutil.copytree(workdir / "child", tmp_path / "child")
    content = json.loads((child / "lineage.json").read_text())
    for name, value in fields.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    (child / "lineage.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=part) as info:
        load_metrics(child)
    assert "damaged" in str(info.value)


def test_a_damaged_parent_is_told_before_other_stages_train(first, tmp_path):
    """Its arrays too, which only its child reads."""
    arrays = (first / "checkpoints/4/state").rglob("*")
    file = max((p for p in arrays if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    experiment = walks(other=walk(), child=walk(str(first)))
    with pytest.raises(RunError, match="checkpoints/4: c"):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run/other").exists()
    with pytest.raises(RunError, match="checkpoints/4: c"):
        forecast(experiment, [], print)


def test_a_child_that_has_trained_needs_its_parent_no_more(first, tmp_path, capsys):
    experiment = walks(child=walk(str(first)))
    train(experiment, tmp_path / "whole")
    train_until(2, experiment, tmp_path / "run")
    first.rename(tmp_path / "gone")
    capsys.readouterr()
    train(experiment, tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line
        == f"warning: the parent of child, {first}, has no checkpoint of step "
        + ("4 any more and cannot be compared")
    )
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert digests(tmp_path / "run" / "child").keys() == {0, 2, 4}


def test_what_an_analysis_changes_another_does_not_read(workdir):
    """Claims, answer and figure share the results of the runs."""
    results = Results(workdir)
    assert results.get("none") is None
    expected = results["first"].copy(deep=True), results.train("first").copy(deep=True)
    for scores in (results["first"], results.train("first")):
        for name in scores:
            scores[name] -= 1
            scores[name].values[:] = 7
    assert results["first"].identical(expected[0])
    assert results.train("first").identical(expected[1])


def assert_unread(home, told, capsys):
    """Whatever reads the run "first" of an experiment refuses it."""
    with pytest.raises(RunError, match=told):
        Results(home)["first"]
    for command in (["inspect", home], ["watch", home, "--once"]):
        assert main.run([*map(str, command)]) == 1
        assert re.search(told, capsys.readouterr().err)


def test_a_run_of_another_experiment_is_not_read(workdir, tmp_path, capsys):
    """Copied to its place, or in that of another run: as `run` refuses it."""
    home = shutil.copytree(workdir, tmp_path / "home")
    shutil.rmtree(home / "first")
    assert train(walks(first=walk(), seeds=(5, 6)), tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "first", home / "first")
    told = r"home/first: is of another experiment than .*home: axes.seed is"
    assert_unread(home, told, capsys)
    swapped = shutil.copytree(workdir, tmp_path / "swapped")
    for old, new in (("first", "x"), ("child", "first"), ("x", "child")):
        (swapped / old).rename(swapped / new)
    with pytest.raises(RunError, match="swapped/first: is of another experiment"):
        Results(swapped)["first"]


@pytest.mark.parametrize("part", ["evaluate", "task", "stage"])
def test_an_edited_config_of_an_experiment_is_not_read(part, workdir, tmp_path, capsys):
    """What its runs have as they trained, with a hash, is not there any more."""
    home = shutil.copytree(workdir, tmp_path / "home")
    config = json.loads((home / "config.json").read_text())
    place = config["runs"]["first"] if part == "stage" else config
    field = {"evaluate": "num_prompts", "task": "num_bits", "stage": "batch_size"}
    place[part][field[part]] += 1
    (home / "config.json").write_text(json.dumps(config))
    told = rf"home/first: is of another experiment than .*{part}\.{field[part]} is"
    assert_unread(home, told, capsys)
