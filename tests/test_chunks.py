"""Where a run is cut into chunks changes nothing; its programs are compiled once."""

import dataclasses

import jax
import pytest
from small_runs import contents, digests, read, records, stop, train, walk, walks

from parity_jax.runs import RunDirectory

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
