"""The claims of finished runs in one report: Markdown, JSON and an HTML page.

A directory of an experiment gives its claims, its answer, its figure and, of the runs
below it, commit, device and minutes. What a report leaves of each in OUTPUT/NAME
(claims.json, answer.json, figure.png, figure.svg, provenance.json) is enough to report
again; OUTPUT/NAME/notes.md, if there is one, is shown beside the claims it explains and
never written. A directory of a sweep gives those of its jobs that have claims, and a
table and a figure of the last scores over what is swept (OUTPUT/NAME.scores.json,
OUTPUT/NAME.png).
"""

from collections.abc import Sequence
from pathlib import Path

from parity_jax.analysis.claims import plain_answer
from parity_jax.analysis.report.entries import (
    Entry,
    SweepEntry,
    experiments,
    gather,
    gather_sweeps,
)
from parity_jax.analysis.report.page import page
from parity_jax.analysis.report.text import markdown
from parity_jax.config import to_dict
from parity_jax.runs import ExperimentDirectory
from parity_jax.runs.files import write_bytes, write_json, write_text

__all__ = ["Entry", "SweepEntry", "experiments", "gather", "gather_sweeps", "write"]


def write(
    entries: list[Entry], output: Path, sweeps: Sequence[SweepEntry] = ()
) -> None:
    """The three forms of the report, and what each experiment and sweep adds to it."""
    output.mkdir(parents=True, exist_ok=True)
    for sweep in sweeps:
        write_json(output / f"{sweep.name}.scores.json", sweep.table)
        picture = output / f"{sweep.name}.png"
        if sweep.figure:
            write_bytes(picture, sweep.figure)
        else:  # one that an earlier report left
            picture.unlink(missing_ok=True)
    for entry in entries:
        home = ExperimentDirectory(output / entry.name)
        home.path.mkdir(parents=True, exist_ok=True)
        write_json(home.claims, entry.claims)
        write_json(home.path / "provenance.json", to_dict(entry.provenance))
        if entry.answer:
            write_json(home.answer, plain_answer(entry.answer))
        else:  # one that an earlier report left
            home.answer.unlink(missing_ok=True)
        pictures = zip((home.figure, home.drawing), entry.picture, strict=True)
        for path, content in pictures:
            if content:
                write_bytes(path, content)
            else:
                path.unlink(missing_ok=True)
    whole = [
        {
            "experiment": entry.name,
            **to_dict(entry.provenance),
            "claims": entry.claims,
            "answer": plain_answer(entry.answer) if entry.answer else None,
            "notes": entry.notes,
        }
        for entry in entries
    ]
    write_json(output / "report.json", whole)
    write_text(output / "report.md", markdown(entries, sweeps))
    write_text(output / "report.html", page(entries, sweeps))
