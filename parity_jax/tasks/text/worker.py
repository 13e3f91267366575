"""A process that judges texts, one line of JSON for each; run by its path.

It imports nothing of JAX, so that it starts at once and can be killed at any moment. It
ends by itself when its input does, or when one text takes longer than it may: a
watchdog in C ends it even inside of one long multiplication.
"""

import faulthandler
import importlib
import json
import logging
import os
import resource
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

MAX_BYTES = 8 * 2**30  # of memory, for powers of powers
MAX_FLOAT32 = 2.0**128 - 2.0**104


class UnreadableError(ValueError):
    """An answer that cannot be parsed."""


@cache
def math_parts() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """parse and verify of math-verify."""
    logging.disable(logging.WARNING)  # of a missing time limit: there is one outside
    found = importlib.import_module("math_verify")
    return found.parse, found.verify


def math_reward(_: str, response: str, answer: str) -> float:
    """1 if math-verify takes both for the same; the right answer goes first."""
    parse, verify = math_parts()
    gold = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
    if not gold:
        raise UnreadableError("the right answer")
    given = parse(response, parsing_timeout=None)
    if not given:
        raise UnreadableError("the response")
    return float(verify(gold, given, timeout_seconds=None))


@cache
def named(name: str) -> Callable[[str, str, str], Any]:
    """The judge of a name."""
    if name == "math":
        math_parts()
        return math_reward
    module, _, attribute = name.partition(":")
    found: Callable[[str, str, str], Any] = getattr(
        importlib.import_module(module), attribute
    )
    return found


def failure(error: BaseException) -> dict[str, Any]:
    """What went wrong, in a line."""
    told = str(error).strip().splitlines()[:1]
    return {"error": f"{type(error).__name__}: {''.join(told)}"}


def imported(name: str) -> dict[str, Any]:
    """Whether a judge is there."""
    try:
        named(name)
    except BaseException as error:  # no signal of a terminal comes here
        return failure(error)
    return {"ready": True}


def judged(name: str, texts: list[str]) -> dict[str, Any]:
    """A number, or what went wrong."""
    try:
        value = named(name)(*texts)
        if isinstance(value, str | bytes):
            return {"error": f"returned {value!r}, which is no number"}
        number = float(value)
        if not abs(number) <= MAX_FLOAT32:
            return {"error": f"returned {number}, which is no finite number (float32)"}
    except UnreadableError:
        return {"value": 0.0, "state": "unreadable"}
    except BaseException as error:  # no signal of a terminal comes here
        if name == "math":  # its parsers fail on much of what a model says
            return {"value": 0.0, "state": "unreadable"}
        return failure(error)
    return {"value": number, "state": "judged"}


def main() -> None:
    """Answer until the input ends; what is printed elsewhere goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MAX_BYTES if hard == resource.RLIM_INFINITY else min(MAX_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    with open(os.devnull, "w") as nowhere:

        def answer(seconds: float, f: Callable[..., Any], *args: Any) -> dict[str, Any]:
            """Write what f returns in time."""
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            found: dict[str, Any] = f(*args)
            faulthandler.cancel_dump_traceback_later()
            answers.write(json.dumps(found) + "\n")
            answers.flush()
            return found

        for line in sys.stdin:
            job = json.loads(line)
            sys.path[:] = job["path"]
            ready = "start" not in job
            if not ready:  # a name that is new here: its import has a time of its own
                ready = "ready" in answer(job["start"], imported, job["name"])
            if ready:
                answer(job["seconds"], judged, job["name"], job["texts"])


if __name__ == "__main__":
    main()
