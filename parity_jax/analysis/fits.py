"""Lines through what was reached between two evaluations, or not within a budget."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy import optimize, stats
from scipy.special import log_ndtr

MAX_SLOPE = 1e3  # an interval that reaches farther is unbounded


def reached(scores: xr.DataArray, target: float) -> xr.Dataset:
    """The interval (low, high] of sequences in which a score reaches a target.

    high is the first of two evaluations in a row at the target, low the one before it
    (0 if there is none). If it is not reached low is the last one, high infinite. Both
    are NaN where the last score is: the member diverged.
    """
    good = scores >= target
    twice = good & good.shift(step=-1, fill_value=False)
    sequences = scores["sequences"] + xr.zeros_like(scores)
    before = sequences.shift(step=1, fill_value=0)
    high = sequences.where(twice, np.inf).min("step")
    low = before.where(twice, np.inf).min("step")
    found = xr.Dataset({"low": np.minimum(low, sequences.max("step")), "high": high})
    return found.where(scores.isel(step=-1, drop=True).notnull())


class Fit(NamedTuple):
    """A line of ln(sequences) over x."""

    intercept: float
    slope: np.ndarray  # and the low and high end of its 95% interval
    spread: float  # standard deviation of ln(sequences) about the line
    log_likelihood: float


def interval_fit(x: ArrayLike, low: ArrayLike, high: ArrayLike) -> Fit:
    """Maximum likelihood of intervals (low, high], normal errors of their logarithm.

    The interval of the slope is that of the likelihood ratio, with Student's quantile
    for as many points as are reached. NaN where high is finite at fewer than 3 values
    of x, which bound no slope, or an end is NaN.
    """
    x, low, high = (np.ravel(np.asarray(each, float)) for each in (x, low, high))
    is_reached = np.isfinite(high)
    if len({*x[is_reached]}) < 3 or np.isnan([low, high]).any():
        return Fit(np.nan, np.full(3, np.nan), np.nan, np.nan)
    with np.errstate(divide="ignore"):
        edges = [np.log(each) for each in (low, high)]
    centre = x - x.mean()

    def loss(slope: float, at: np.ndarray) -> float:
        level, log_spread = at
        z = [(e - level - slope * centre) / np.exp(log_spread) for e in edges]
        return -float(log_mass(*z).sum())

    def best(slope: float) -> optimize.OptimizeResult:
        level = float(np.median((edges[1] - slope * centre)[is_reached]))
        return optimize.minimize(
            lambda at: loss(slope, at), (level, np.log(0.5)), method="Nelder-Mead"
        )

    first = np.polyfit(centre[is_reached], edges[1][is_reached], 1)[0]
    found = optimize.minimize_scalar(lambda b: best(b).fun, (first, first + 0.1))
    slope, least = float(found.x), float(found.fun)
    num = int(is_reached.sum())
    bound = least + num / 2 * np.log1p(stats.t.ppf(0.975, num - 2) ** 2 / (num - 2))

    def end(side: int) -> float:
        """Where the profile of the likelihood falls below the bound."""
        step = 0.1
        while best(slope + side * step).fun < bound and step < MAX_SLOPE:
            step *= 2
        if step >= MAX_SLOPE:
            return side * np.inf
        return optimize.brentq(
            lambda b: best(b).fun - bound, slope, slope + side * step, xtol=1e-3
        )

    level, log_spread = best(slope).x
    return Fit(
        level - slope * x.mean(),
        np.array([slope, end(-1), end(1)]),
        float(np.exp(log_spread)),
        -least,
    )


def log_mass(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """ln of what a standard normal has between low and high, exact in both tails."""
    is_right = low > 0
    low, high = np.where(is_right, -high, low), np.where(is_right, -low, high)
    with np.errstate(divide="ignore"):
        return log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))
