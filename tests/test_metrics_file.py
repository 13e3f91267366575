"""The records of a run, the arrays they are loaded as, and atomic small files."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from small_runs import DIVERGES, train, walk, walks

from parity_jax.analysis import load_metrics
from parity_jax.analysis.results import as_dataset
from parity_jax.config import ConfigError
from parity_jax.metrics import Mean
from parity_jax.runs import ExperimentDirectory, RunDirectory, RunError, resolve
from parity_jax.runs.files import read_json, whole_directory, write_json
from parity_jax.runs.lineage import Lineage, ParentEntry, this_process
from parity_jax.runs.metrics_file import MetricsFile, Record
from parity_jax.runs.progress import Report


def mean(*values):
    """One mean per member; None was not counted."""
    count = jnp.array([float(v is not None) for v in values])
    return Mean(jnp.array([v or 0.0 for v in values]), count)


def began(path, run, parent=None):
    """The directory of a run that has begun."""
    directory = RunDirectory(path)
    directory.write_config(run)
    directory.write_lineage(Lineage("walk", this_process(), parent))
    return directory


@pytest.fixture
def run(tmp_path):
    """A directory with 2 x 2 members, training records at 1, 3 and evaluation at 3."""
    axes = FrozenDict({"p_cot": (0.1, 0.2)})
    file = began(tmp_path, resolve(walks(run=walk(axes=axes)))["run"]).metrics
    first = {"loss": mean(1.0, 2.0, 3.0, 4.0), "tokens": mean(5, 6, 7, 8)}
    first |= {"kl": mean(*[None] * 4)}
    second = {"loss": mean(0.5, None, 0.25, 0.1), "tokens": mean(1, None, 1, 1)}
    file.append("train", 1, 0.12345, first)
    second |= {"kl": mean(1, 1, 1, 1)}
    file.append("train", 3, 0.1, second)
    file.append("eval", 3, 0.1, {"greedy/accuracy": mean(0.5, 1, 1, 1)})
    return tmp_path


def test_metrics_have_the_dimensions_of_the_axes(run):
    data = load_metrics(run, "train")
    assert data["loss"].dims == ("p_cot", "seed", "step")
    assert data["step"].values.tolist() == [1, 3]
    assert float(data["loss"].sel(p_cot=0.2, seed=1, step=1)) == 4.0
    assert float(data["loss"].sel(p_cot=0.1, seed=1, step=1)) == 2.0
    evaluation = load_metrics(run)
    assert list(evaluation) == ["greedy/accuracy"]
    assert float(evaluation["greedy/accuracy"].sel(p_cot=0.1, seed=0, step=3)) == 0.5


def test_what_was_not_computed_is_null_and_nan(run):
    first, second, _ = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert first["seconds"] == 0.123
    assert second["values"]["loss"] == [0.5, None, 0.25, pytest.approx(0.1)]
    data = load_metrics(run, "train")
    assert np.isnan(data["loss"].sel(p_cot=0.1, seed=1, step=3))
    assert np.isnan(data["kl"].sel(step=1)).all()
    assert (data["kl"].sel(step=3) == 1).all()


def test_counters_come_with_running_totals(run):
    """`tokens` is a mean per step: 1 step in the first record, 2 in the second."""
    total = load_metrics(run, "train")["num_tokens"]
    assert total.sel(p_cot=0.1, seed=0).values.tolist() == [5.0, 5 + 2 * 1.0]
    assert total.sel(p_cot=0.1, seed=1).values.tolist() == [6.0, 6.0]


def test_totals_are_whole(tmp_path):
    """Records hold means in float32, of which seven times a seventh is not 1."""
    run = began(tmp_path / "run", resolve(walks(run=walk()))["run"])
    run.metrics.append("train", 7, 0.0, {"tokens": mean(411 / 7, 236 / 7)})
    total = load_metrics(run.path, "train")["num_tokens"]
    assert total.values.ravel().tolist() == [411, 236]


def test_totals_of_a_member_that_stopped_within_a_record(tmp_path):
    """It trained on fewer steps than the others, of which the record has the mean."""
    axes = FrozenDict({"learning_rate": (1e-2, DIVERGES)})
    rollouts = walk(axes=axes, num_steps=12, log_every=6)
    assert train(walks(run=rollouts, seeds=(0,)), tmp_path)
    finished = RunDirectory(tmp_path / "run").read_finished()
    assert finished.step[0] == 12 and finished.step[1] < 6
    total = as_dataset(
        RunDirectory(tmp_path / "run").read_config(),
        [Record("train", step, 0.0, {"rollouts": [2.0, 2.0]}) for step in (6, 12)],
        finished.step,
    )["num_rollouts"]
    assert total.values.ravel().tolist() == [12, 24, *2 * [2 * finished.step[1]]]


def test_sequences_are_counted_from_the_first_stage_of_a_chain_on(run, tmp_path):
    """A walk takes 2 a step; a member that starts at step 3 has 3 steps more."""
    assert load_metrics(run, "train")["sequences"].values.tolist() == [2, 6]
    axes = FrozenDict({"parent_step": (1, 3)})
    child = walk(parent="run", num_steps=8, axes=axes)
    experiment = walks(run=walk(checkpoint_every=1), child=child)
    parent = ParentEntry("run", (1, 3), ("", ""), (2, 6))
    path = tmp_path / "child"
    file = began(path, resolve(experiment)["child"], parent).metrics
    file.append("eval", 8, 0.0, {"loss": mean(1, 1, 1, 1)})
    count = load_metrics(path)["sequences"]
    assert count.sel(parent_step=1, step=8) == 18 and count.sel(parent_step=3) == [22]
    path = tmp_path / "late"
    experiment = walks(run=walk(), late=walk(parent="run", num_steps=8))
    parent = ParentEntry("run", (4,), ("",), (8,))
    file = began(path, resolve(experiment)["late"], parent).metrics
    file.append("eval", 8, 0.0, {"loss": mean(1, 1)})
    assert load_metrics(path)["sequences"].values.tolist() == [8 + 16]


def test_what_cannot_be_loaded_is_named(run, tmp_path):
    with pytest.raises(ConfigError, match=r"split='test': unknown; .* eval, train"):
        load_metrics(run, "test")
    home = ExperimentDirectory(tmp_path / "home")
    experiment = walks(a=walk())
    home.write_config(experiment)
    began(home.run("a").path, resolve(experiment)["a"])
    with pytest.raises(ConfigError, match="experiment's; name one of its runs: a"):
        load_metrics(home.path)
    with pytest.raises(RunError, match="has no record of split 'eval' yet"):
        load_metrics(home.path / "a")
    with pytest.raises(ConfigError, match=r"nowhere.*no config\.json"):
        load_metrics(tmp_path / "nowhere")
    config = RunDirectory(run).read_config()
    more = config.axes.copy({"seed": (0, 1, 2)})  # 6 members, but records of 4
    RunDirectory(run).write_config(dataclasses.replace(config, axes=more))
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 1 is damaged"):
        load_metrics(run)


def test_rewind_drops_later_records_and_a_cut_off_line(run):
    file = MetricsFile(run / "metrics.jsonl")
    whole = file.path.read_text()
    with file.path.open("a") as text:
        text.write('{"split": "train", "st')
    assert len(file.read()) == 3
    file.rewind(3)
    assert file.path.read_text() == whole
    file.rewind(1)
    assert [r.step for r in file.read()] == [1]
    ones = mean(1, 1, 1, 1)
    with pytest.raises(RunError, match="recorded other metrics of train: kl, tokens"):
        file.append("train", 2, 0.0, {"loss": ones})
    file.append("train", 2, 0.0, dict.fromkeys(("loss", "tokens", "kl"), ones))
    assert [r.step for r in file.read()] == [1, 2]
    with pytest.raises(RunError, match="the records up to step 5 are gone"):
        file.rewind(5)
    assert [r.step for r in file.read()] == [1, 2]
    file.rewind(-1)
    assert file.read() == []


def test_rewind_of_a_new_run(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.rewind(-1)
    assert file.path.exists() and file.read() == []


def test_write_json_is_atomic(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    for value in (object(), float("nan")):
        with pytest.raises((TypeError, ValueError)):
            write_json(path, {"a": value})
    assert read_json(path) == {"a": 1}
    write_json(path, [1, 2])
    assert read_json(path) == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_what_cannot_be_written_leaves_no_part(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(OSError):
        write_json(tmp_path / "x.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_whole_directory_touches_no_other(tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "mine.txt").touch()
    with pytest.raises(KeyError), whole_directory(tmp_path / "out") as part:
        (part / "file").touch()
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["out.part"]
    with whole_directory(tmp_path / "new" / "out") as part:
        (part / "file").touch()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]
    mode = (tmp_path / "new").stat().st_mode
    assert (tmp_path / "new" / "out").stat().st_mode == mode
    assert (tmp_path / "new" / "out" / "file").exists()
    assert (tmp_path / "out.part" / "mine.txt").exists()


def test_a_report_prints_names_as_they_are(capsys):
    Report("run").warn("p[/b]/[red]run: damaged")
    Report("run", quiet=False).line("p[/b]/[red]run")
    warning, line = capsys.readouterr().err.splitlines()
    assert warning == "warning: p[/b]/[red]run: damaged" and line == "p[/b]/[red]run"
