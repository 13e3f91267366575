"""Watch a run or an experiment while it trains, on the terminal.

parity-jax watch DIR [--once] [--debug]

Curves are of the median member, from the first record to the last one; the table has
every member's last scores. Shown again every two seconds until all runs have finished;
--once shows it once. Only files are read, so it may run anywhere that sees them, and
nothing is written. Exit code 0: done, 2: a bad argument, 1: a damaged directory, 75:
stopped by a signal.
"""

import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from parity_jax.cli.arguments import Parser, stoppable
from parity_jax.cli.text import Output
from parity_jax.config import label_text
from parity_jax.runs import ExperimentDirectory, RunDirectory
from parity_jax.runs.directory import is_experiment, local_path
from parity_jax.runs.files import is_locked
from parity_jax.runs.metrics_file import Record
from parity_jax.runs.progress import SHOWN

SECONDS = 2.0  # between looks
WIDTH = 40  # of a curve
BARS = "▁▂▃▄▅▆▇█"
MAX_MEMBERS = 16  # rows of the table


def main(argv: Sequence[str]) -> None:
    """Watch what the arguments say."""
    parser = Parser("watch", __doc__)
    parser.add_argument("directory", metavar="DIR", help="of a run or an experiment")
    parser.add_argument("--once", action="store_true", help="show it once and end")
    args = parser.parse_args(argv)
    path, out = local_path("directory", args.directory), Output()
    with stoppable():
        is_one = not is_experiment(path)
        runs = [RunDirectory(path)] if is_one else ExperimentDirectory(path).planned()
        if args.once:
            out.print(picture(runs))
            return
        with Live(picture(runs), console=out, auto_refresh=False) as live:
            while not all(run.read_finished() for run in runs):
                time.sleep(SECONDS)
                live.update(picture(runs), refresh=True)


def picture(runs: Sequence[RunDirectory]) -> RenderableType:
    """All runs, one below the other."""
    return Group(*(part for run in runs for part in run_parts(run)))


def run_parts(run: RunDirectory) -> list[RenderableType]:
    """A run: where it is, its curves, its members."""
    if not run.has_config():
        return [Text(f"{run.name}  has not begun", "bold")]
    members = [label_text(label) for label in run.labels()]
    finished = run.verified_finish()
    records = run.metrics.read(len(members))
    step = records[-1].step if records else 0
    state = "running" if is_locked(run.path) else "not running here"
    state = "finished" if finished else state
    head = Text(f"{run.name}  step {step}/{run.planned_steps()}  {state}", "bold")
    return [head, curve_table(records), member_table(records, members)]


def curve_table(records: Sequence[Record]) -> Table:
    """A curve of each metric that was recorded, with its last value."""
    table = Table(box=None, padding=(0, 0, 0, 2), show_header=False)
    for name, label, form in SHOWN:
        rows = [r.values[name] for r in records if name in r.values]
        medians = [median(known) for row in rows if (known := present(row))]
        if medians:
            end = present(rows[-1])  # none if all members have diverged by now
            told = form.format(median(end)) if end else "-"
            table.add_row(label, sparkline(medians, WIDTH), told)
    return table


def member_table(records: Sequence[Record], members: Sequence[str]) -> Table:
    """The last values of every member."""
    last = {name: row for record in records for name, row in record.values.items()}
    shown = [curve for curve in SHOWN if curve[0] in last]
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    for name in ("member", *(label for _, label, _ in shown)):
        table.add_column(name, overflow="fold")
    for i, member in enumerate(members[:MAX_MEMBERS]):
        values = [(last[name][i], form) for name, _, form in shown]
        table.add_row(member, *("-" if v is None else f.format(v) for v, f in values))
    if len(members) > MAX_MEMBERS:
        table.add_row(f"and {len(members) - MAX_MEMBERS} more")
    return table


def present(row: Sequence[float | None]) -> list[float]:
    """What was computed."""
    return [value for value in row if value is not None]


def sparkline(values: Sequence[float], width: int) -> str:
    """Bars from the smallest value to the largest; of several in a bar the mean."""
    count = min(width, len(values))
    edges = [len(values) * n // count for n in range(count + 1)]
    parts = [values[a:b] for a, b in pairwise(edges)]
    means = [sum(part) / len(part) for part in parts]
    low, spread = min(means), max(means) - min(means)
    heights = [(mean - low) / spread if spread else 0.0 for mean in means]
    return "".join(BARS[round(height * (len(BARS) - 1))] for height in heights)
