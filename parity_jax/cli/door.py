"""The one door for failures: a line for the user, and an exit code.

0   done
1   the run failed: full disk, damaged files, out of memory, directory in use, ...
2   a bad config, flag or argument (what is allowed; nothing is written)
75  a signal asked to stop: what was done is saved, the same command continues

An exception in the user's own file comes with its traceback; so does any other with
--debug.
"""

import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

import parity_jax
from parity_jax.config import ConfigError, RunError, StoppedError, UserCodeError
from parity_jax.hosts import LOST, AbsentError, give_up, is_of_others, leave
from parity_jax.platform import is_out_of_memory
from parity_jax.runs.interrupt import EX_TEMPFAIL
from parity_jax.tasks.text.host import callback_error, reward_error

LOWER = "lower batch_size, num_prompts, num_generations, population.vmap_width or what "
LOWER += "this command was asked for"
# Where files are that are nobody's own: this package, the installed ones, Python.
NOT_OWN = (
    f"{Path(parity_jax.__file__).parent}{os.sep}",
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib")),
    "<",
)


def through_the_door(command: Callable[[], None], debug: bool = False) -> int:
    """Run a command; its exit code. What went wrong was said in one line.

    Processes that train together wait for each other here.
    """
    code = outcome(command, debug)
    if code and not debug:
        sys.unraisablehook = partial(told_once, sys.unraisablehook)
    leave(code)
    return code


def told_once(otherwise: Callable[[Any], object], said: Any) -> None:
    """Nothing of a callback that failed and was told: JAX waits for it at the exit."""
    if callback_error(str(said.exc_value)) is None:
        otherwise(said)


def outcome(command: Callable[[], None], debug: bool) -> int:
    """Run a command; its exit code."""
    try:
        command()
    except ConfigError as error:
        return fail(error, 2, debug)
    except StoppedError as error:
        return fail(f"{error}; the same command continues", EX_TEMPFAIL, debug)
    except AbsentError as error:
        return fail(f"{error}; the same command continues", EX_TEMPFAIL, debug)
    except UserCodeError as error:
        if is_in_own_file(error.error) and not debug:
            traceback.print_exception(error.error)
        return fail(error, 2 if error.is_early else 1, debug)
    except BrokenPipeError:  # nobody reads on: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (RunError, OSError) as error:
        return told_lost(error, debug) or fail(error, 1, debug)
    except KeyboardInterrupt:
        return fail("stopped", EX_TEMPFAIL, debug)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        told = out_of_memory(error) or failed_callback(error) or unexpected(error)
        return told_lost(error, debug) or fail(told, 1, debug)
    except Exception as error:
        return told_lost(error, debug) or fail(unexpected(error), 1, debug)
    return 0


def is_in_own_file(error: BaseException) -> bool:
    """Whether it was raised in, or below, a file of neither this nor another package.

    What own code returned is judged here, and drawn by libraries: a line says all.
    """
    frames = traceback.extract_tb(error.__traceback__)
    is_own = any(not frame.filename.startswith(NOT_OWN) for frame in frames)
    return is_own or isinstance(error, SyntaxError)


def told_lost(error: BaseException, debug: bool) -> int:
    """The exit code, told, if another process of this run is gone; else 0."""
    if not is_of_others(error):
        return 0
    give_up()
    return fail(LOST, EX_TEMPFAIL, debug)


def fail(error: object, code: int, debug: bool = False) -> int:
    """Say what is wrong in one line; the exit code."""
    if debug:
        traceback.print_exc()
    print(f"error: {one_line(error)}", file=sys.stderr)
    return code


def one_line(error: object) -> str:
    """The first line of a message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def out_of_memory(error: BaseException) -> str:
    """What to do about a program that asked for too much; empty for other errors."""
    if is_out_of_memory(error):
        return f"out of memory: {one_line(error)}; {LOWER}"
    return ""


def failed_callback(error: BaseException) -> str:
    """What a function of own code raised that a program called back; empty: nothing."""
    return reward_error(str(error)) or callback_error(str(error)) or ""


def unexpected(error: BaseException) -> str:
    """An error that nobody thought of: where it arose, and how to see more."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    text = f"{type(error).__name__}: {one_line(error)}"
    return f"{text}{where} (--debug shows the traceback)"
