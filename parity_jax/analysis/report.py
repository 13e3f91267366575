"""The claims of finished runs in one table: Markdown, JSON and one HTML page.

python -m experiments.report DIR... [--output=results]

Every DIR holds claims.json and figure.png. Its commit, device and minutes come from the
runs below it (lineage.json, finished.json), or from provenance.json where an earlier
report left it. OUTPUT gets report.md, report.json, report.html and, for every DIR,
NAME/{claims.json, figure.png, provenance.json}: they are enough to report again.
OUTPUT/NAME/notes.md, if there is one, is shown beside the claims it explains.
Exit code 0: done, 2: a directory without claims (one line names it).
"""

import base64
import html
import io
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from PIL import Image

from parity_jax.results import RunError, read_json, write_json

OUTPUT = flags.DEFINE_string("output", "results", "Directory of the report.")
UNKNOWN = "not recorded"
VERDICT = {True: "holds", False: "does not hold"}
NUM_COLOURS, MAX_WIDTH = 64, 1600  # of the figures in the report
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid #ccc; padding: .3em .6em; text-align: left;
         vertical-align: top; }
.holds { color: #00664a; } .does { color: #a33c00; font-weight: bold; }
img { max-width: 100%; }
"""


class Entry(NamedTuple):
    """One experiment: what it claims and where the numbers come from."""

    name: str
    claims: list[dict[str, Any]]
    provenance: dict[str, Any]  # commits, devices, minutes
    figure: bytes  # PNG; empty without one
    notes: str


def gather(directory: Path, output: Path) -> Entry:
    """The entry of a directory; RunError without its claims.json."""
    name = directory.name
    figure, notes = directory / "figure.png", output / name / "notes.md"
    recorded = directory / "provenance.json"
    return Entry(
        name,
        read_json(directory / "claims.json"),
        read_json(recorded) if recorded.exists() else provenance(directory),
        shrunk(figure) if figure.exists() else b"",
        notes.read_text().strip() if notes.exists() else "",
    )


def provenance(directory: Path) -> dict[str, Any]:
    """Commits and devices of all runs below, and the minutes they took together."""
    starts = [read_json(p) for p in sorted(directory.glob("*/lineage.json"))]
    lineages = [x for start in starts for x in (start, *start["continued"])]
    seconds = [run_seconds(p.parent) for p in directory.glob("*/finished.json")]
    return {
        "commits": sorted({str(lineage["commit"]) for lineage in lineages}),
        "devices": sorted({lineage["device"] for lineage in lineages}),
        "minutes": round(sum(seconds) / 60, 1) if seconds else None,
    }


def run_seconds(run: Path) -> float:
    """From the start of a run to its end; pauses of an interrupted one count."""
    started = datetime.fromisoformat(read_json(run / "lineage.json")["started"])
    return (run / "finished.json").stat().st_mtime - started.timestamp()


def shrunk(path: Path) -> bytes:
    """A figure as a PNG of few colours, at most MAX_WIDTH wide."""
    saved = Image.open(path)
    if saved.mode == "P":  # an earlier report's: doing it again would lose more
        return path.read_bytes()
    image = saved.convert("RGB")
    image.thumbnail((MAX_WIDTH, image.height))
    out = io.BytesIO()
    # median cut, the default, may drop the colour of a thin line
    few = image.quantize(NUM_COLOURS, method=Image.Quantize.FASTOCTREE)
    few.save(out, "PNG", optimize=True)
    return out.getvalue()


def summary(value: Any, nested: bool = False) -> str:
    """What was measured in a few words: the numbers of members as their range."""
    if isinstance(value, dict):
        if all("=" in name and _is_number(v) for name, v in value.items()):
            return _range([v for v in value.values() if v is not None], len(value))
        parts = [f"{name} {summary(v, nested=True)}" for name, v in value.items()]
        return f"({', '.join(parts)})" if nested else "; ".join(parts)
    if isinstance(value, list):
        return f"[{', '.join(summary(v) for v in value)}]"
    return str(value) if value is None or not _is_number(value) else f"{value:.4g}"


def _is_number(value: Any) -> bool:
    """A number, or None for one that does not exist."""
    return value is None or type(value) in (int, float)


def _range(numbers: list[float], num_members: int) -> str:
    if not numbers:
        return "none"
    low, high = min(numbers), max(numbers)
    text = f"{low:.4g} to {high:.4g}" if low < high else f"{low:.4g}"
    missing = num_members - len(numbers)
    return text + f" (none for {missing} of {num_members})" * bool(missing)


def order(claim: dict[str, Any]) -> list[tuple[str, int]]:
    """C2 before C10."""
    parts = re.findall(r"(\D*)(\d*)", claim["id"])
    return [(text, int(number or 0)) for text, number in parts]


def rows(entries: list[Entry]) -> list[list[str]]:
    """One row for each claim, in the order of their ids."""
    pairs = [(claim, entry) for entry in entries for claim in entry.claims]
    return [
        [
            claim["id"],
            claim["claim"],
            claim["expected"],
            summary(claim["measured"]),
            claim["tolerance"],
            VERDICT[claim["holds"]],
            entry.name,
        ]
        for claim, entry in sorted(pairs, key=lambda pair: order(pair[0]))
    ]


HEADER = ["id", "claim", "expected", "measured", "tolerance", "verdict", "experiment"]
RUN_HEADER = ["experiment", "claims that hold", "commit", "device", "minutes"]


def run_rows(entries: list[Entry]) -> list[list[str]]:
    return [
        [
            entry.name,
            f"{sum(c['holds'] for c in entry.claims)} of {len(entry.claims)}",
            ", ".join(c[:12] + "+" * c.endswith("+") for c in recorded["commits"])
            or UNKNOWN,
            ", ".join(recorded["devices"]) or UNKNOWN,
            f"{recorded['minutes']:g}" if recorded["minutes"] else UNKNOWN,
        ]
        for entry in entries
        for recorded in [entry.provenance]
    ]


def markdown(entries: list[Entry]) -> str:
    """The report as Markdown, figures by link."""

    def table(header: list[str], body: list[list[str]]) -> str:
        cells = [header, ["---"] * len(header), *body]
        lines = [" | ".join(c.replace("|", "\\|") for c in row) for row in cells]
        return "\n".join(f"| {line} |" for line in lines)

    parts = ["# Claims", table(HEADER, rows(entries)), "# Runs"]
    parts.append(table(RUN_HEADER, run_rows(entries)))
    for entry in entries:
        parts += [f"## {entry.name}", entry.notes]
        parts.append(f"![{entry.name}]({entry.name}/figure.png)" * bool(entry.figure))
    return "\n\n".join(part for part in parts if part) + "\n"


def page(entries: list[Entry]) -> str:
    """The report as one HTML page that holds its figures."""

    def table(header: list[str], body: list[list[str]]) -> str:
        def line(tag: str, row: list[str]) -> str:
            cells = "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in row)
            verdict = [c.split()[0] for c in row if c in VERDICT.values()]
            return f'<tr class="{"".join(verdict)}">{cells}</tr>'

        return "\n".join(
            ["<table>", line("th", header), *(line("td", r) for r in body), "</table>"]
        )

    parts = [f"<!doctype html><meta charset=utf-8><title>Claims</title>{_style()}"]
    parts += ["<h1>Claims</h1>", table(HEADER, rows(entries))]
    parts += ["<h1>Runs</h1>", table(RUN_HEADER, run_rows(entries))]
    for entry in entries:
        parts.append(f"<h2>{html.escape(entry.name)}</h2>")
        paragraphs = entry.notes.split("\n\n") if entry.notes else []
        parts += [f"<p>{html.escape(text)}</p>" for text in paragraphs]
        if entry.figure:
            data = base64.b64encode(entry.figure).decode()
            name = html.escape(entry.name)
            parts.append(f'<img alt="{name}" src="data:image/png;base64,{data}">')
    return "\n".join(parts) + "\n"


def _style() -> str:
    return f"<style>{STYLE}</style>"


def write(entries: list[Entry], output: Path) -> None:
    """The three forms of the report, and what each experiment adds to it."""
    for entry in entries:
        directory = output / entry.name
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "claims.json", entry.claims)
        write_json(directory / "provenance.json", entry.provenance)
        if entry.figure:
            (directory / "figure.png").write_bytes(entry.figure)
    whole = [
        {"experiment": e.name, **e.provenance, "claims": e.claims, "notes": e.notes}
        for e in entries
    ]
    write_json(output / "report.json", whole)
    (output / "report.md").write_text(markdown(entries))
    (output / "report.html").write_text(page(entries))


def main(argv: list[str]) -> int:
    output = Path(OUTPUT.value)
    if len(argv) < 2:
        print("error: name at least one run directory", file=sys.stderr)
        return 2
    try:
        entries = [gather(Path(name), output) for name in argv[1:]]
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write(entries, output)
    held = sum(claim["holds"] for entry in entries for claim in entry.claims)
    total = sum(len(entry.claims) for entry in entries)
    print(f"{held} of {total} claims hold: {output / 'report.md'}")
    return 0


if __name__ == "__main__":
    app.run(main)
