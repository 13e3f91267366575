"""What every job of a sweep does, in a line each.

python -m launch.status SWEEP [--json] [--watch[=SECONDS]] [--relaunch=STATE,..]
    [--debug]

Truth is files: what the runs have on disk, and what a job's newest life left. A queue
is asked only which jobs it has. States: planned (not begun), queued, running, finished,
stopped (saved, to be continued), failed, lost (killed without a word). --watch shows it
again until nothing is queued or running, and no launcher works on it on this host.
--relaunch hands the jobs in these states (failed, lost, stopped, planned) to the engine
that had them last. Exit code 0: done, whatever the states are, 2: a bad argument, 1: a
damaged directory or a failed relaunch.
"""

import json
import sys
import time
from collections.abc import Sequence

from launch import engines, local
from launch.queue import places
from launch.rows import STATES, Row, rows, totals
from launch.table import counted, table_lines
from parity_jax.cli.arguments import Parser, stoppable
from parity_jax.cli.door import through_the_door
from parity_jax.config import require, unknown_value
from parity_jax.runs.directory import local_path
from parity_jax.runs.files import is_locked
from parity_jax.runs.sweep import SweepDirectory

HEAD = ("job", "state", "members", "step", "accuracy", "seen", "host", "lives", "note")
CAN_START = ("failed", "lost", "stopped", "planned")
MIN_WAIT, MAX_WAIT = 0.1, 86400.0  # seconds between looks
NOTE = 160  # signs of a note in the table; --json has all of it
CLEAR = "\x1b[H\x1b[2J"  # a terminal


def main(argv: Sequence[str]) -> None:
    """Tell what the arguments ask for."""
    parser = Parser("launch.status", __doc__)
    parser.prog = "python -m launch.status"
    parser.add_argument("sweep", metavar="SWEEP", help="directory of the sweep")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--watch", type=float, nargs="?", const=5.0, help="seconds")
    parser.add_argument("--relaunch", help="states, e.g. failed,lost")
    args = parser.parse_args(argv)
    home = SweepDirectory(local_path("SWEEP", args.sweep))
    is_sweep, allowed = home.has_sweep(), "must be the directory of a sweep"
    require(is_sweep, "SWEEP", args.sweep, allowed)
    is_right = args.watch is None or MIN_WAIT <= args.watch <= MAX_WAIT
    allowed = f"must be seconds in [{MIN_WAIT:g}, {MAX_WAIT:g}]"
    require(is_right, "--watch", args.watch, allowed)
    home.read().find_code()
    states = args.relaunch.split(",") if args.relaunch is not None else []
    for state in states:
        if state not in CAN_START:
            raise unknown_value("--relaunch", state, CAN_START)
    if states:
        parser.refuse(args, "has no effect with --relaunch", "json", "watch")
        relaunch(home, states)
        return
    with stoppable():
        while args.watch is not None and is_busy(home):
            show(home, args.json)
            sys.stdout.flush()
            time.sleep(args.watch)
            if sys.stdout.isatty():
                print(CLEAR, end="")
        show(home, args.json)


def is_busy(home: SweepDirectory) -> bool:
    """Whether a job is queued or running, or a launcher works on them here."""
    found = rows(home, places(home.path))
    is_here = is_locked(home.records)
    return is_here or any(r.state in ("queued", "running") for r in found)


def show(home: SweepDirectory, as_json: bool) -> None:
    """The jobs and their totals."""
    found = rows(home, places(home.path))
    if as_json:
        count = {state: sum(r.state == state for r in found) for state in STATES}
        print(json.dumps({"jobs": [r._asdict() for r in found], "totals": count}))
        return
    for line in text(found, time.time()):
        print(line)


def text(found: Sequence[Row], now: float) -> list[str]:
    """The table and the totals, at a time in seconds of the epoch."""
    members = sum(r.members for r in found)
    both = f"{counted(len(found), 'job')}, {counted(members, 'member')}"
    last = f"{both}: {totals(found)}"
    return [*table_lines(HEAD, [cells(r, now) for r in found]), last]


def cells(r: Row, now: float) -> list[str]:
    """A job, by column."""
    return [
        r.job,
        r.state,
        f"{r.members}" + f" ({r.diverged} diverged)" * bool(r.diverged),
        f"{r.step}/{r.steps}",
        "-" if r.accuracy is None else f"{r.accuracy:.3f}",
        "-" if r.seen is None else ago(now - r.seen),
        r.host or "-",
        f"{r.attempts}",
        r.note if len(r.note) <= NOTE else f"{r.note[:NOTE]}..",
    ]


def ago(seconds: float) -> str:
    """How long ago, in the largest unit of which it is two or more."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def relaunch(home: SweepDirectory, states: Sequence[str]) -> None:
    """Start the jobs in these states again."""
    settings = engines.read_settings(home)
    allowed = "has no engine that starts jobs: `python -m launch.job SWEEP INDEX` does"
    require(settings.engine != "none", "SWEEP", str(home.path), allowed)
    with local.held(home):
        with home.locked():
            found = rows(home, places(home.path))
            able = engines.to_do(home, settings)
            wanted = [n for n in able if found[n].state in states]
            told = engines.submit(home, wanted, settings) if wanted else ""
        again = f"{told}{counted(len(wanted), 'job')} started again"
        print(again if wanted else "no job to start")
        if settings.engine == "local" and wanted:
            engines.run_here(home, wanted, settings, quiet=False)


if __name__ == "__main__":
    debug = "--debug" in sys.argv
    sys.exit(through_the_door(lambda: main(sys.argv[1:]), debug))
