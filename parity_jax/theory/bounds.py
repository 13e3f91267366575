"""Finite-sample guarantees of SGD pre-training (the paper, Propositions 1-3).

The average of T iterates of SGD with step 1/(lam t) on the logistic loss plus
(lam/2) ||w||^2 has, with probability 1 - delta, predicted probabilities within
`statistical error + ridge bias` of those of the mixture D(p), uniformly over inputs.
"""

import numpy as np

from parity_jax.theory._checks import Float, in_range, integer


def bound_first(p: Float, lam: Float, T: Float, d: Float, delta: Float) -> Float:
    """Error of the first token's P(y_1 = x_1), whose true value is (1+p)/2.

    At most d/(2 lam) sqrt((1 + ln T)/(delta T)) + lam ln((1+p)/(1-p))/(1-p^2).
    ValueError unless 0 < p < 1, lam > 0, T >= 1, 0 < delta < 1, integer d >= 3.
    """
    p, lam = in_range("p", p, 0, 1), in_range("lam", lam, 0)
    bias = lam * (np.log1p(p) - np.log1p(-p)) / (1 - p**2)
    return integer("d", d, 3) / 2 * _rate(lam, T, delta) + bias


def bound_gate(
    p: Float, lam: Float, T: Float, d: Float, delta: Float
) -> tuple[Float, Float]:
    """Errors of the gate's P(continue), after a right and after a wrong first token.

    The true values are 2p/(1+p) and 0. Both errors are at most 2(d+1)/lam
    sqrt((1 + ln T)/(delta T)) plus a bias: lam (1+p) |ln(2p/(1-p))|/(8p(1-p)) if
    y_1 = x_1, sqrt(lam/(1-p)) if not.
    ValueError as in `bound_first`.
    """
    p, lam = in_range("p", p, 0, 1), in_range("lam", lam, 0)
    noise = 2 * (integer("d", d, 3) + 1) * _rate(lam, T, delta)
    log_c = np.log(2 * p) - np.log1p(-p)
    bias_plus = lam * (1 + p) * np.abs(log_c) / (8 * p * (1 - p))
    return noise + bias_plus, noise + np.sqrt(lam / (1 - p))


def bound_chain(lam: Float, T: Float, d: Float, step: Float, delta: Float) -> Float:
    """Error rate P(y_l != y_{l-1} x_l) of chain step l = `step` after T long examples.

    At most (2d+l-1)/(2 lam) sqrt((1 + ln T)/(delta T)) + sqrt(lam).
    ValueError as in `bound_first`, and unless `step` is an integer in 2..d.
    """
    lam, d = in_range("lam", lam, 0), integer("d", d, 3)
    step = integer("step", step, 2)
    in_range("step/d", step / d, 0, 1, closed="right")
    return (2 * d + step - 1) / 2 * _rate(lam, T, delta) + np.sqrt(lam)


def _rate(lam: Float, T: Float, delta: Float) -> Float:
    """Distance of the averaged iterate, in units of the features' norm squared."""
    T = in_range("T", T, 1, closed="left")
    delta = in_range("delta", delta, 0, 1)
    return np.sqrt((1 + np.log(T)) / (delta * T)) / lam
