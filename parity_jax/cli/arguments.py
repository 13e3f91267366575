"""What the commands that only read share: arguments, and how they are stopped."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from absl import logging

from parity_jax.cli.devices import set_up_jax
from parity_jax.config import ConfigError
from parity_jax.runs.interrupt import stop_requests


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

    def error(self, message: str) -> NoReturn:
        raise ConfigError("command", self.command, message)


def run_parser(command: str, doc: str | None, member_help: str) -> Parser:
    """DIR, --step and --member."""
    parser = Parser(command, doc)
    parser.add_argument("directory", metavar="DIR", help="run directory")
    parser.add_argument("--step", type=int, default=-1, help="default: the newest")
    parser.add_argument("--member", default="", help=member_help)
    return parser


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
