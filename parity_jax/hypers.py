"""Everything that is only a number: traced, so any of it can be a population axis."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import jax

from parity_jax.config import is_finite, require, require_float32


def _number(default: float, low: float, high: float = math.inf) -> Any:
    """A field with its inclusive bounds."""
    return field(default=default, metadata={"low": low, "high": high})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hypers:
    """The numbers of one member: those of the data, then those of training."""

    p_cot: Any = _number(0.25, 0, 1)  # share of full chains among the demonstrations
    p_leap: Any = _number(0.0, 0, 1)  # share of leap chains (every k-th parity)
    emit_noise: Any = _number(0.0, 0, 1)  # flip prob. of a shown token, not propagated
    step_noise: Any = _number(0.0, 0, 1)  # flip prob. of a chain step, propagated
    short_noise: Any = _number(0.0, 0, 1)  # flip probability of a short answer
    learning_rate: Any = _number(1e-3, 0)
    temperature: Any = _number(1.0, 1e-3)  # of responses sampled for training
    epsilon: Any = _number(0.2, 0, 1)  # the ratio is clipped to [1 - epsilon, ..
    epsilon_high: Any = _number(0.2, 0)  # .. 1 + epsilon_high]
    delta: Any = _number(1e6, 1)  # cap of the unclipped ratio; 1e6: none
    beta: Any = _number(0.0, 0)  # weight of the KL divergence to the reference
    entropy_coef: Any = _number(0.0, 0)  # weight of the entropy bonus
    length_price: Any = _number(0.0, 0)  # alpha, of the longest response that ends
    ridge: Any = _number(1e-3, 1e-8)  # lambda of the linear model, (lambda / 2) |w|^2
    false_positive: Any = _number(0.0, 0, 1)  # P(a 0 is seen as 1), e2e and cot
    false_negative: Any = _number(0.0, 0, 1)  # P(a 1 is seen as 0), e2e and cot


BOUNDS: dict[str, tuple[float, float]] = {
    f.name: (f.metadata["low"], f.metadata["high"]) for f in dataclasses.fields(Hypers)
}

# What can be an axis of a population.
AXES = ("seed", "parent_step", *BOUNDS)


def check_hyper(name: str, value: float) -> None:
    """ConfigError unless the value is finite and within its bounds."""
    low, high = BOUNDS[name]
    allowed = f"must be in [{low:g}, {high:g}]"
    if high == math.inf:
        allowed = f"must be a finite number >= {low:g}"
    inside = is_finite(value) and low <= value <= high
    require(inside, name, value, allowed)
    require_float32(name, value, low, high)


def check_hypers(hypers: Hypers) -> None:
    """ConfigError unless all numbers are within bounds, alone and together."""
    for name in BOUNDS:
        check_hyper(name, getattr(hypers, name))
    share = hypers.p_cot + hypers.p_leap
    require(share <= 1, "p_leap", hypers.p_leap, "p_cot + p_leap must be at most 1")
