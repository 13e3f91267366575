"""The claims of finished runs in one table: Markdown, JSON and one HTML page.

A directory of an experiment gives its claims, its figure and, of the runs below it,
commit, device and minutes. What a report leaves of each in OUTPUT/NAME (claims.json,
figure.png, provenance.json) is enough to report again; OUTPUT/NAME/notes.md, if there
is one, is shown beside the claims it explains and never written. A directory of a sweep
gives those of its jobs that have claims, and a table and a figure of the last scores
over what is swept (OUTPUT/NAME.scores.json, OUTPUT/NAME.png).
"""

import base64
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import matplotlib.pyplot as plt
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

from parity_jax.analysis.claims import read_claims
from parity_jax.analysis.legend import SECTIONS
from parity_jax.analysis.sweeps import (
    CONFIG,
    final_table,
    sweep_figure,
    swept_names,
)
from parity_jax.config import require, to_dict
from parity_jax.runs import ExperimentDirectory, RunError
from parity_jax.runs.files import read_as, write_bytes, write_json, write_text
from parity_jax.runs.progress import SHOWN
from parity_jax.runs.sweep import SweepDirectory, is_sweep

UNKNOWN, NOTHING = "not recorded", "none"
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
RUN_COLUMNS = ("experiment", "claims that hold", "commit", "device", "minutes")
MAX_PARTS = 6  # of a cell; of more checks the range is told
NUM_COLOURS, MAX_WIDTH = 64, 1600  # of the figures in the report
# Signs that Markdown would take for its own.
MARKUP = re.compile(r"[\\`*|<~&]|(?<!\w)_|_(?!\w)|\](?=\()")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid #ccc; padding: .3em .6em; text-align: left;
         vertical-align: top; }
.holds { color: #00664a; } .fails { color: #a33c00; font-weight: bold; }
img { max-width: 100%; }
"""

Claim = dict[str, Any]  # as claims.json has it


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of an experiment come from."""

    commits: tuple[str, ...]
    devices: tuple[str, ...]
    minutes: float | None  # of all runs together; None: not recorded


class Entry(NamedTuple):
    """One experiment: what it claims and where the numbers come from."""

    name: str
    claims: list[Claim]
    provenance: Provenance
    figure: bytes  # PNG; empty without one
    notes: str


class SweepEntry(NamedTuple):
    """One sweep: its last scores over what is swept."""

    name: str
    fields: list[str]
    table: list[dict[str, Any]]  # as `final_table` gives it
    figure: bytes  # PNG; empty with less than two fields


def experiments(directories: Sequence[Path]) -> list[Path]:
    """The directories of experiments: a sweep stands for those of its jobs with claims.

    ConfigError for a sweep that has none yet.
    """
    found: list[Path] = []
    for directory in directories:
        if not is_sweep(directory):
            found.append(directory)
            continue
        homes = SweepDirectory(directory).experiments().values()
        paths = [home.path for home in homes if home.claims.exists()]
        allowed = "must have a job that has finished, with its claims"
        require(bool(paths), "DIR", str(directory), allowed)
        found += paths
    return found


def gather_sweeps(
    directories: Sequence[Path], score: str, over: Sequence[str]
) -> list[SweepEntry]:
    """The sweeps among directories that sweep more than files of experiments.

    over    two swept fields; the first two there are, if it is empty
    """
    found: list[SweepEntry] = []
    for directory in directories:
        fields = swept_names(directory) if is_sweep(directory) else []
        if [name for name in fields if name != CONFIG]:
            pair = list(over) or fields[:2]
            figure = figure_bytes(directory, score, pair) if len(pair) == 2 else b""
            table, names = final_table(directory), [each.name for each in found]
            allowed = "has the name of another sweep"
            require(name_of(directory) not in names, "DIR", str(directory), allowed)
            found.append(SweepEntry(name_of(directory), fields, table, figure))
    return found


def figure_bytes(directory: Path, score: str, pair: Sequence[str]) -> bytes:
    """The figure of a score over two fields of a sweep, as a PNG."""
    figure, out = sweep_figure(directory, score, *pair), io.BytesIO()
    figure.savefig(out, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return out.getvalue()


def gather(directories: Sequence[Path], output: Path) -> list[Entry]:
    """The entries of directories; ConfigError for one that cannot be reported there.

    RunError for one that is damaged. Nothing is written.
    """
    allowed = "must be a directory"
    require(output.is_dir() or not output.exists(), "output", str(output), allowed)
    names: dict[str, Path] = {}
    for directory in directories:
        name = name_of(directory)
        allowed = f"has the name of {names.get(name)}: a report has one {name}"
        require(name not in names, "DIR", str(directory), allowed)
        names[name] = directory
    return [entry_of(directory, output) for directory in directories]


def name_of(directory: Path) -> str:
    """What a directory is called in the report."""
    return os.path.basename(os.path.abspath(directory))


def entry_of(directory: Path, output: Path) -> Entry:
    """The entry of a directory; ConfigError without its claims.json."""
    name = name_of(directory)
    home = ExperimentDirectory(Path(os.path.abspath(directory)))
    recorded, notes = directory / "provenance.json", output / name / "notes.md"
    allowed = "must hold claims.json, which a finished experiment writes"
    require(home.claims.exists(), "DIR", str(directory), allowed)
    is_own = home.has_config() and os.path.abspath(output / name) == str(home.path)
    require(not is_own, "output", str(output), f"would change the figure of {name}")
    return Entry(
        name,
        read_claims(home.claims),
        read_as(Provenance, recorded) if recorded.exists() else provenance(home),
        shrunk(home.figure) if home.figure.exists() else b"",
        notes.read_text().strip() if notes.exists() else "",
    )


def provenance(home: ExperimentDirectory) -> Provenance:
    """Commits and devices of all runs, and the minutes they took together."""
    runs = [run for run in home.runs() if run.has_lineage()]
    lineages = [run.read_lineage() for run in runs]
    processes = [x.process for x in lineages]
    processes += [later.process for x in lineages for later in x.continued]
    seconds = [run.seconds for run in runs if run.seconds is not None]
    return Provenance(
        tuple(sorted({p.commit for p in processes if p.commit})),
        tuple(sorted({p.device for p in processes})),
        round(sum(seconds) / 60, 1) if seconds else None,
    )


def shrunk(path: Path) -> bytes:
    """A figure as a PNG of few colours, at most MAX_WIDTH wide; RunError if damaged."""
    try:
        saved = Image.open(path)
        saved.load()
        if saved.mode == "P":  # an earlier report's: doing it again would lose more
            return path.read_bytes()
        image = saved.convert("RGB")
        image.thumbnail((MAX_WIDTH, image.height))
        # median cut, the default, may drop the colour of a thin line
        few = image.quantize(NUM_COLOURS, method=Image.Quantize.FASTOCTREE)
        out = io.BytesIO()
        few.save(out, "PNG", optimize=True)
    except Exception as error:  # the library raises many kinds
        text = str(error).splitlines()[0:1]
        raise RunError(f"{path}: damaged: {''.join(text)}") from None
    return out.getvalue()


def summary(value: Any, nested: bool = False) -> str:
    """Numbers in a few words: those of members as their range."""
    if isinstance(value, dict):
        if all("=" in name and _is_number(v) for name, v in value.items()):
            return number_range(list(value.values()))
        parts = [f"{name} {summary(v, nested=True)}" for name, v in value.items()]
        return f"({', '.join(parts)})" if nested else "; ".join(parts)
    if isinstance(value, list):
        return f"[{', '.join(summary(v) for v in value)}]"
    return short_number(value) if _is_number(value) else str(value)


def short_number(value: float | None) -> str:
    """Four digits, but whole numbers whole."""
    if value is None:
        return NOTHING
    is_whole = float(value).is_integer() or abs(value) >= 10_000
    return f"{value:.0f}" if is_whole else f"{value:.4g}"


def number_range(values: list[float | None]) -> str:
    """From the smallest to the largest of the numbers that exist."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return NOTHING
    ends = dict.fromkeys(short_number(end(numbers)) for end in (min, max))
    missing = len(values) - len(numbers)
    text = f" ({NOTHING} for {missing} of {len(values)})" * bool(missing)
    return " to ".join(ends) + text


def _is_number(value: Any) -> bool:
    """A number, or None for one that does not exist."""
    return value is None or type(value) in (int, float)


def expected(claim: Claim) -> str:
    """What was expected, with how it is compared: "at least 0.99"."""

    def told(relation: str | None, value: Any) -> str:
        is_equality = relation in (None, "within", "equal")
        return summary(value) if is_equality else f"{relation} {summary(value)}"

    return over_checks(claim, "expected", told)


def tolerance(claim: Claim) -> str:
    """How far measured numbers may be from the expected ones, where they may be."""

    def told(relation: str | None, value: Any) -> str:
        if relation in (None, "within"):
            return summary(value)
        return "exact" if relation == "equal" else ""

    return over_checks(claim, "tolerance", told)


def over_checks(claim: Claim, name: str, told: Callable[[str | None, Any], str]) -> str:
    """A part of a claim in words, which has one value or a value for each check."""
    relation, value = claim.get("relation"), claim[name]
    if not isinstance(relation, dict):
        return told(relation, value) or NOTHING
    checks: dict[str, list[str]] = {}  # by what is told of them
    for check, kind in relation.items():
        checks.setdefault(told(kind, value[check]), []).append(check)
    if len(checks) == 1:
        return next(iter(checks)) or NOTHING
    if len(checks) > MAX_PARTS:
        numbers = [x for v in value.values() for x in numbers_in(v)]
        kinds = {*relation.values()}
        return told(kinds.pop() if len(kinds) == 1 else None, number_range(numbers))
    parts = [f"{common(names)} {text}" for text, names in checks.items() if text]
    return "; ".join(parts)


def common(names: list[str]) -> str:
    """What names like "control, length" have in common, or all of them."""
    last = {name.rpartition(", ")[2] for name in names}
    return last.pop() if len(last) == 1 else ", ".join(names)


def numbers_in(value: Any) -> list[float | None]:
    """All numbers of a value, however it is nested."""
    if isinstance(value, dict | list):
        below = value.values() if isinstance(value, dict) else value
        return [x for part in below for x in numbers_in(part)]
    return [value] if _is_number(value) else []


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


def order(id: str) -> list[tuple[str, int]]:
    """C2 before C10."""
    parts = re.findall(r"(\D*)(\d*)", id)
    return [(text, int(number or 0)) for text, number in parts]


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
    held, recorded = sum(c["holds"] for c in entry.claims), entry.provenance
    commits = [c[:12] + "+" * c.endswith("+") for c in recorded.commits]
    minutes = recorded.minutes
    return [
        entry.name,
        f"{held} of {len(entry.claims)}",
        ", ".join(commits) or UNKNOWN,
        ", ".join(recorded.devices) or UNKNOWN,
        UNKNOWN if minutes is None else f"{minutes:g}",
    ]


def sweep_parts(sweep: SweepEntry) -> list[str]:
    """A sweep as Markdown: its table and its figure."""
    scores = [
        (name, label)
        for name, label, _ in SHOWN
        if any(name in row["scores"] for row in sweep.table)
    ]
    columns = ["run", *sweep.fields, *(label for _, label in scores)]
    rows = [
        [
            row["run"],
            *(summary(row.get(name)) for name in sweep.fields),
            *(summary(row["scores"].get(name)) for name, _ in scores),
        ]
        for row in sweep.table
    ]
    link = f"![{plain_text(sweep.name)}]({quote(sweep.name)}.png)"
    head = f"# Sweep {plain_text(sweep.name)}"
    return [head, table(columns, rows), link * bool(sweep.figure)]


def markdown(entries: list[Entry], sweeps: Sequence[SweepEntry] = ()) -> str:
    """The report as Markdown, figures by link."""
    parts = ["# Claims"]
    for title, rows in sections(entries).items():
        parts += [f"## {title}", table(COLUMNS, rows)]
    parts += ["# Runs", table(RUN_COLUMNS, [run_row(entry) for entry in entries])]
    for entry in entries:
        parts += [f"## {plain_text(entry.name)}", entry.notes]
        link = f"![{plain_text(entry.name)}]({figure_link(entry)})"
        parts.append(link * bool(entry.figure))
    for sweep in sweeps:
        parts += sweep_parts(sweep)
    return "\n\n".join(part for part in parts if part) + "\n"


def table(columns: Sequence[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    body = [[plain_text(cell) for cell in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain_text(text: str) -> str:
    """Text in one line that Markdown shows as it is."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def figure_link(entry: Entry) -> str:
    """Where the figure is, from the report."""
    return f"{quote(entry.name)}/figure.png"


def page(entries: list[Entry], sweeps: Sequence[SweepEntry] = ()) -> str:
    """The Markdown as one HTML page that holds its figures; verdicts have colours."""
    parser = MarkdownIt("js-default")
    tokens = parser.parse(markdown(entries, sweeps))
    classes = {VERDICT[True]: "holds", VERDICT[False]: "fails"}
    for cell, content in pairwise(tokens):
        if cell.type == "td_open" and content.content in classes:
            cell.attrSet("class", classes[content.content])
    pictures = {figure_link(entry): entry.figure for entry in entries}
    pictures |= {f"{quote(sweep.name)}.png": sweep.figure for sweep in sweeps}
    figures = {link: base64.b64encode(png).decode() for link, png in pictures.items()}
    for image in images(tokens):
        figure = figures.get(str(image.attrGet("src")))
        if figure:
            image.attrSet("src", f"data:image/png;base64,{figure}")
    body = parser.renderer.render(tokens, parser.options, {})
    head = "<!doctype html><meta charset=utf-8><title>Claims</title>"
    return f"{head}<style>{STYLE}</style>\n{body}"


def images(tokens: list[Token]) -> list[Token]:
    """The images of a parsed text."""
    found = [child for token in tokens for child in token.children or ()]
    return [child for child in found if child.type == "image"]


def write(
    entries: list[Entry], output: Path, sweeps: Sequence[SweepEntry] = ()
) -> None:
    """The three forms of the report, and what each experiment and sweep adds to it."""
    output.mkdir(parents=True, exist_ok=True)
    for sweep in sweeps:
        write_json(output / f"{sweep.name}.scores.json", sweep.table)
        if sweep.figure:
            write_bytes(output / f"{sweep.name}.png", sweep.figure)
    for entry in entries:
        home = ExperimentDirectory(output / entry.name)
        home.path.mkdir(parents=True, exist_ok=True)
        write_json(home.claims, entry.claims)
        write_json(home.path / "provenance.json", to_dict(entry.provenance))
        if entry.figure:
            write_bytes(home.figure, entry.figure)
    whole = [
        {
            "experiment": entry.name,
            **to_dict(entry.provenance),
            "claims": entry.claims,
            "notes": entry.notes,
        }
        for entry in entries
    ]
    write_json(output / "report.json", whole)
    write_text(output / "report.md", markdown(entries, sweeps))
    write_text(output / "report.html", page(entries, sweeps))
