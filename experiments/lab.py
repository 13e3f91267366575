"""What several experiments share: their scales, and the small model of the CPU."""

from collections.abc import Mapping
from typing import TypeVar

import xarray as xr

from parity_jax.analysis import Check
from parity_jax.config import unknown_value
from parity_jax.models import mistral

T = TypeVar("T")

SMALL = mistral(2, 64, num_heads=4, num_kv_heads=2)  # learns d = 16 in minutes


def choose(scales: Mapping[str, T], scale: str) -> T:
    """The sizes of a scale; ConfigError names the scales there are."""
    if scale not in scales:
        raise unknown_value("scale", scale, scales)
    return scales[scale]


def solved(scores: xr.Dataset, length: int) -> dict[str, Check]:
    """Greedy decoding has this length and is right on 99% of the prompts."""
    return {
        "accuracy": Check.at_least(scores["greedy/accuracy"], 0.99),
        "length": Check.equal(scores["greedy/length_median"], length),
    }


def stuck(scores: xr.Dataset, prefix: str = "") -> dict[str, Check]:
    """Greedy decoding is short and within 0.1 of chance."""
    return {
        f"{prefix}accuracy": Check.within(scores["greedy/accuracy"], 0.5, 0.1),
        f"{prefix}length": Check.equal(scores["greedy/length_median"], 1),
    }
