"""What the commands that read run directories share: arguments, errors in one line.

Exit code 2: a bad argument. 1: something on disk that is damaged or cannot be written.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import logging

from experiments.main import fail, set_up_jax
from parity_jax.config import ConfigError
from parity_jax.results import RunError


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what it cannot take."""

    def error(self, message: str) -> NoReturn:
        sys.exit(fail(message))


def run_parser(doc: str | None, member_help: str) -> Parser:
    """DIR, --step and --member; `doc` is the docstring of the command."""
    description = doc or ""
    parser = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="run directory")
    parser.add_argument("--step", type=int, default=-1, help="default: the newest")
    parser.add_argument("--member", default="", help=member_help)
    return parser


def run(command: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a command on the arguments of this process and exit."""
    set_up_jax()
    sys.exit(exit_code(command, sys.argv[1:]))


def exit_code(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run a command; 0, or the exit code of the error that was said in one line."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns that it is read-only
    try:
        command(argv)
    except ConfigError as error:
        return fail(error)
    except BrokenPipeError:  # nobody reads on: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (RunError, OSError) as error:
        return fail(error, 1)
    return 0
