"""STaR on the ideal policy: sample at tau, keep the right answers, refit to optimum.

The state is the odds (a, c) of y_1 = x_1 and of going on after it; C_minus = 0 and the
chains never err, so both rewards keep the same answers. At tau = 1 this is the paper's
Theorem 2. One round maps c to 2 c^(1/tau) and a to a^(1/tau) (1 + 2 c^(1/tau))/(1 +
c^(1/tau)). At tau = 1, and only there, this keeps the curve a = 1 + c, on which the
policy is that of some D(p).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from parity_jax.theory._checks import TIE, Float, in_range, integer
from parity_jax.theory.sampling import log_odds


def star_p(p: Float, n: Float) -> Float:
    """Long share after n rounds at tau = 1: p_n = 2^n p / (1 + (2^n - 1) p).

    One round maps p to 2p/(1+p): the odds p/(1-p) double.
    ValueError unless 0 < p < 1 and n >= 0 is an integer.
    """
    p, n = in_range("p", p, 0, 1), integer("n", n, 0)
    return p / (p + (1 - p) * np.exp2(-n))


def star_trajectory(p: float, n: int, tau: float = 1.0) -> NDArray[np.float64]:
    """(A, C, A C), at temperature 1, of the policy after 0..n rounds; shape (n+1, 3).

    ValueError unless 0 < p < 1, n >= 0 is an integer and tau > 0.
    """
    tau = in_range("tau", tau, 0)
    states = [log_odds(p)]
    for _ in range(int(integer("n", n, 0))):
        states.append(_log_step(*states[-1], tau))
    A, C = expit(np.array(states)).T
    return np.stack([A, C, A * C], axis=1)


def star_rounds(p: float, tau: float = 1.0, max_rounds: int = 10_000) -> int | None:
    """First round n after which greedy decoding is long: c_n > 1, ties not counted.

    At tau = 1 this is max(0, floor(log2((1-p)/(2p))) + 1). None if c shrinks for ever
    (tau < 1, p <= star_critical_p(tau)) or needs more than `max_rounds`.
    ValueError unless 0 < p < 1 and tau > 0.
    """
    tau = float(in_range("tau", tau, 0))
    v = float(log_odds(p)[1])
    for n in range(max_rounds + 1):
        if v > TIE:
            return n
        grown = np.log(2) + v / tau
        if grown - v <= TIE:
            return None
        v = grown
    return None


def star_critical_p(tau: Float) -> Float:
    """Ratio below which STaR at tau < 1 collapses to short answers, p* = k/(2+k).

    k = 2^(-tau/(1-tau)): there c is the unstable fixed point of c' = 2 c^(1/tau).
    ValueError unless 0 < tau < 1.
    """
    tau = in_range("tau", tau, 0, 1)
    k = np.exp2(-tau / (1 - tau))
    return k / (2 + k)


def star_fixed_point(tau: Float) -> tuple[Float, Float]:
    """Stable odds (a*, c*) of STaR at tau > 1: sampling never becomes perfect.

    c* = 2^(tau/(tau-1)), a* = (1 + C)^(tau/(tau-1)) with C/(1-C) = 2^(1/(tau-1)); inf
    where float64 overflows. ValueError unless tau > 1.
    """
    tau = in_range("tau", tau, 1)
    power = tau / (tau - 1)
    with np.errstate(over="ignore"):
        return (1 + expit(np.log(2) / (tau - 1))) ** power, np.exp2(power)


def _log_step(u: Float, v: Float, tau: Float) -> tuple[Float, Float]:
    """The log odds (u, v) after one round."""
    return u / tau + np.log1p(expit(v / tau)), np.log(2) + v / tau
