"""Argument checks shared by the theory modules."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float: TypeAlias = Any  # a float, or an array of them: the functions broadcast

# A logit closer to zero than this is a tie: greedy decoding is undefined there.
TIE = 1e-12


def in_range(
    name: str,
    value: ArrayLike,
    low: float = -np.inf,
    high: float = np.inf,
    closed: str = "neither",
) -> Float:
    """`value` as float64; ValueError unless all of it lies between low and high.

    `closed` says which ends belong to the interval: neither, left, right or both.
    """
    array = np.asarray(value, dtype=np.float64)
    above = array >= low if closed in ("left", "both") else array > low
    below = array <= high if closed in ("right", "both") else array < high
    _raise_first(
        array,
        above & below,
        f"{name} must lie in "
        f"{'[' if closed in ('left', 'both') else '('}{low:.6g}, "
        f"{high:.6g}{']' if closed in ('right', 'both') else ')'}",
    )
    return array[()]


def integer(name: str, value: ArrayLike, low: int) -> Float:
    """`value` as float64; ValueError unless all of it is an integer >= low."""
    array = np.asarray(value, dtype=np.float64)
    whole = np.isfinite(array) & (array == np.floor(array))
    _raise_first(array, whole & (array >= low), f"{name} must be an integer >= {low}")
    return array[()]


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def not_tied(name: str, value: ArrayLike, tie: float) -> None:
    """ValueError if `value` is within TIE of the point where greedy decoding ties."""
    array = np.asarray(value, dtype=np.float64)
    ok = np.abs(array - tie) > TIE
    _raise_first(array, ok, f"{name} must differ from the tie at {tie:.6g}")


def _raise_first(array: NDArray[np.float64], ok: np.ndarray, rule: str) -> None:
    if not np.all(ok):
        raise ValueError(f"{rule}, got {array[~ok].flat[0]!s}")
