"""Signals ask to stop once; the second time they have their usual effect."""

import os
import signal
import subprocess
import sys

import pytest

from parity_jax.config import StoppedError
from parity_jax.runs.interrupt import NOTE, stop_requests

ALL = [getattr(signal, f"SIG{name}") for name in ("TERM", "INT", "HUP", "USR1", "USR2")]


@pytest.fixture(autouse=True)
def handlers():
    """A signal that nothing takes note of is counted, and ends no test."""
    came = []
    before = {number: signal.getsignal(number) for number in ALL}
    for number in ALL:
        signal.signal(number, lambda number, frame: came.append(number))
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ALL, ids=lambda number: number.name)
def test_every_signal_asks_once_and_then_has_its_effect(number, handlers, capfd):
    before = [signal.getsignal(number) for number in ALL]
    with stop_requests() as should_stop:
        inside = [signal.getsignal(number) for number in ALL]
        assert all(new != old for new, old in zip(inside, before, strict=True))
        assert not should_stop()
        send(number)
        assert should_stop() and handlers == []
        assert capfd.readouterr().err.startswith("stopping after this chunk of steps")
        assert [signal.getsignal(number) for number in ALL] == before
        send(number)
        assert handlers == [number]
    assert [signal.getsignal(number) for number in ALL] == before


def test_what_the_caller_ignores_stays_ignored():
    """Under nohup a hangup is no request."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_requests() as should_stop:
        send(signal.SIGHUP)
        assert not should_stop()
        send(signal.SIGTERM)
        assert should_stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_while_nothing_can_be_lost_a_signal_stops_at_once():
    with stop_requests() as stops:
        with pytest.raises(StoppedError, match=r"^stopped$"), stops.at_once():
            send(signal.SIGTERM)
            pytest.fail("it went on")
        assert stops()
        with pytest.raises(StoppedError), stops.at_once():
            pytest.fail("it began although it was asked to stop")
    with stop_requests() as stops:
        with stops.at_once():
            pass
        send(signal.SIGTERM)  # something can be lost again
        assert stops()


TOGETHER = """
import signal, sys, threading
from contextlib import nullcontext
from parity_jax.config import StoppedError
from parity_jax.runs.interrupt import stop_requests

two = {signal.SIGUSR1, signal.SIGTERM}
with stop_requests() as stops:
    try:
        with stops.at_once() if "at once" in sys.argv else nullcontext():
            signal.pthread_sigmask(signal.SIG_BLOCK, two)
            for number in two:
                signal.pthread_kill(threading.get_ident(), number)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, two)
            print("it went on")
    except StoppedError:
        sys.exit(75)
"""


@pytest.mark.parametrize("when", ["at once", "after its chunk"])
def test_two_signals_that_come_together_are_two(when):
    """The second ends a run, which would go on to its chunk's end, where it is."""
    command = [sys.executable, "-c", TOGETHER, when]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    if when == "at once":
        assert (done.returncode, done.stderr) == (75, "")
    else:
        assert -done.returncode in (signal.SIGUSR1, signal.SIGTERM)
        assert done.stderr == NOTE
