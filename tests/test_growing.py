"""What may change of a run that has trained, and what may not."""

import dataclasses
import shutil

import numpy as np
import pytest
from flax.core import FrozenDict
from small_runs import (
    WalkConfig,
    contents,
    digests,
    read,
    records,
    train,
    train_until,
    walk,
    walks,
)

from parity_jax.config import ConfigError
from parity_jax.evaluate import EvaluateConfig
from parity_jax.hypers import Hypers
from parity_jax.population import PopulationConfig
from parity_jax.runs import ExperimentDirectory, RunDirectory
from parity_jax.runs.metrics_file import MetricsFile
from parity_jax.tasks import ParityConfig

AXES = FrozenDict({"temperature": (0.5, 1.0), "beta": (0.0, 0.1)})
RUN = walk(eval_every=3, axes=AXES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Four steps; evaluated at 0, 3 and the last one."""
    workdir = tmp_path_factory.mktemp("growing") / "run"
    train(walks(run=RUN), workdir)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """The finished run, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def test_a_finished_run_can_grow(workdir, tmp_path):
    longer = walks(run=dataclasses.replace(RUN, num_steps=8))
    assert train(longer, tmp_path / "undisturbed")
    home = ExperimentDirectory(workdir)
    for file in (home.claims, home.figure):  # of the shorter run
        file.write_text("[]")
    assert train(walks(run=RUN), workdir) and home.claims.exists()
    train_until(5, longer, workdir)
    assert not home.claims.exists() and not home.figure.exists()
    assert train(longer, workdir)
    run, undisturbed = workdir / "run", tmp_path / "undisturbed" / "run"
    assert digests(run) == digests(undisturbed)
    assert digests(run).keys() == {0, 2, 4, 6, 8}
    extra = [r for r in records(run) if r not in records(undisturbed)]
    assert [(r.split, r.step) for r in extra] == [("eval", 4)]
    assert [r for r in records(run) if r not in extra] == records(undisturbed)
    assert RunDirectory(run).read_config().schedule.num_steps == 8
    assert RunDirectory(run).read_finished().step == (8,) * 8
    assert ExperimentDirectory(workdir).read_config() == longer


def test_a_run_that_is_to_grow_is_not_done(workdir):
    """Not even where --only leaves it out."""
    longer = dataclasses.replace(RUN, num_steps=8)
    assert not train(walks(run=longer, other=RUN), workdir, "other")
    assert RunDirectory(workdir / "run").saved_steps() == [0, 2, 4]
    assert train(walks(run=RUN, other=RUN), workdir, "other")


SCHEDULE = {"eval_every": 1, "log_every": 2, "checkpoint_every": 1}


def test_what_has_ended_stays_as_it_is_and_says_so(workdir, finished, capsys):
    run = dataclasses.replace(RUN, **SCHEDULE)
    layout = PopulationConfig(num_devices=1, vmap_width=2)
    assert train(dataclasses.replace(walks(run=run), population=layout), workdir)
    assert contents(workdir) == contents(finished)
    told = capsys.readouterr().err
    assert told.startswith("warning: run has ended and stays as it is: ")
    assert "eval_every is 3 there, 1 here" in told and len(told.splitlines()) == 1


def test_the_schedule_may_change_while_a_run_trains(finished, tmp_path, capsys):
    train_until(2, walks(run=RUN), tmp_path)
    run = dataclasses.replace(RUN, **SCHEDULE)
    assert train(walks(run=run), tmp_path)
    assert not capsys.readouterr().err
    end, whole = digests(tmp_path / "run"), digests(finished / "run")
    assert end.keys() == {0, 2, 3, 4} and end[4] == whole[4]
    assert RunDirectory(tmp_path / "run").read_config().schedule.eval_every == 1
    steps = [r.step for r in records(tmp_path / "run") if r.split == "eval"]
    assert steps == [0, 3, 4]


def test_the_layout_may_change_while_a_run_trains(finished, tmp_path, capsys):
    train_until(2, walks(run=RUN), tmp_path)
    layout = PopulationConfig(num_devices=2, vmap_width=2)
    assert train(dataclasses.replace(walks(run=RUN), population=layout), tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: " + (
        "continuing elsewhere than before, so not bit for bit: "
        "population.num_devices is 1 there, 2 here; "
        "population.vmap_width is 1 there, 2 here"
    )
    end, whole = read(tmp_path / "run", 4), read(finished / "run", 4)
    np.testing.assert_allclose(end["params.w"], whole["params.w"], rtol=1e-5)


@pytest.mark.parametrize(
    ("owner", "name"), [(MetricsFile, "rewind"), (RunDirectory, "reopen")]
)
def test_a_kill_as_a_run_goes_on_loses_nothing(tmp_path, monkeypatch, owner, name):
    """One that ended between two records, and forgets the last one as it goes on."""
    step = getattr(owner, name)

    def killed(*args):
        step(*args)
        raise KeyboardInterrupt

    def run(num_steps):
        return walks(run=walk(num_steps=num_steps, log_every=5, checkpoint_every=1))

    train_until(3, run(20), tmp_path)
    assert train(run(3), tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, killed)
        train(run(20), tmp_path)
    assert train(run(20), tmp_path)
    assert RunDirectory(tmp_path / "run").read_finished().step == (20, 20)


def changed_run(**fields):
    return walks(run=dataclasses.replace(RUN, **fields))


CHANGES = {
    "runs.run.num_steps=2": {"num_steps": 2, "eval_every": 1},
    "runs.run.hypers.p_cot=0.5": {"hypers": Hypers(p_cot=0.5, learning_rate=1e-2)},
    "runs.run.stage.batch_size=3": {"stage": WalkConfig(batch_size=3)},
    "runs.run.task.num_bits=5": {"task": ParityConfig(5)},
    "runs.run.axes.beta=[0.0]": {"axes": AXES.copy({"beta": (0.0,)})},
    "runs.run.axes=['beta', 'temperature', 'seed']": {
        "axes": FrozenDict({name: AXES[name] for name in ("beta", "temperature")})
    },
    "runs.run.parent=": {"parent": "/elsewhere"},
}


def refused(experiment, workdir):
    """The line with which it is refused; nothing is touched."""
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(ConfigError) as info:
        train(experiment, workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    return str(info.value)


@pytest.mark.parametrize("field", CHANGES)
def test_any_other_change_of_what_has_trained_is_refused(field, workdir):
    text = refused(changed_run(**CHANGES[field]), workdir)
    assert text.startswith(field)
    assert f"{workdir / 'run'} " in text and "\n" not in text


def test_a_change_of_all_runs_is_named_as_it_is_typed(workdir):
    experiment = dataclasses.replace(walks(run=RUN), evaluate=EvaluateConfig(7))
    text = refused(experiment, workdir)
    assert text.startswith("evaluate.num_prompts=7: ")
    assert "evaluate.num_prompts is " in text


def test_wherever_a_run_comes_from_it_is_not_taken_for_another(finished, tmp_path):
    """Copied in, alone or with its experiment; or the experiment's config is gone."""
    alone, whole = tmp_path / "alone", tmp_path / "whole"
    shutil.copytree(finished / "run", alone / "run")
    shutil.copytree(finished, whole)
    for workdir in (alone, whole):
        text = refused(changed_run(hypers=Hypers(p_cot=0.5)), workdir)
        assert "hypers.p_cot is 0.25 there, 0.5 here" in text
        assert "hypers.learning_rate is 0.01 there, 0.001 here" in text
        (workdir / "config.json").unlink(missing_ok=True)
    refused(changed_run(hypers=Hypers(p_cot=0.5)), whole)
    assert "holds runs of another experiment: run" in refused(walks(other=RUN), whole)
    assert "is the directory of a run" in refused(walks(other=RUN), whole / "run")
    inside = whole / "run" / "checkpoints"
    assert "is inside the directory of a run" in refused(walks(other=RUN), inside)
    assert train(walks(run=RUN), alone) and train(walks(run=RUN), whole)


def test_what_has_trained_nothing_may_change(tmp_path):
    """Its batch, say, after it ran out of memory at the first step."""
    train_until(0, walks(run=walk()), tmp_path / "run")
    other = walks(
        run=walk(stage=WalkConfig(batch_size=3), axes=AXES, task=ParityConfig(5)),
        seeds=(4,),
    )
    assert train(other, tmp_path / "run") and train(other, tmp_path / "fresh")
    assert contents(tmp_path / "run") == contents(tmp_path / "fresh")


def test_a_child_is_of_the_parent_as_it_was(tmp_path):
    runs = {"first": walk(), "child": walk("first")}
    assert train(walks(**runs), tmp_path)
    before = digests(tmp_path / "child")
    runs["first"] = walk(num_steps=8)
    text = refused(walks(**runs), tmp_path)
    assert text.startswith("runs.child.parent_step=8: ")
    assert "parent.step is 4 there, 8 here (the last step of the parent" in text
    runs["child"] = walk("first", parent_step=4)
    assert train(walks(**runs), tmp_path)
    assert RunDirectory(tmp_path / "first").saved_steps() == [0, 2, 4, 6, 8]
    assert digests(tmp_path / "child") == before


def test_checkpoints_of_a_run_that_had_ended_stay_when_it_grows(tmp_path):
    """Another experiment may start from them, whatever the schedule names now."""
    place, run = tmp_path / "run", RunDirectory(tmp_path / "run" / "run")
    assert train(walks(run=walk()), place)
    longer = walks(run=walk(num_steps=7, checkpoint_every=0))
    train_until(6, longer, place)
    assert run.saved_steps() == [0, 2, 4, 6]
    assert train(longer, place) and run.saved_steps() == [0, 2, 4, 7]
    assert train(walks(run=walk(num_steps=10, checkpoint_every=5)), place)
    assert run.saved_steps() == [0, 2, 4, 7, 10]
    newest = walk(num_steps=14, checkpoint_every=2, max_to_keep=2)
    assert train(walks(run=newest), place) and run.saved_steps() == [12, 14]


def test_a_parent_can_grow_whose_end_no_schedule_names_any_more(tmp_path):
    """Where it ended is a checkpoint of it, which is kept."""
    first = walk(checkpoint_every=0)
    assert train(walks(first=first, child=walk("first")), tmp_path)
    longer = dataclasses.replace(first, num_steps=7)
    grown = walks(first=longer, child=walk("first", parent_step=4), new=walk("first"))
    assert train(grown, tmp_path)
    late = walks(**grown.runs, late=walk("first", parent_step=4))
    assert train(late, tmp_path)
    assert RunDirectory(tmp_path / "first").saved_steps() == [0, 4, 7]
    assert train(walks(first=first), tmp_path / "other")
    newest = dataclasses.replace(longer, max_to_keep=1)
    told = r"child\.parent_step=4: must be a checkpoint of the parent: 7"
    with pytest.raises(ConfigError, match=told):
        train(
            walks(first=newest, child=walk("first", parent_step=4)), tmp_path / "other"
        )


@pytest.mark.parametrize("name", ["reopen", "write_lineage", "write_config"])
def test_a_kill_as_a_run_grows_loses_no_checkpoint(tmp_path, monkeypatch, name):
    write = getattr(RunDirectory, name)
    longer = walks(run=walk(num_steps=7, checkpoint_every=0))

    def killed(*args):
        write(*args)
        raise KeyboardInterrupt

    assert train(walks(run=walk()), tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, name, killed)
        train(longer, tmp_path)
    assert train(longer, tmp_path)
    assert RunDirectory(tmp_path / "run").saved_steps() == [0, 2, 4, 7]


def test_a_parent_elsewhere_that_grew_is_not_the_one_it_started_from(tmp_path, capsys):
    """Unless its step is given; one that was pruned cannot be compared."""
    parent, place = tmp_path / "elsewhere", tmp_path / "run"
    assert train(walks(first=walk()), parent)
    child = walk(str(parent / "first"))
    experiment = walks(child=child, other=child)
    assert not train(experiment, place, "child")
    assert train(walks(first=walk(num_steps=8)), parent)
    told = (
        r"^runs\.other\.parent='.*': ends at step 8 now, and child started from step 4"
    )
    with pytest.raises(ConfigError, match=told):
        train(experiment, place)
    capsys.readouterr()
    said = walks(child=child, other=dataclasses.replace(child, parent_step=4))
    assert train(said, place)
    (line,) = capsys.readouterr().err.splitlines()
    assert "child started from step 4 of its parent" in line and "8 now" in line
    for name in said.runs:
        assert RunDirectory(place / name).read_lineage().parent.step == (4,)
    shutil.rmtree(parent)  # another one in its place
    faster = walk(num_steps=6, checkpoint_every=0, hypers=Hypers(learning_rate=0.02))
    assert train(walks(first=faster), parent)
    longer = dataclasses.replace(child, num_steps=6)
    longer = walks(child=longer, other=said.runs["other"])
    capsys.readouterr()
    assert train(longer, place)
    for line in capsys.readouterr().err.splitlines():
        assert "has no checkpoint of step 4 any more and cannot be compared" in line
