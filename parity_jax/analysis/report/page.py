"""The report as a page: claims that can be filtered, figures beside their claims."""

from collections.abc import Sequence
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from parity_jax.analysis.report.entries import Entry, SweepEntry
from parity_jax.analysis.report.text import (
    ANSWER_COLUMNS,
    COLUMNS,
    RUN_COLUMNS,
    VERDICT,
    answered,
    figure_link,
    run_row,
    sections,
    sweep_table,
)


def page(entries: list[Entry], sweeps: Sequence[SweepEntry] = ()) -> str:
    """One HTML page that shows the figures beside it; it asks for nothing else."""
    loader = PackageLoader("parity_jax.analysis.report", "")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown": html_of, "figure": best_figure, "path": quote}
    found = [claim for entry in entries for claim in entry.claims]
    return environment.get_template("page.html").render(
        entries=entries,
        answered=answered(entries),
        sections=sections(entries),
        runs=[run_row(entry) for entry in entries],
        sweeps=[(sweep, sweep_table(sweep)) for sweep in sweeps],
        columns=COLUMNS,
        answer_columns=ANSWER_COLUMNS,
        run_columns=RUN_COLUMNS,
        verdict=VERDICT,
        held=sum(claim["holds"] for claim in found),
        total=len(found),
    )


def html_of(notes: str) -> Markup:
    """Markdown as HTML, in which HTML is text."""
    return Markup(MarkdownIt("js-default").render(notes))


def best_figure(entry: Entry) -> str:
    """Where the figure is, from the page: the drawing if there is one; or empty."""
    link = figure_link(entry)
    if entry.picture.svg:
        return link.removesuffix("png") + "svg"
    return link if entry.picture.png else ""
