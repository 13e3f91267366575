"""--only: some runs of an experiment, and processes that share its directory."""

import threading
import time
from dataclasses import replace

import pytest
from kills import start
from small_runs import contents, train, walk, walks

from parity_jax.config import ConfigError
from parity_jax.runs import (
    ExperimentDirectory,
    RunDirectory,
    RunError,
    run_experiment,
)


def test_a_run_with_its_parent_elsewhere_trains_alone(tmp_path):
    parent = tmp_path / "elsewhere" / "first"
    train(walks(first=walk()), parent.parent)
    experiment = walks(first=walk(), second=walk(), child=walk(str(parent)))
    assert not train(experiment, tmp_path / "run", "child")  # not all is done
    home = ExperimentDirectory(tmp_path / "run")
    assert [run.name for run in home.runs()] == ["child"]
    assert home.run("child").read_finished().step == (4, 4)
    assert train(experiment, home.path)


def test_runs_that_cannot_be_alone_are_refused(tmp_path):
    experiment, place = walks(first=walk(), child=walk("first")), tmp_path / "run"
    with pytest.raises(ConfigError) as info:
        train(experiment, place, "child")
    assert str(info.value) == (
        "runs.child.parent='first': has not been run, and --only leaves it out"
    )
    with pytest.raises(ConfigError, match=r"only='chidl': .*did you mean 'child'"):
        train(experiment, place, "first", "chidl")
    assert not place.exists()


def test_what_another_command_did_meanwhile_is_seen(tmp_path):
    """While this one planned, before it had the locks."""
    one = walks(first=walk(), second=walk())
    other = replace(one, evaluate=replace(one.evaluate, num_prompts=7))

    def together(mine, theirs, place):
        def rehearse(runs):
            train(theirs, place)

        return run_experiment(mine, place, quiet=True, rehearse=rehearse)

    told = r"^evaluate\.num_prompts=7: .* holds another configuration: "
    with pytest.raises(ConfigError, match=told):
        together(other, one, tmp_path)
    longer = walks(first=walk(num_steps=6), second=walk())
    with pytest.raises(ConfigError, match="is at step 6 already"):
        together(one, longer, tmp_path / "x")
    assert together(one, one, tmp_path / "y")
    assert contents(tmp_path / "y") == contents(tmp_path)


def test_processes_work_on_different_runs_at_the_same_time(tmp_path):
    never = 10**9
    schedule = {"num_steps": never, "log_every": never, "eval_every": never}
    long = walk(**schedule, checkpoint_every=0, chunk_seconds=0.1)
    experiment = walks(long=long, short=walk())
    other = start(train, experiment, tmp_path, "long")
    run = RunDirectory(tmp_path / "long")
    while not run.saved_steps():
        assert other.is_alive()
        time.sleep(0.05)
    with pytest.raises(RunError, match=f"long: in use by process {other.pid} on "):
        train(experiment, tmp_path, "long")
    assert not train(experiment, tmp_path, "short")
    assert other.is_alive() and run.read_finished() is None
    assert RunDirectory(tmp_path / "short").read_finished().step == (4, 4)
    other.kill()
    other.join()


def test_steps_are_listed_while_a_writer_deletes(tmp_path):
    """The newest is always there; what is not whole yet is not counted."""
    run, place = RunDirectory(tmp_path), tmp_path / "checkpoints"
    for name in ("0", "1.orbax-checkpoint-tmp-0"):
        (place / name).mkdir(parents=True)
    (place / "x").write_text("")
    assert run.saved_steps() == [0]

    def save():
        for step in range(1, 2000):
            (place / str(step)).mkdir()
            (place / str(step - 1)).rmdir()

    writer = threading.Thread(target=save)
    writer.start()
    while writer.is_alive():
        assert run.saved_steps()
    assert run.saved_steps() == [1999]


def test_a_run_that_another_command_trained_otherwise_is_not_taken(tmp_path):
    """While this one trained: no claims are made of both."""
    mine = walks(first=walk(), second=walk())
    other = replace(mine, evaluate=replace(mine.evaluate, num_prompts=7))
    begun = list[bool]()

    def meanwhile():
        if not begun:
            begun.append(train(other, tmp_path, "second"))
        return False

    told = "another command worked here meanwhile: evaluate.num_prompts="
    with pytest.raises(RunError, match=told):
        run_experiment(mine, tmp_path, ["first"], quiet=True, should_stop=meanwhile)
    assert begun == [False]  # its first run is not done
