"""Two kinds of answers told apart by their lengths alone, where no mark tells them."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import norm

NUM_ROUNDS = 500  # of expectation maximisation
MIN_SPREAD = 0.05  # of a kind's log length: one token in twenty


class Kinds(NamedTuple):
    """Which answers are of the longer kind."""

    is_long: np.ndarray  # of the shape of the lengths: all from one length on
    doubt: float  # probability that an answer is of the other kind, on the mean
    # By how much the Bayesian information criterion prefers two kinds to one; where it
    # does not (<= 0) all answers are taken for short.
    evidence: float


def kinds_of_length(length: np.ndarray) -> Kinds:
    """A mixture of two normal distributions of ln(1 + length), most likely."""
    x = np.log1p(np.asarray(length, float).ravel())
    level, spread = x.mean(), max(float(x.std()), MIN_SPREAD)
    alone = norm.logpdf(x, level, spread).sum()
    long_n = (x > (x.min() + x.max()) / 2).astype(float)
    if not 0 < long_n.mean() < 1:
        return Kinds(np.zeros(np.shape(length), bool), 0.0, -np.inf)
    total, share = -np.inf, 0.0
    for _ in range(NUM_ROUNDS):
        share = long_n.mean()
        parts = [log_density(x, w) for w in (1 - long_n, long_n)]
        logs = np.stack(parts) + np.log([[1 - share], [share]])
        before, total = total, np.logaddexp(*logs).sum()
        long_n = expit(logs[1] - logs[0])
        if not 0 < long_n.mean() < 1 or total - before < 1e-9 * abs(total):
            break
    evidence = 2 * (total - alone) - 3 * np.log(len(x))
    if evidence <= 0 or not 0 < long_n.mean() < 1:
        return Kinds(np.zeros(np.shape(length), bool), 0.0, float(evidence))
    centre, other = (np.average(x, weights=w) for w in (1 - long_n, long_n))
    if other < centre:  # the wider kind has the shorter answers
        centre, long_n = other, 1 - long_n
    # from one length on: where spreads differ, the wider kind has both ends
    longer = x[(x > centre) & (long_n > 0.5)]
    is_long = x >= longer.min() if longer.size else np.zeros_like(x, bool)
    doubt = np.where(is_long, 1 - long_n, long_n).mean()
    return Kinds(is_long.reshape(np.shape(length)), float(doubt), float(evidence))


def log_density(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Log density of the normal distribution with the weighted mean and spread of x."""
    mean = np.average(x, weights=weight)
    spread = np.sqrt(np.average((x - mean) ** 2, weights=weight))
    density: np.ndarray = norm.logpdf(x, mean, max(spread, MIN_SPREAD))
    return density
