"""The report says what the claims say, and can be made again from what it left."""

import os
from datetime import datetime

import matplotlib.pyplot as plt
import pytest

from experiments.report import gather, markdown, order, page, provenance, summary, write
from parity_jax.results import Claim, RunError, read_json, write_claims, write_json


@pytest.fixture
def run_dir(tmp_path):
    """Two runs below one experiment; one claim of two holds."""
    directory = tmp_path / "runs" / "c9_x"
    for name, commit in (("a", "abc"), ("b", "abd+")):
        (directory / name).mkdir(parents=True)
        started = "2026-01-01T00:00:00+00:00"
        lineage = {"commit": commit, "device": "cpu: cpu x 2", "started": started}
        write_json(directory / name / "lineage.json", lineage | {"continued": []})
        finished = directory / name / "finished.json"
        write_json(finished, {})
        end = datetime.fromisoformat(started).timestamp() + 90
        os.utime(finished, (end, end))
    claims = [
        Claim("C10", "p < q & r", "1", {"seed=0": 0.25, "seed=1": 0.5}, "0.1", True),
        Claim("C2", "fails", "2", 3.0, "none", False),
    ]
    write_claims(directory, claims)
    figure, ax = plt.subplots()
    ax.plot([[0, 1, 2], [1, 3, 0]])  # antialiased colours, more than the report keeps
    figure.savefig(directory / "figure.png")
    plt.close(figure)
    return directory


def test_minutes_commits_and_devices_come_from_the_runs(run_dir):
    assert provenance(run_dir) == {
        "commits": ["abc", "abd+"],
        "devices": ["cpu: cpu x 2"],
        "minutes": 3.0,  # 90 seconds each
    }


def test_the_report_can_be_made_again_from_what_it_left(run_dir, tmp_path):
    output = tmp_path / "results"
    (output / "c9_x").mkdir(parents=True)
    (output / "c9_x" / "notes.md").write_text("Why C2 fails: measured.")
    write([gather(run_dir, output)], output)
    text = (output / "report.md").read_text()
    assert text.index("| C2 |") < text.index("| C10 |")
    assert "does not hold" in text
    assert "0.25 to 0.5" in text
    assert "Why C2 fails" in text
    assert read_json(output / "report.json")[0]["claims"][1]["holds"] is False
    again = gather(output / "c9_x", output)
    assert again == gather(run_dir, output)  # the figure to the byte
    assert markdown([again]) == text
    shown = page([again])
    assert "p &lt; q &amp; r" in shown
    assert 'src="data:image/png;base64,' in shown


def test_a_directory_without_claims_is_named(tmp_path, run_dir):
    with pytest.raises(RunError, match=r"nothing.claims\.json"):
        gather(tmp_path / "nothing", tmp_path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.123456, "0.1235"),
        ({"seed=0": 1.0, "seed=1": 1.0}, "1"),
        (
            {"a": {"seed=0": 1, "seed=1": 2}, "b": {"x": [1, 2]}},
            "a 1 to 2; b (x [1, 2])",
        ),
        ({"seed=0": None, "seed=1": 2.0}, "2 (none for 1 of 2)"),
        ({"seed=0": None}, "none"),
    ],
)
def test_summary(value, said):
    assert summary(value) == said


def test_claims_are_in_the_order_of_their_numbers():
    ids = ["C10", "C2-maj", "C2", "C1"]
    assert sorted(ids, key=lambda i: order({"id": i})) == ["C1", "C2", "C2-maj", "C10"]
