"""Errors of one line, and the bounds of every number in `types.Hypers`."""

import dataclasses
import difflib
import typing
from typing import Any

from parity_jax.types import Hypers


class ConfigError(ValueError):
    """One line: which field, which value, what is allowed."""

    def __init__(self, name: str, value: Any, allowed: str):
        super().__init__(f"{name}={value!r}: {allowed}")
        self.name, self.value, self.allowed = name, value, allowed

    def under(self, parent: str) -> "ConfigError":
        return ConfigError(f"{parent}.{self.name}", self.value, self.allowed)


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(name, value, allowed)


def require_positive(config: Any, *names: str) -> None:
    """ConfigError unless all these fields are at least 1."""
    for name in names:
        value = getattr(config, name)
        require(value >= 1, name, value, "must be at least 1")


def unknown_name(name: str, value: Any, valid: typing.Iterable[str]) -> ConfigError:
    """Error for a field that does not exist, with the nearest one that does."""
    return ConfigError(name, value, f"unknown field; {_nearest(name, valid)}")


def unknown_value(name: str, value: str, valid: typing.Iterable[str]) -> ConfigError:
    """Error for a value that is none of the valid ones, with the nearest of them."""
    return ConfigError(name, value, f"unknown; {_nearest(value, valid)}")


def _nearest(name: str, valid: typing.Iterable[str]) -> str:
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}valid: {', '.join(valid)}"


# Inclusive bounds of every field of Hypers; None is unbounded.
HYPER_BOUNDS: dict[str, tuple[float, float | None]] = {
    "p_cot": (0, 1),
    "p_leap": (0, 1),
    "emit_noise": (0, 1),
    "step_noise": (0, 1),
    "short_noise": (0, 1),
    "learning_rate": (0, None),
    "temperature": (1e-3, None),
    "epsilon": (0, 1),
    "epsilon_high": (0, None),
    "delta": (1, None),
    "beta": (0, None),
    "entropy_coef": (0, None),
    "length_price": (0, None),
    "ridge": (1e-8, None),
    "false_positive": (0, 1),
    "false_negative": (0, 1),
}

# What can be an axis of a population.
AXES = ("seed", "parent_step", *HYPER_BOUNDS)


def check_hyper(name: str, value: float) -> None:
    """ConfigError unless the value is within HYPER_BOUNDS."""
    low, high = HYPER_BOUNDS[name]
    allowed = f"must be in [{low}, {high}]" if high is not None else f"must be >= {low}"
    inside = low <= value and (high is None or value <= high)
    require(inside, name, value, allowed)


def check_hypers(hypers: Hypers) -> None:
    """ConfigError unless all numbers are within bounds, alone and together."""
    for f in dataclasses.fields(hypers):
        check_hyper(f.name, getattr(hypers, f.name))
    share = hypers.p_cot + hypers.p_leap
    require(share <= 1, "p_leap", hypers.p_leap, "p_cot + p_leap must be at most 1")
