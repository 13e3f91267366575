"""Stopping on request: signals of people and schedulers end a run after its chunk."""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from parity_jax.config import StoppedError

EX_TEMPFAIL = os.EX_TEMPFAIL  # 75, the exit code that asks a queue to try again
SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
NOTE = "stopping after this chunk of steps; once more to stop at once\n"


def never() -> bool:
    """Nobody asks to stop."""
    return False


class Stops:
    """Whether a signal asked this process to stop."""

    def __init__(self) -> None:
        self.asked = False
        self.stopped = False  # StoppedError is on its way
        self._at_once = False

    def __call__(self) -> bool:
        return self.asked

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While nothing can be lost, a signal raises StoppedError where it comes."""
        if self.asked:
            raise StoppedError("stopped")
        before, self._at_once = self._at_once, True
        try:
            yield
        finally:
            self._at_once = before

    def note(self) -> None:
        """A signal came."""
        self.asked, self.stopped = True, self._at_once
        if self.stopped:
            raise StoppedError("stopped")
        os.write(2, NOTE.encode())


@contextmanager
def stop_requests() -> Iterator[Stops]:
    """Take note of signals that ask to stop; a second one has its usual effect.

    In the main thread only.
    """
    stops = Stops()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    # what the caller ignores (nohup) stays ignored
    before = {n: h for n, h in handlers.items() if h is not signal.SIG_IGN}

    def restore(known: bool) -> None:
        """What was before; what the default action was is `known` to Python, or not."""
        for number, handler in before.items():
            default_at_once(number)
            if known or handler is not signal.SIG_DFL:
                signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        if not stops.asked:
            restore(known=False)
            stops.note()
        elif not stops.stopped:  # it came together with the first
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield stops
    finally:
        restore(known=True)


def default_at_once(number: int) -> None:
    """Give a signal its default action, of which Python does not know.

    If it did, it would refuse, and lose, a signal that has come but was not handled.
    """
    ctypes.CDLL(None).signal(number, ctypes.c_void_p(signal.SIG_DFL))
