"""Where a run is cut into chunks changes nothing; its programs are compiled once."""

import dataclasses

import jax
import pytest
from small_runs import (
    DIVERGES,
    contents,
    digests,
    read,
    records,
    stop,
    train,
    walk,
    walks,
)

from parity_jax.config import RunError
from parity_jax.hypers import Hypers
from parity_jax.runs import RunDirectory
from parity_jax.types import DIVERGED

ONE_STEP = 1e-9  # a chunk never fits into so many seconds, so it has one step
RUN = walk(num_steps=7, log_every=4, eval_every=7, checkpoint_every=0)


def asks_at(call):
    """A should_stop that says so from its n-th call on; the first is before the run."""
    calls = iter(range(1, 100))
    return lambda: next(calls) >= call


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Seven steps, recorded at 4 and 7, in chunks of one step."""
    workdir = tmp_path_factory.mktemp("chunks")
    train(walks(run=dataclasses.replace(RUN, chunk_seconds=ONE_STEP)), workdir)
    return workdir


def test_chunks_of_one_step_or_of_all_are_the_same(whole, tmp_path):
    train(walks(run=dataclasses.replace(RUN, chunk_seconds=0.0)), tmp_path)
    assert digests(tmp_path / "run") == digests(whole / "run")
    assert records(tmp_path / "run") == records(whole / "run")
    found = [(r.split, r.step) for r in records(whole / "run")]
    assert found == [("eval", 0), ("train", 4), ("train", 7), ("eval", 7)]


@pytest.mark.parametrize(("call", "step"), [(2, 0), (6, 3), (7, 4), (10, 6)])
def test_a_run_stops_after_any_chunk_and_ends_as_if_it_had_not(
    whole, tmp_path, call, step
):
    experiment = walks(run=dataclasses.replace(RUN, chunk_seconds=ONE_STEP))
    stop(experiment, tmp_path, asks_at(call))
    run = RunDirectory(tmp_path / "run")
    assert run.saved_steps() == sorted({0, step})
    if step % 4:  # in the middle of an interval: its metrics are saved
        assert read(run.path, step)["metrics.loss.count"].min() > 0
        assert run.metrics.read()[-1].step == step // 4 * 4
    train(experiment, tmp_path)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize(("call", "step"), [(5, 2), (7, 4), (9, 5), (10, 6)])
def test_a_run_can_end_where_it_stopped_on_its_way_to_a_later_end(tmp_path, call, step):
    """Nothing of its end was recorded, or all but the evaluation."""
    longer = dataclasses.replace(RUN, chunk_seconds=ONE_STEP)
    ends = walks(run=dataclasses.replace(longer, num_steps=step))
    train(ends, tmp_path / "whole")
    stop(walks(run=longer), tmp_path / "run", asks_at(call))
    for _ in range(2):  # the second time it has ended
        assert train(ends, tmp_path / "run")
    run, whole = (RunDirectory(tmp_path / name / "run") for name in ("run", "whole"))
    assert records(run.path) == records(whole.path)
    assert run.read_finished().step == whole.read_finished().step == (step,) * 2
    w, wanted = (read(x.path, step)["params.w"] for x in (run, whole))
    assert (w == wanted).all()
    assert train(walks(child=walk(str(run.path))), tmp_path / "child")
    longest = walks(run=dataclasses.replace(longer, num_steps=9))
    for home in ("run", "longest"):
        assert train(longest, tmp_path / home)
    found = records(run.path)
    for record in records(tmp_path / "longest/run"):
        assert record in found


def test_members_that_all_diverged_are_recorded_also_after_a_stop(tmp_path):
    """The run stops after they did, and before the record of the step."""
    diverges = dataclasses.replace(RUN, hypers=Hypers(learning_rate=DIVERGES))
    experiment = walks(run=dataclasses.replace(diverges, chunk_seconds=ONE_STEP))
    for home, call in (("whole", None), ("run", 6)):
        if call:
            stop(experiment, tmp_path / home, asks_at(call))
            assert all(read(tmp_path / home / "run", 3)["status"] == DIVERGED)
        with pytest.raises(RunError, match="all members diverged"):
            train(experiment, tmp_path / home)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_programs_are_compiled_once_also_when_resuming(tmp_path, caplog):
    """Those of all members, several chunks of one step each; a second trace raises."""
    experiment = walks(run=dataclasses.replace(RUN, chunk_seconds=ONE_STEP))
    for work in (
        lambda: stop(experiment, tmp_path, asks_at(6)),
        lambda: train(experiment, tmp_path),
    ):
        caplog.clear()
        with jax.log_compiles():
            work()
        said = [record.getMessage() for record in caplog.records]
        compiled = [text for text in said if text.startswith("Compiling jit(")]
        of_members = [text for text in compiled if "mesh=Mesh('member'" in text]
        assert len(of_members) == 2, of_members  # steps and evaluation
