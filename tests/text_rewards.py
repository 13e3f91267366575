"""Rewards on text of a user's own, named "text_rewards:..." in a config."""

import os
import time
from pathlib import Path


def brevity(prompt, response, answer):
    return 1 / (1 + len(response))


def echo(prompt, response, answer):
    """1 if the response holds the answer; nothing of JAX is here."""
    import sys

    assert "jax" not in sys.modules
    print("this goes to stderr")
    return float(answer in response)


def raises(prompt, response, answer):
    raise KeyError("oh no")


def raises_later(prompt, response, answer):
    """Fails as soon as a file tells it to."""
    if Path(os.environ["FAIL_WHEN"]).exists():
        raise KeyError("oh no")
    return float(len(response) % 2)


def nan(prompt, response, answer):
    return float("nan")


def pays_right_ones(prompt, response, answer):
    if response.endswith(answer):
        return 1.0
    raise KeyError("wrong")


def interrupts(prompt, response, answer):
    raise KeyboardInterrupt


def much(prompt, response, answer):
    return 1e39


def text(prompt, response, answer):
    return "much"


def hangs(prompt, response, answer):
    if "wait" in response:
        time.sleep(1000)
    if "power" in response:
        return 9**9**9
    return 1.0


def dies(prompt, response, answer):
    """Takes its process along: always, or the first time."""
    if "always" in response:
        os._exit(3)
    first = Path(os.environ["FAIL_WHEN"])
    if "once" in response and not first.exists():
        first.touch()
        os.kill(os.getpid(), 9)
    return 1.0


def always_dies(prompt, response, answer):
    os._exit(3)


not_a_function = 3
