"""parity-jax COMMAND ..

    run          an experiment: train, then claims and figure
    list         the experiments of a folder, a line each
    watch        curves of a run while it trains
    inspect      what is in a checkpoint
    play         type a prompt, see what a member answers
    diagnose     whether RL has anything to amplify in a checkpoint
    report       the claims of finished runs in one table
    export_hf    a member as a Hugging Face model
    import_hf    a Hugging Face model as a run

parity-jax COMMAND --help tells more; parity-jax --version the versions and the device.
"""

import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from parity_jax.cli import NO_HELP

COMMANDS = (
    "run",
    "list",
    "watch",
    "inspect",
    "play",
    "diagnose",
    "report",
    "export_hf",
    "import_hf",
)
SIGNALS = [getattr(signal, f"SIG{n}") for n in ("TERM", "INT", "HUP", "USR1", "USR2")]
DEBUG = ("--debug", "--debug=true", "--debug=1")


def main() -> None:
    """The command of this process; exits. What a config names is found from here."""
    sys.path.insert(0, str(Path.cwd()))
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """A command; its exit code."""
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(__doc__ or NO_HELP)
        return 0 if argv else 2
    command, *rest = argv
    if command == "--version":
        command = "version"
    elif command not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"error: command={command!r}: must be one of {known}", file=sys.stderr)
        return 2
    debug = any(text.lower() in DEBUG for text in rest)
    if isinstance(sys.stdout, io.TextIOWrapper):  # of a terminal that has few signs
        sys.stdout.reconfigure(errors="backslashreplace")
    names = ("parity_jax.cli.door", f"parity_jax.cli.{command}")
    if code := imported(names, debug):
        return code
    door, module = map(importlib.import_module, names)
    return door.through_the_door(lambda: module.main(rest), debug)


def imported(names: Sequence[str], debug: bool) -> int:
    """Import what a command needs; its exit code, told in a line, if that fails.

    The environment may say what JAX or others do not take, and the door is of them.
    """
    try:
        with stopping_at_once():
            check_xla_flags(os.environ.get("XLA_FLAGS", ""))
            for name in names:
                importlib.import_module(name)
    except Exception as error:
        if debug:
            traceback.print_exc()
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"error: cannot start: {line}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1  # of JAX_.. or MPLBACKEND
    return 0


def check_xla_flags(text: str) -> None:
    """ValueError for flags that XLA does not know, at which it ends the process."""
    if not text or "jax" in sys.modules:  # they were read already
        return
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            importlib.import_module("jaxlib.xla_client").CompileOptions()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise ValueError(f"XLA_FLAGS={text!r}: XLA does not know one of these flags")


def stop(number: int, frame: FrameType | None) -> None:
    """End here: nothing is written yet, and imports do not bear an exception."""
    os.write(2, b"error: stopped\n")
    os._exit(75)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Signals that ask to stop end the process, unless they are ignored."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {n: h for n, h in handlers.items() if h is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
