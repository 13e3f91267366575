"""What analyses ask of scores again and again."""

from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from parity_jax.config import label_text


def last(scores: xr.Dataset) -> xr.Dataset:
    """The last evaluation, without the coordinates of its step."""
    return scores.isel(step=-1, drop=True)


def is_solved(scores: xr.Dataset, length: int) -> xr.DataArray:
    """Whether greedy decoding has this length and is right on 99% of the prompts."""
    is_long = scores["greedy/length_median"] == length
    return is_long & (scores["greedy/accuracy"] >= 0.99)


def is_stuck(scores: xr.Dataset) -> xr.DataArray:
    """Whether greedy decoding is short and within 0.1 of chance."""
    is_short = scores["greedy/length_median"] == 1
    return is_short & (abs(scores["greedy/accuracy"] - 0.5) <= 0.1)


def first_step(condition: xr.DataArray) -> xr.DataArray:
    """The first step at which a condition holds, without dimension `step`; else NaN."""
    return condition["step"].where(condition).min("step")


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of independent values."""
    error = stats.sem(values)
    if error == 0:  # all values are equal
        return float(np.mean(values)), float(np.mean(values))
    low, high = stats.t.interval(level, len(values) - 1, np.mean(values), error)
    return float(low), float(high)


def by_member(values: Any) -> dict[str, float | None]:
    """The values of all members under readable labels ("seed=0"); None for NaN."""
    values = xr.DataArray(values)
    out: dict[str, float | None] = {}
    for index in np.ndindex(values.shape):
        item = values[index]
        label = {str(d): item.coords[d].item() for d in values.dims}
        member = label_text(label)
        if member in out:
            raise ValueError(f"has the member {member} twice")
        out[member] = plain_number(item)
    return out


def plain_number(value: Any) -> float | None:
    """A number as JSON has it, with the digits of float32; None for NaN and inf."""
    number = float(value)
    return float(f"{number:.8g}") if np.isfinite(number) else None
