"""Stopping a run on request: SIGTERM and SIGINT end it after the chunk in progress."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from parity_jax.results import RunError

EX_TEMPFAIL = os.EX_TEMPFAIL  # 75, the exit code that asks a queue to try again
NOTE = "stopping after this chunk of steps; once more to stop at once\n"


class StoppedError(RunError):
    """A run that was asked to stop, and did after saving its state."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGTERM or SIGINT have come.

    The second signal has its usual effect again. In the main thread only.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    came: list[int] = []

    def restore() -> None:
        for number in numbers:
            signal.signal(number, before[number])

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        restore()
        os.write(2, NOTE.encode())

    for number in numbers:
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        restore()
