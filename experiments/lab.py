"""What several experiments share: their scales and the form of their claims."""

from collections.abc import Mapping
from typing import TypeVar

import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from parity_jax.config import unknown_value
from parity_jax.results import Claim, by_member

T = TypeVar("T")


def choose(scales: Mapping[str, T], scale: str) -> T:
    """The sizes of a scale; ConfigError names the scales there are."""
    if scale not in scales:
        raise unknown_value("scale", scale, scales)
    return scales[scale]


def is_solved(scores: xr.Dataset, num_bits: int) -> xr.DataArray:
    """Whether greedy decoding shows all bits and is right on 99% of the prompts."""
    is_long = scores["greedy/length_median"] == num_bits
    return is_long & (scores["greedy/accuracy"] >= 0.99)


def is_stuck(scores: xr.Dataset) -> xr.DataArray:
    """Whether greedy decoding is short and within 0.1 of chance."""
    is_short = scores["greedy/length_median"] == 1
    return is_short & (abs(scores["greedy/accuracy"] - 0.5) <= 0.1)


def close(
    id: str,
    claim: str,
    measured: xr.DataArray,
    predicted: xr.DataArray,
    tolerance: float,
) -> Claim:
    """The claim that the mean over seeds is within `tolerance` of a prediction."""
    gap = abs(measured.mean("seed") - predicted)
    return Claim(
        id,
        claim,
        f"largest gap of a mean over seeds at most {tolerance}",
        {
            "largest gap": round(float(gap.max()), 4),
            "measured": by_member(measured),
            "predicted": by_member(predicted),
        },
        f"{tolerance}",
        bool((gap <= tolerance).all()),
    )


def dots(
    ax: Axes, x: ArrayLike, values: xr.DataArray, color: str, marker: str = "o"
) -> None:
    """One dot for every seed over x, the other dimension of values."""
    y = values.transpose(..., "seed").values
    ax.plot(x, y, marker, ms=3.5, alpha=0.6, color=color)
