"""The report says what the claims say, and can be made again from what it left."""

import json
import os
import shutil
import signal
from dataclasses import replace

import html5lib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from flax.core import FrozenDict
from tiny import tiny_experiment

from parity_jax.analysis import Check, Claim
from parity_jax.analysis.claims import plain_claims, write_claims
from parity_jax.analysis.legend import LEGEND, SECTIONS
from parity_jax.analysis.plots import pictures_of
from parity_jax.analysis.report import entries as report_entries
from parity_jax.analysis.report import gather
from parity_jax.analysis.report.entries import SweepEntry, provenance
from parity_jax.analysis.report.figures import MAX_SVG
from parity_jax.analysis.report.text import sweep_table
from parity_jax.analysis.report.words import (
    expected,
    order,
    short_number,
    summary,
    tolerance,
)
from parity_jax.cli import main
from parity_jax.runs import ExperimentDirectory, resolve
from parity_jax.runs.files import read_json, write_json
from parity_jax.runs.lineage import Continuation, Lineage, Process
from parity_jax.runs.metrics_file import Record
from parity_jax.types import StageState

STARTED = "2026-01-01T00:00:00+00:00"
COMMAND = "parity-jax run --config=c9_x.py --workdir=runs/c9_x"
NONE = FrozenDict()
TOY = Claim.of("toy", "as it was", x=Check.equal(1, 1))
PROCESS = Process(STARTED, "cpu: cpu x 2", FrozenDict({"jax": "0"}), "a", NONE, NONE)


def finish(directory, run, lineage, seconds=90.0):
    """The files of a run whose records took so long."""
    directory.write_config(run)
    directory.write_lineage(lineage)
    record = Record("eval", 0, seconds, {"greedy/accuracy": [0.5, 0.5]})
    directory.metrics.path.write_text(json.dumps(record._asdict()) + "\n")
    zeros = np.zeros(2, int)
    directory.write_finished(StageState(None, zeros, None, None, None, zeros, None))


@pytest.fixture
def run_dir(tmp_path):
    """Two runs below one experiment; one claim of two holds."""
    home = ExperimentDirectory(tmp_path / "runs" / "c9_x")
    experiment = tiny_experiment()
    home.write_config(experiment)
    for (name, run), commit in zip(
        resolve(experiment).items(), ("abc", "abd+"), strict=True
    ):
        lineage = Lineage("pretrain", replace(PROCESS, commit=commit))
        finish(home.run(name), run, lineage)
    members = xr.DataArray([0.25, 0.5], {"seed": [0, 1]}, ("seed",))
    claims = [
        Claim.of("C10", "p < q & r | s*", p=Check.within(members, 0.3, 0.25)),
        Claim.of("C2", "fails", q=Check.at_most(3.0, 2)),
    ]
    write_claims(home.claims, claims)
    figure, ax = plt.subplots()
    ax.plot([[0, 1, 2], [1, 3, 0]])  # antialiased colours, more than the report keeps
    png, svg = pictures_of(figure)
    home.figure.write_bytes(png)
    home.drawing.write_bytes(svg)
    home.command.write_text(f"{COMMAND}\n")
    write_json(home.answer, {"question": "Is a|b?", "answer": "It is <1>."})
    return home.path


@pytest.fixture
def say(capsys):
    """Type a command: its exit code, what it printed, what it said is wrong."""

    def say(*arguments):
        code = main.run([str(a) for a in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return say


def refused(said, code, *parts):
    """One line on stderr, nothing else."""
    found, printed, error = said
    assert (found, printed) == (code, "")
    (line,) = error.splitlines()
    assert line.startswith("error: ") and all(part in line for part in parts), line


def parsed(path):
    """A page as a tree; an error for anything that is no HTML."""
    text = path.read_text()
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)


def rows_of(part):
    """Texts of the cells of every row below an element, heads apart."""
    rows = [["".join(cell.itertext()) for cell in row] for row in part.iter("tr")]
    return [
        row
        for row, each in zip(rows, part.iter("tr"), strict=True)
        if each[0].tag == "td"
    ]


def test_minutes_commits_and_devices_come_from_the_runs(run_dir):
    found = provenance(ExperimentDirectory(run_dir))
    assert found.commits == ("abc", "abd+")
    assert found.devices == ("cpu: cpu x 2",)
    assert found.minutes == 3.0  # 90 seconds each
    assert found.command == COMMAND


def test_minutes_are_of_the_records_and_not_of_the_files(run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "copy", copy_function=shutil.copyfile)
    for file in copy.glob("*/finished.json"):
        os.utime(file, (4e9, 4e9))
    assert provenance(ExperimentDirectory(copy)).minutes == 3.0


def test_later_processes_count(run_dir):
    home = ExperimentDirectory(run_dir)
    directory = home.run("grpo")
    later = Continuation(1, replace(PROCESS, commit=None, device="gpu: x 1"))
    lineage = Lineage("policy_gradient", PROCESS, continued=(later,))
    finish(directory, directory.read_config(), lineage)
    found = provenance(home)
    assert found.devices == ("cpu: cpu x 2", "gpu: x 1")
    assert found.commits == ("a", "abc")  # none where there was no checkout


def test_the_report_can_be_made_again_from_what_it_left(run_dir, tmp_path, say):
    output = tmp_path / "results"
    (output / "c9_x").mkdir(parents=True)
    notes = "Why C2 fails: measured."
    (output / "c9_x" / "notes.md").write_text(notes)
    code, printed, error = say("report", run_dir, f"--output={output}")
    told = f"1 of 2 claims hold: {output / 'report.md'}\n"
    assert (code, printed, error) == (0, told, "")
    text = (output / "report.md").read_text()
    assert text.index("| C2 |") < text.index("| C10 |")
    assert "does not hold" in text
    assert "0.25 to 0.5" in text
    assert notes in text
    assert read_json(output / "report.json")[0]["claims"][1]["holds"] is False
    files = ("report.md", "report.json", "report.html")
    files += tuple(f"c9_x/{x}" for x in ("figure.png", "figure.svg", "claims.json"))
    files += tuple(f"c9_x/{x}" for x in ("notes.md", "answer.json", "provenance.json"))
    before = {name: (output / name).read_bytes() for name in files}
    assert say("report", output / "c9_x", f"--output={output}")[0] == 0
    after = {name: (output / name).read_bytes() for name in files}
    assert after == before  # the figure to the byte
    assert gather([output / "c9_x"], output) == gather([run_dir], output)


def test_rows_of_a_sweep_are_told_apart():
    """Scores have four digits, what is swept has all."""
    scores = {"greedy/accuracy": {"seed=0": 0.123456}}
    values = (0.3, 0.3000001, -2, 1e-9, "text", None)
    rows = [{"run": "r", "p_cot": value, "scores": scores} for value in values]
    entry = SweepEntry("s", ["p_cot"], rows, b"")
    assert [row[1:] for row in sweep_table(entry).rows] == [
        [told, "0.1235"] for told in ("0.3", "0.3000001", "-2", "1e-09", "text", "none")
    ]


def test_the_page_shows_what_the_markdown_says(run_dir, tmp_path, say):
    """It is HTML, its links lead somewhere, its filters know every claim."""
    output = tmp_path / "a result"
    (output / "c9_x").mkdir(parents=True)
    (output / "c9_x" / "notes.md").write_text("*Why* <C2> fails.")
    assert say("report", run_dir, f"--output={output}")[0] == 0
    tree = parsed(output / "report.html")
    parts = {each.get("id"): each for each in tree.iter() if each.get("id")}
    assert len(parts) == sum(each.get("id") is not None for each in tree.iter())
    links = [each.get("href") for each in tree.iter("a")]
    inside = [link for link in links if link.startswith("#")]
    assert inside and all(link[1:] in parts for link in inside)
    assert [link for link in links if link not in inside] == ["c9_x/figure.svg"]
    (image,) = tree.iter("img")
    assert image.get("src") == "c9_x/figure.svg"
    assert (output / "c9_x/figure.svg").read_bytes()[:5] == b"<?xml"
    assert rows_of(parts["questions"]) == [
        ["C2", "Is a|b?", "It is <1>.", "1 of 2", "c9_x"]
    ]
    (claims,) = (e for e in tree.iter("section") if e.get("class") == "claims")
    fails = ["C2", "fails", "3", "at most 2", "none", "does not hold", "c9_x"]
    holds = ["C10", "p < q & r | s*", "0.25 to 0.5", "0.3", "0.25", "holds", "c9_x"]
    assert rows_of(claims) == [fails, holds]
    classes = [row.get("class") for row in claims.iter("tr")]
    assert classes == [None, "fails", "holds"]
    shown = "".join(parts["c9_x"].itertext())
    assert COMMAND in shown and "Why <C2> fails." in shown
    assert "abc, abd+" in shown and "cpu: cpu x 2" in shown


def test_answers_open_the_report(run_dir, tmp_path, say):
    output = tmp_path / "results"
    assert say("report", run_dir, f"--output={output}")[0] == 0
    head, row = (output / "report.md").read_text().splitlines()[2:5:2]
    assert head == "| id | question | answer | claims that hold | figure |"
    link = "[c9_x](c9_x/figure.png)"
    assert row == rf"| C2 | Is a\|b? | It is \<1>. | 1 of 2 | {link} |"
    (run_dir / "answer.json").unlink()
    assert say("report", run_dir, f"--output={output}")[0] == 0
    assert (output / "report.md").read_text().startswith("# Claims")
    assert not (output / "c9_x/answer.json").exists()


def test_a_large_drawing_is_left_out(run_dir, tmp_path, say):
    output, drawing = tmp_path / "results", run_dir / "figure.svg"
    assert say("report", run_dir, f"--output={output}")[0] == 0
    drawing.write_bytes(drawing.read_bytes() + b" " * MAX_SVG)
    assert say("report", run_dir, f"--output={output}")[0] == 0
    assert not (output / "c9_x/figure.svg").exists()
    (image,) = parsed(output / "report.html").iter("img")
    assert image.get("src") == "c9_x/figure.png"


def test_claims_stand_in_the_section_of_the_legend(run_dir, tmp_path, say):
    """Its text comes with the claim, so that an older one is reported as it was."""
    ids = ["noise-accuracy", "T1-long", "M1", "C11", "C1", "toy"]
    claims = [Claim.of(id, "as it was", x=Check.equal(1, 1)) for id in ids]
    write_claims(run_dir / "claims.json", claims)
    output = tmp_path / "results"
    assert say("report", run_dir, f"--output={output}")[0] == 0
    lines = (output / "report.md").read_text().split("# Runs")[0].splitlines()
    heads = [line[3:] for line in lines if line.startswith("## ")]
    told = [
        title
        for title, ids in SECTIONS.items()
        if {*ids} & {claim.id for claim in claims}
    ]
    assert heads == [*told, "Other claims"] and told[:2] == ["The paper", "Theory"]
    found = [line.split(" | ")[0][2:] for line in lines if " | as it was | " in line]
    assert found == ["C1", "C11", "M1", "T1-long", "noise-accuracy", "toy"]
    assert len(LEGEND) == sum(map(len, SECTIONS.values()))  # an id stands once


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.99998, "0.99998"),
        (0.98996, "0.98996"),
        (0.984375, "0.9844"),
        (0.5, "0.5"),
        (1.0, "1"),
        (10000.4, "10000.4"),
        (123456.0, "123456"),
        (None, "none"),
    ],
)
def test_no_number_is_told_as_the_bound_that_it_misses(number, text):
    assert short_number(number) == text


def test_more_checks_than_fit_keep_their_relations():
    checks = {f"a{i}": Check.at_least(0.9, 0.8 - i / 100) for i in range(4)}
    checks |= {f"b{i}": Check.at_most(0.1, 0.2 + i / 100) for i in range(4)}
    (claim,) = plain_claims([Claim.of("C1", **checks)])
    assert expected(claim) == "at least, at most: 0.2 to 0.8"


def test_claims_do_not_count_twice_and_a_place_is_looked_at_first(
    run_dir, tmp_path, say
):
    link, output = tmp_path / "link", f"--output={tmp_path / 'results'}"
    link.symlink_to(run_dir)
    refused(say("report", run_dir, link, output), 2, str(link), "would count twice")
    nowhere = "output='/proc/x': cannot be written"
    refused(say("report", run_dir, "--output=/proc/x"), 2, nowhere)
    assert not (tmp_path / "results").exists()


def test_what_cannot_be_reported_is_one_line_and_writes_nothing(
    run_dir, tmp_path, say, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    output = "--output=results"
    refused(say("report", run_dir), 2, "required: --output")
    refused(say("report", output), 2, "required: DIR")
    nothing = tmp_path / "nothing"
    refused(say("report", nothing, output), 2, f"DIR={str(nothing)!r}", "claims.json")
    other = tmp_path / "other" / "c9_x"
    other.mkdir(parents=True)
    write_claims(other / "claims.json", [TOY])
    refused(say("report", run_dir, other, output), 2, "has the name of", str(run_dir))
    refused(say("report", run_dir, f"{run_dir}/", output), 2, "has the name of")
    (tmp_path / "file").write_text("")
    refused(say("report", run_dir, "--output=file"), 2, "output='file'", "directory")
    refused(say("report", run_dir, f"--output={run_dir.parent}"), 2, "would change")
    for inside in (run_dir, run_dir / "report", run_dir / "grpo" / ".." / "report"):
        refused(say("report", run_dir, f"--output={inside}"), 2, "must not be in")
    edited = (
        (run_dir / "claims.json").read_text().replace('"holds": false', '"holds": true')
    )
    for text in ("{", "{}", '["C1"]', '[{"id": "C1"}]', "[]", "[NaN]", edited):
        (other / "claims.json").write_text(text)
        refused(say("report", other, output), 1, "c9_x/claims.json: damaged")
    claim = {"id": "C1", "claim": "", "holds": True, "relation": "within"}
    claim |= dict.fromkeys(("measured", "expected", "tolerance"), 0)
    for damage in (
        {"holds": "yes"},
        {"id": 1},
        {"relation": {"length": "equal"}},
        {"measured": {"seed=0": {"seed=1": 0}}},
        {"expected": {"seed=0": "0"}},
        {"tolerance": [0]},
    ):
        write_json(other / "claims.json", [claim | damage])
        refused(say("report", other, output), 1, "must be a list of claims")
    for damage in ({"id": "\ud800"}, {"measured": 10**400}):
        write_json(other / "claims.json", [claim | damage])
        refused(say("report", other, output), 1, "c9_x/claims.json: damaged")
    write_claims(other / "claims.json", [TOY])
    for text in ("[]", '{"question": "?"}', '{"question": "?", "answer": ""}'):
        (other / "answer.json").write_text(text)
        refused(say("report", other, output), 1, "c9_x/answer.json: damaged")
    (other / "answer.json").unlink()
    write_json(other / "provenance.json", {"commits": "abc"})
    refused(say("report", other, output), 1, "c9_x/provenance.json: damaged")
    bad = tmp_path / "bad\udcff"
    refused(say("report", bad, output), 2, "must be UTF-8")
    (run_dir / "command.txt").write_bytes(b"\xff")
    refused(say("report", run_dir, output), 1, "c9_x/command.txt: damaged")
    lineage = run_dir / "grpo" / "lineage.json"
    whole = lineage.read_text()
    for text in ("{", "[" * 100_000):
        lineage.write_text(text)
        refused(say("report", run_dir, output), 1, "grpo/lineage.json: damaged")
    lineage.write_text(whole.replace("cpu: cpu x 2", "cuda: H100 x 8"))
    refused(say("report", run_dir, output), 1, "grpo/lineage.json is not as it was")
    lineage.write_text(whole)
    records = run_dir / "grpo" / "metrics.jsonl"
    records.write_text(records.read_text().replace("0.5", "0.9"))
    refused(say("report", run_dir, output), 1, "grpo/metrics.jsonl is not as it was")
    (run_dir / "grpo" / "finished.json").unlink()
    refused(say("report", run_dir, output), 1, "grpo, which has not finished")
    shutil.rmtree(run_dir / "grpo")
    refused(say("report", run_dir, output), 1, "grpo: missing, which")
    assert not (tmp_path / "results").exists()


UNKNOWN = b'<?xml version="1.0" encoding="none"?><svg/>'


@pytest.mark.parametrize("again", [False, True])
def test_a_damaged_figure_is_one_line(run_dir, tmp_path, say, again):
    """One of a run, and one that an earlier report left."""
    directory, output = run_dir, tmp_path / "results"
    if again:
        assert say("report", run_dir, f"--output={output}")[0] == 0
        directory = output / "c9_x"
    whole = (directory / "figure.png").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"not a picture"):
        (directory / "figure.png").write_bytes(content)
        said = say("report", directory, f"--output={tmp_path / 'new'}")
        refused(said, 1, "c9_x/figure.png: damaged")
    (directory / "figure.png").write_bytes(whole)
    for content in (b"<svg", b"", b"<html></html>", UNKNOWN):
        (directory / "figure.svg").write_bytes(content)
        said = say("report", directory, f"--output={tmp_path / 'new'}")
        refused(said, 1, "c9_x/figure.svg: damaged")
    assert not (tmp_path / "new").exists()


def test_a_signal_stops_a_report(run_dir, tmp_path, say, monkeypatch):
    def stopped(*args):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(report_entries, "entry_of", stopped)
    refused(say("report", run_dir, f"--output={tmp_path / 'new'}"), 75, "stopped")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.123456, "0.1235"),
        (76800.0, "76800"),
        (True, "True"),
        (None, "none"),
        ("1/3", "1/3"),
        (float("nan"), "nan"),
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


def many(n):
    """As many checks, each with a number of its own."""
    return {f"run {i}": Check.within(i, i, max(2, i)) for i in range(n)}


def bounds(n):
    """As many bounds."""
    return {f"run {i}": Check.at_most(i, i) for i in range(n)}


@pytest.mark.parametrize(
    ("checks", "expects", "tolerates"),
    [
        ({"a": Check.within(1, 0.25, 0.1)}, "0.25", "0.1"),
        ({"a": Check.equal(1, 50)}, "50", "exact"),
        ({"a": Check.at_least(1, 0.99)}, "at least 0.99", "none"),
        ({"a": Check.above(1, 2), "b": Check.above(3, 2)}, "above 2", "none"),
        (
            {
                "before, accuracy": Check.within(1, 0.5, 0.1),
                "before, length": Check.equal(1, 1),
                "control, accuracy": Check.within(1, 0.5, 0.1),
                "control, length": Check.equal(1, 1),
            },
            "accuracy 0.5; length 1",
            "accuracy 0.1; length exact",
        ),
        (
            {"crossing": Check.within(1, 1 / 3, 0.02), "width": Check.below(1, 0.08)},
            "crossing 0.3333; width below 0.08",
            "crossing 0.02",
        ),
        (
            {"x": Check.within(1, 2, 0.1), "y": Check.within(1, 2, 0.1)}
            | {"z": Check.within(1, 3, 0.2)},
            "x, y 2; z 3",
            "x, y 0.1; z 0.2",
        ),
        (many(9), "0 to 8", "2 to 8"),
        (bounds(9), "at most 0 to 8", "none"),
    ],
)
def test_expectations_are_told_shortly(checks, expects, tolerates):
    claim = vars(Claim.of("C1", "", **checks))
    assert (expected(claim), tolerance(claim)) == (expects, tolerates)


def test_older_claims_are_told_as_they_were_written():
    claim = {"expected": "accuracy >= 0.99, length 50", "tolerance": "length exact"}
    assert (expected(claim), tolerance(claim)) == tuple(claim.values())


def test_claims_are_in_the_order_of_their_numbers():
    assert sorted(["C10", "C2-maj", "C2", "C1"], key=order) == [
        "C1",
        "C2",
        "C2-maj",
        "C10",
    ]
