"""What reinforcement makes of any mixture of long and short answers (not in the paper).

A share p of the samples is long and right at rate f_long, the others at rate f_short;
what an answer says is taken as it is, only the choice of its kind is trained. For the
parity mixture f_long = 1 and f_short = 1/2, and all of it is Theorem 2 and the flow of
`policy_gradient`. Greedy decoding turns long at p = 1/2 if the first token tells the
kind, at 1/3 if the second does and the first is one of two (the parity mixture).
"""

from collections.abc import Callable

import numpy as np
from scipy.integrate import quad
from scipy.special import expit, logit
from scipy.stats import binom

from parity_jax.theory._checks import TIE, Float, in_range, integer


def star_share(p: Float, n: Float, f_long: Float = 1.0, f_short: Float = 0.5) -> Float:
    """Long share after n rounds of STaR: each multiplies its odds by f_long / f_short.

    A round keeps what is right at temperature 1. ValueError unless 0 < p < 1, rates
    are in (0, 1] and n >= 0 is an integer.
    """
    p, n = in_range("p", p, 0, 1), integer("n", n, 0)
    return expit(logit(p) + n * _log_ratio(f_long, f_short))


def star_rounds_to(
    threshold: Float, p: Float, f_long: Float = 1.0, f_short: Float = 0.5
) -> Float:
    """Rounds of STaR until the long share is above a threshold; inf if it never is.

    ValueError unless 0 < p, threshold < 1 and rates are in (0, 1].
    """
    gap = logit(in_range("threshold", threshold, 0, 1)) - logit(in_range("p", p, 0, 1))
    ratio = _log_ratio(f_long, f_short)
    with np.errstate(divide="ignore", invalid="ignore"):
        rounds = np.where(ratio > 0, np.floor(gap / ratio + TIE) + 1, np.inf)
    return np.where(gap < -TIE, 0.0, rounds)[()]


def first_token_flow_time(p: float, delta: float | Callable[[float], float]) -> float:
    """Time T of gradient flow from P(long) = p to 1/2 if the first token is the gate.

    Its logit moves by v' = Delta P (1 - P); about T / learning rate updates. `delta` is
    f_long - f_short for REINFORCE with a constant norm, or a function of P(long). For a
    constant, T = ((1-p)/p - p/(1-p) - 2 logit p) / Delta. 0 if p >= 1/2. ValueError
    unless 0 < p < 1 and delta > 0.
    """
    start = float(logit(in_range("p", p, 0, 1)))

    def slowness(x: float) -> float:  # dt/dx at x = e^-v
        drive = in_range("delta", delta(1 / (1 + x)) if callable(delta) else delta, 0)
        return (1 + 1 / x) ** 2 / drive

    if start >= 0:
        return 0.0
    return quad(slowness, 1.0, np.exp(-start), epsabs=0.0, epsrel=1e-10, limit=500)[0]


def pass_at_k_of(rate: Float, k: Float) -> Float:
    """P(one of k independent samples is right) if each is at this rate.

    For the parity mixture at temperature 1 the rate is (1 + p)/2 on every prompt.
    ValueError unless the rate is in [0, 1] and k >= 1 is an integer.
    """
    return 1 - (1 - in_range("rate", rate, 0, 1, closed="both")) ** integer("k", k, 1)


def majority_at_k_of(rate: Float, k: Float) -> Float:
    """P(more than half of k independent samples are right), half of a tie added.

    ValueError unless the rate is in [0, 1] and k >= 1 is an integer.
    """
    rate, k = in_range("rate", rate, 0, 1, closed="both"), integer("k", k, 1)
    return binom.sf(np.floor(k / 2), k, rate) + binom.pmf(k / 2, k, rate) / 2


def _log_ratio(f_long: Float, f_short: Float) -> Float:
    high = in_range("f_long", f_long, 0, 1, closed="right")
    return np.log(high) - np.log(in_range("f_short", f_short, 0, 1, closed="right"))
