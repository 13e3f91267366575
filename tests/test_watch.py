"""The terminal's view of runs: the numbers of metrics.jsonl, at any moment."""

import io
import re
import sys

import pytest
from small_runs import records, train, train_until, walk, walks

from parity_jax.cli.main import run
from parity_jax.cli.text import Output
from parity_jax.cli.watch import BARS, curve_table, sparkline
from parity_jax.runs.metrics_file import Record
from parity_jax.runs.progress import Report


def watched(path, capsys):
    assert run(["watch", str(path), "--once"]) == 0
    return capsys.readouterr().out


def test_an_experiment_that_was_stopped_and_then_finished(tmp_path, capsys):
    experiment = walks(walk=walk(), later=walk("walk"))
    train_until(3, experiment, tmp_path)
    out = watched(tmp_path, capsys)
    assert "walk  step 3/4  not running here" in out and "later  has not begun" in out
    train(experiment, tmp_path)
    out = watched(tmp_path, capsys)
    assert "walk  step 4/4  finished" in out and "later  step 4/4  finished" in out
    accuracy = records(tmp_path / "later")[-1].values["greedy/accuracy"]
    row = next(
        x for x in watched(tmp_path / "later", capsys).splitlines() if "seed=1" in x
    )
    assert f"{accuracy[1]:.3f}" in row
    assert run(["watch", str(tmp_path)]) == 0  # ends by itself: all have finished


def test_records_that_are_not_as_they_were_are_not_shown(tmp_path, capsys):
    assert train(walks(walk=walk()), tmp_path)
    file = tmp_path / "walk" / "metrics.jsonl"
    altered = re.sub(r'("greedy/accuracy": ?)\[[^,]+', r"\1[0.125", file.read_text())
    file.write_text(altered)
    for path in (tmp_path, tmp_path / "walk"):
        assert run(["watch", str(path), "--once"]) == 1
        said = capsys.readouterr()
        assert "metrics.jsonl is not as it was" in said.err and said.out == ""


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([0, 7], BARS[0] + BARS[7]),
        (range(8), BARS),
        ([2.0, 2.0], BARS[0] * 2),
        ([0, 2, 4, 6, 7, 15], BARS[0] + BARS[3] + BARS[7]),  # means 1, 5, 11
    ],
)
def test_bars_by_hand(values, bars):
    assert sparkline([*values], 3 if len(values) == 6 else 40) == bars


def test_a_text_is_printed_as_it_is(capsys):
    """Though rich knows signs for some."""
    text = "runs/:100:/[b]: answer :one: a:b:c"
    Output().print(text)
    Report("x").warn(text)
    printed = capsys.readouterr()
    assert printed.out == f"{text}\n" and printed.err == f"warning: {text}\n"


def test_a_curve_that_has_ended_has_no_last_value():
    """Whose members all have diverged."""
    records = [
        Record("eval", step, 0.0, {"greedy/accuracy": values})
        for step, values in enumerate(([0.5, 0.7], [0.9, None], [None, None]))
    ]
    for num, told in ((1, "0.600"), (2, "0.900"), (3, "-")):
        (*_, column) = curve_table(records[:num]).columns
        assert [*column.cells] == [told]


def test_a_terminal_of_few_signs(tmp_path, monkeypatch):
    """Bars are written as ASCII has them, and nothing is lost."""
    train(walks(walk=walk()), tmp_path)
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert run(["watch", str(tmp_path), "--once"]) == 0
    out.flush()
    assert b"\\u258" in out.buffer.getvalue()


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert run(["watch", str(tmp_path)]) == 2
    assert "must be a directory that a run" in capsys.readouterr().err
    for damage in (
        '{"runs": 3}',
        '{"runs": {"../a": {}}}',
        '{"schedule": {}, "axes": {"seed": [[0]]}}',
        '{"schedule": {}, "axes": {"seed": "01"}}',
    ):
        (tmp_path / "config.json").write_text(damage)
        assert run(["watch", str(tmp_path), "--once"]) == 1
        assert "config.json: damaged: " in capsys.readouterr().err
