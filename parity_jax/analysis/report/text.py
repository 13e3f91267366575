"""The report as Markdown: a table of answers, of claims by section, of runs."""

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from parity_jax.analysis.legend import SECTIONS
from parity_jax.analysis.report.entries import Entry, SweepEntry
from parity_jax.analysis.report.words import (
    Claim,
    expected,
    order,
    summary,
    tolerance,
    value_text,
)
from parity_jax.runs.progress import SHOWN

UNKNOWN = "not recorded"
OTHER = "Other claims"  # that the legend does not have
VERDICT = {True: "holds", False: "does not hold"}
COLUMNS = (
    "id",
    "claim",
    "measured",
    "expected",
    "tolerance",
    "verdict",
    "experiment",
)
ANSWER_COLUMNS = ("id", "question", "answer", "claims that hold", "figure")
RUN_COLUMNS = (
    "experiment",
    "claims that hold",
    "commit",
    "device",
    "minutes",
    "command",
)
# Signs that Markdown would take for its own.
MARKUP = re.compile(r"[\\`*|<~&]|(?<!\w)_|_(?!\w)|\](?=\()")


class Table(NamedTuple):
    """A table of text, as both forms of the report show it."""

    columns: Sequence[str]
    rows: list[list[str]]


def answered(entries: list[Entry]) -> list[Entry]:
    """The experiments that answer a question, in the order of their claims."""
    found = [entry for entry in entries if entry.answer]
    return sorted(found, key=lambda entry: order(entry.subject))


def sections(entries: list[Entry]) -> dict[str, list[list[str]]]:
    """The rows of every section that has claims: in the order of their ids."""
    found: dict[str, list[list[str]]] = {title: [] for title in (*SECTIONS, OTHER)}
    pairs = [(claim, entry) for entry in entries for claim in entry.claims]
    for claim, entry in sorted(pairs, key=lambda pair: order(pair[0]["id"])):
        found[section_of(claim["id"])].append(row(claim, entry.name))
    return {title: rows for title, rows in found.items() if rows}


def section_of(id: str) -> str:
    """The section of the legend that has a claim."""
    return next((title for title, ids in SECTIONS.items() if id in ids), OTHER)


def row(claim: Claim, experiment: str) -> list[str]:
    """The cells of a claim, by column."""
    return [
        claim["id"],
        claim["claim"],
        summary(claim["measured"]),
        expected(claim),
        tolerance(claim),
        VERDICT[claim["holds"]],
        experiment,
    ]


def run_row(entry: Entry) -> list[str]:
    """The cells of an experiment, by column."""
    recorded, minutes = entry.provenance, entry.provenance.minutes
    commits = [c[:12] + "+" * c.endswith("+") for c in recorded.commits]
    return [
        entry.name,
        entry.held,
        ", ".join(commits) or UNKNOWN,
        ", ".join(recorded.devices) or UNKNOWN,
        UNKNOWN if minutes is None else f"{minutes:g}",
        recorded.command or UNKNOWN,
    ]


def sweep_table(sweep: SweepEntry) -> Table:
    """The last scores of a sweep."""
    scores = [
        (name, label)
        for name, label, _ in SHOWN
        if any(name in row["scores"] for row in sweep.table)
    ]
    columns = ["run", *sweep.fields, *(label for _, label in scores)]
    rows = [
        [
            row["run"],
            *(value_text(row.get(name)) for name in sweep.fields),
            *(summary(row["scores"].get(name)) for name, _ in scores),
        ]
        for row in sweep.table
    ]
    return Table(columns, rows)


def markdown(entries: list[Entry], sweeps: Sequence[SweepEntry] = ()) -> str:
    """The report as Markdown, figures by link."""
    parts: list[str] = []
    if answered(entries):
        rows = [answer_row(entry) for entry in answered(entries)]
        parts += ["# Questions", lines_of(ANSWER_COLUMNS, rows)]
    parts.append("# Claims")
    for title, rows in sections(entries).items():
        parts += [f"## {title}", table(COLUMNS, rows)]
    parts += ["# Runs", table(RUN_COLUMNS, [run_row(entry) for entry in entries])]
    for entry in entries:
        picture = figure_link(entry) if entry.picture.png else ""
        parts += [f"## {plain_text(entry.name)}", entry.notes]
        parts.append(f"![{plain_text(entry.name)}]({picture})" * bool(picture))
    for sweep in sweeps:
        link = f"![{plain_text(sweep.name)}]({quote(sweep.name)}.png)"
        parts += [f"# Sweep {plain_text(sweep.name)}", table(*sweep_table(sweep))]
        parts.append(link * bool(sweep.figure))
    return "\n\n".join(part for part in parts if part) + "\n"


def answer_row(entry: Entry) -> list[str]:
    """The cells of an answer as Markdown, by column."""
    said = entry.answer
    texts = [entry.subject, *((said.question, said.answer) if said else ()), entry.held]
    name = plain_text(entry.name)
    link = f"[{name}]({figure_link(entry)})" if entry.picture.png else name
    return [*map(plain_text, texts), link]


def table(columns: Sequence[str], rows: list[list[str]]) -> str:
    """A table of plain text in Markdown."""
    return lines_of(columns, [[plain_text(cell) for cell in row] for row in rows])


def lines_of(columns: Sequence[str], rows: list[list[str]]) -> str:
    """A table of Markdown in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain_text(text: str) -> str:
    """Text in one line that Markdown shows as it is."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def figure_link(entry: Entry) -> str:
    """Where the figure is, from the report."""
    return f"{quote(entry.name)}/figure.png"
