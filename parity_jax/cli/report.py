"""The claims of finished runs in one report: Markdown, JSON and an HTML page.

parity-jax report DIR.. --output=OUTPUT [--score=greedy/accuracy] [--over=X,Y]
    [--debug]

Every DIR holds claims.json and what else an experiment's analysis leaves: answer.json,
figure.png, figure.svg, command.txt. Its commit, device and minutes come from the runs
below it, or from provenance.json where an earlier report left it. OUTPUT gets
report.md, report.json, report.html and, for every DIR, NAME/{claims.json, answer.json,
figure.png, figure.svg, provenance.json}: they are enough to report again. The page
shows the figures beside it and needs no network. OUTPUT/NAME/notes.md, if there is one,
is shown beside the claims it explains. A DIR that is a sweep stands for its jobs
that have finished, and adds a table of the last scores over what is swept, and --score
over two swept fields as a figure (OUTPUT/SWEEP.scores.json, OUTPUT/SWEEP.png). Exit
code 0: done, whether claims hold or not, 2: a bad argument, 1: a damaged directory (one
line says what, and nothing is written), 75: stopped by a signal.
"""

from collections.abc import Sequence
from pathlib import Path

from parity_jax.analysis.report import experiments, gather, gather_sweeps, write
from parity_jax.cli.arguments import Parser, stoppable
from parity_jax.config import require
from parity_jax.runs.directory import check_writable, local_path


def main(argv: Sequence[str]) -> None:
    """Report what the arguments say."""
    parser = Parser("report", __doc__)
    parser.add_argument("directories", metavar="DIR", nargs="+")
    parser.add_argument("--output", required=True, help="directory of the report")
    score = "of the figure of a sweep; default: greedy/accuracy"
    parser.add_argument("--score", help=score)
    parser.add_argument("--over", default="", help="two swept fields: X,Y")
    args = parser.parse_args(argv)
    output = local_path("output", args.output)
    over = args.over.split(",") if args.over else []
    require(len(over) in (0, 2), "--over", args.over, "must be two swept fields: X,Y")
    with stoppable():
        directories = [local_path("DIR", d) for d in args.directories]
        check_place(output, directories)
        entries = gather(experiments(directories), output)
        sweeps = gather_sweeps(directories, args.score or "greedy/accuracy", over)
        for name in ("score", "over"):
            value, is_drawn = getattr(args, name), any(each.figure for each in sweeps)
            allowed = "has no effect: no DIR is a sweep of two fields"
            require(is_drawn or not value, f"--{name}", value, allowed)
        write(entries, output, sweeps)
    held = sum(claim["holds"] for entry in entries for claim in entry.claims)
    total = sum(len(entry.claims) for entry in entries)
    print(f"{held} of {total} claims hold: {output / 'report.md'}")


def check_place(output: Path, directories: Sequence[Path]) -> None:
    """ConfigError for an output that is, or is inside of, what is reported, or that
    can be no directory.
    """
    for place in (output, *output.absolute().parents):
        is_free = place.is_dir() or not place.exists()
        require(is_free, "output", str(output), f"{place} must be a directory")
    check_writable("output", output)
    around = {output.resolve(), *output.resolve().parents}
    for directory in directories:
        allowed = f"must not be in {directory}, which it reports"
        require(directory.resolve() not in around, "output", str(output), allowed)
