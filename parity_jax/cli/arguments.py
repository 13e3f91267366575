"""What the commands that only read share: arguments, and how they are stopped."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from absl import logging

from parity_jax.analysis.snapshot import Snapshot, open_snapshot
from parity_jax.cli import IS_EMPTY
from parity_jax.cli.devices import set_up_jax
from parity_jax.config import (
    ConfigError,
    label_text,
    lines_of,
    parse_label,
    require,
)
from parity_jax.runs import RunDirectory
from parity_jax.runs.directory import local_path
from parity_jax.runs.interrupt import stop_requests
from parity_jax.runs.lineage import edited_code
from parity_jax.types import DIVERGED


class Parser(argparse.ArgumentParser):
    """The arguments of a command; --debug and --help are of every one."""

    def __init__(self, command: str, doc: str | None):
        super().__init__(
            prog=f"parity-jax {command}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.command = command
        self.add_argument("--debug", action="store_true", help="show tracebacks")

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        """ConfigError for what is none of the command's, and for empty options."""
        for before, text in pairwise(["", *argv]):
            name, equals, value = text.partition("=")
            is_option = name.startswith("--") and bool(equals) and not value
            is_after = before.startswith("--") and "=" not in before and not text
            require(not (is_option or is_after), name or before, "", IS_EMPTY)
        return super().parse_args(argv)

    def refuse(self, args: argparse.Namespace, allowed: str, *names: str) -> None:
        """ConfigError for options that were given where nothing reads them."""
        for name in names:
            value = getattr(args, name)
            require(value == self.get_default(name), name, value, allowed)

    def error(self, message: str) -> NoReturn:
        raise ConfigError("command", self.command, message)


def run_parser(command: str, doc: str | None, member_help: str) -> Parser:
    """DIR, --step and --member."""
    parser = Parser(command, doc)
    parser.add_argument("directory", metavar="DIR", help="run directory")
    parser.add_argument("--step", type=int, default=-1, help="default: the newest")
    parser.add_argument("--member", default="", help=member_help)
    return parser


def opened(args: argparse.Namespace) -> Snapshot:
    """The checkpoint that DIR, --step and --member say; warns of diverged members."""
    directory = RunDirectory(local_path("directory", args.directory))
    snapshot = open_snapshot(directory, args.step, parse_label(args.member))
    process = directory.read_lineage().last_process
    if edited := edited_code(process):
        told = f"warning: {directory.path} trained with other code: {lines_of(edited)}"
        print(told, file=sys.stderr)
    states = snapshot.arrays
    for i, label in enumerate(snapshot.run.labels):
        if states["status"][i] == DIVERGED:
            who, step = label_text(label), states["step"][i]
            text = f"member {who} diverged; it is as it was after step {step}"
            print(f"warning: {text}", file=sys.stderr)
    return snapshot


@contextmanager
def stoppable() -> Iterator[None]:
    """A signal that asks to stop does so at once: there is nothing to save."""
    with stop_requests() as stops, stops.at_once():
        yield


@contextmanager
def reading() -> Iterator[None]:
    """`stoppable`, with JAX and the search for the user's own code set up."""
    with stoppable():
        logging.set_verbosity(logging.ERROR)  # Orbax warns that it is read-only
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        set_up_jax()
        yield
