"""Errors of one line: which field, which value, what is allowed."""

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_SIZE = 2**31 - 1  # of a dimension or a count
SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of float32, without 0


class ConfigError(ValueError):
    """One line: which field, which value, what is allowed."""

    def __init__(self, name: str, value: Any, allowed: str):
        super().__init__(f"{name}={_short(value)}: {allowed}")
        self.name, self.value, self.allowed = name, value, allowed


class MissingCodeError(ConfigError):
    """Code of the user's own that a config names and that cannot be imported."""


class UserCodeError(Exception):
    """An exception in code of the user's own, which `where` names; its cause is it.

    No RuntimeError: contextlib takes one that a StopIteration caused for that.
    """

    def __init__(self, where: str, error: BaseException):
        try:
            text = str(error).strip().splitlines()
        except Exception:  # it cannot tell
            text = []
        super().__init__(f"{where}: {type(error).__name__}: {text[0] if text else ''}")
        self.where, self.error = where, error
        self.is_early = False  # before anything was written


class RunError(RuntimeError):
    """A run that cannot go on, for a reason that its message tells in one line."""


class StoppedError(BaseException):
    """What was asked to stop did, after saving its state; as KeyboardInterrupt is, no
    error that code on the way may handle.
    """


@contextmanager
def in_code_of(where: str) -> Iterator[None]:
    """Names the user's own code in whatever it raises but what tells itself."""
    try:
        yield
    except (ConfigError, RunError, UserCodeError):
        raise
    except MemoryError as error:  # of a whole program, perhaps: no traceback helps
        text = f"{error}".removeprefix(f"{where}: ") or type(error).__name__
        raise MemoryError(f"{where}: {text}") from error
    except (KeyboardInterrupt, StoppedError):  # somebody asked the process to stop
        raise
    except BaseException as error:
        raise UserCodeError(where, error) from error


@contextmanager
def early() -> Iterator[None]:
    """Says of an error in the user's own code that nothing was written before."""
    try:
        yield
    except UserCodeError as error:
        error.is_early = True
        raise


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError if a key stands twice, and one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} stands twice")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}.."


@contextmanager
def under(parent: str) -> Iterator[None]:
    """Puts the parent's name before the field of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        name = f"{parent}.{error.name}" if error.name else parent
        raise type(error)(name, error.value, error.allowed) from None


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(name, value, allowed)


def expanded(name: str, text: str | Path) -> Path:
    """A path with its `~`; ConfigError for one that no file can have."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except RuntimeError:  # pathlib's, of a home that nobody has
        home = Path(text).parts[0]
        raise ConfigError(name, str(text), f"{home}: no such home") from None
    except OSError as error:  # of a name that is too long, say
        reason = error.strerror or str(error)
        raise ConfigError(name, str(text), f"cannot be: {reason}") from None
    return path


def require_positive(config: Any, *names: str) -> None:
    """ConfigError unless all these fields are at least 1 and fit 32 bits."""
    for name in names:
        value = getattr(config, name)
        require(value >= 1, name, value, "must be at least 1")
        require(value <= MAX_SIZE, name, value, f"must be at most {MAX_SIZE}")


def require_count(config: Any, name: str, zero: str) -> None:
    """ConfigError unless a field is 0, which means `zero`, or fits 32 bits."""
    value = getattr(config, name)
    require(value >= 0, name, value, f"must be 0 ({zero}) or positive")
    require(value <= MAX_SIZE, name, value, f"must be at most {MAX_SIZE}")


def require_default(config: Any, is_used: bool, otherwise: str, *names: str) -> None:
    """ConfigError for options that are set while the part that reads them is off."""
    for name in names:
        value, default = getattr(config, name), getattr(type(config), name)
        allowed = f"must be {default!r} {otherwise}"
        require(is_used or value == default, name, value, allowed)


def is_finite(value: float) -> bool:
    """Whether a number is finite, as float64 has it."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond all floats
        return False


def require_float32(
    name: str, value: float, low: float = SMALLEST, high: float = LARGEST
) -> None:
    """ConfigError for a number that float32 turns into 0 or into infinity.

    low, high   where it has to be anyway
    """
    ends = f"[{max(low, SMALLEST):.3g}, {min(high, LARGEST):.3g}]"
    allowed = f"must be{' 0 or' * (low <= 0)}, as float32 can, of a size in {ends}"
    is_kept = value == 0 or SMALLEST <= abs(value) <= LARGEST
    require(is_kept or not is_finite(value), name, value, allowed)


def require_finite(
    config: Any, *names: str, low: float = 0.0, high: float = math.inf
) -> None:
    """ConfigError unless all these numbers are finite and in [low, high]."""
    allowed = f"must be in [{low:g}, {high:g}]"
    if high == math.inf:
        allowed = f"must be a finite number >= {low:g}"
    for name in names:
        value = getattr(config, name)
        inside = is_finite(value) and low <= value <= high
        require(inside, name, value, allowed)
        require_float32(name, value, low, high)


def unknown_name(
    name: str, value: Any, valid: Iterable[str], elsewhere: Sequence[str] = ()
) -> ConfigError:
    """Error for a field that does not exist, with the nearest one that does, and with
    the places of fields of this name.
    """
    own = name.rpartition(".")[2]
    there = f"there is {' and '.join(elsewhere)}; " if elsewhere else ""
    return ConfigError(name, value, f"unknown field; {there}{_nearest(own, valid)}")


def unknown_value(name: str, value: Any, valid: Iterable[Any]) -> ConfigError:
    """Error for a value that is none of the valid ones, with the nearest of them."""
    return ConfigError(name, value, f"unknown; {_nearest(value, map(str, valid))}")


def _nearest(name: Any, valid: Iterable[str]) -> str:
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}valid: {', '.join(valid) or 'none'}"
