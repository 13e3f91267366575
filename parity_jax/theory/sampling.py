"""The pre-trained policy under temperature, in closed form (the paper, Theorem 1).

The policy is ideal: it is calibrated on the mixture D(p), its chains never err, and it
stops after a wrong first token. With m = y_1 x_1 it is then fixed by the odds
a of m = +1 and c of continuing given m = +1; temperature tau raises both to 1/tau.
"""

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from parity_jax.theory._checks import Float, in_range, integer, not_tied


def log_odds(p: Float, tau: Float = 1.0) -> tuple[Float, Float]:
    """Logits (u, v): u = ln((1+p)/(1-p)) / tau and v = ln(2p/(1-p)) / tau."""
    p, tau = in_range("p", p, 0, 1), in_range("tau", tau, 0)
    return (np.log1p(p) - np.log1p(-p)) / tau, (np.log(2 * p) - np.log1p(-p)) / tau


def p_long(p: Float, tau: Float = 1.0) -> Float:
    """P(long) = A C of the ideal policy at temperature tau; equals p at tau = 1.

    A = a/(1+a) and C = c/(1+c); at tau = 1, A = (1+p)/2 and C = 2p/(1+p).
    ValueError unless 0 < p < 1 and tau > 0.
    """
    u, v = log_odds(p, tau)
    return expit(u) * expit(v)


def accuracy(p: Float, tau: Float = 1.0) -> Float:
    """Accuracy (1 + A C)/2 of one sample of the ideal policy.

    Long answers are right, short ones are right for half of the inputs.
    ValueError unless 0 < p < 1 and tau > 0.
    """
    return (1 + p_long(p, tau)) / 2


def greedy(p: Float) -> tuple[np.bool_ | np.ndarray, Float]:
    """Greedy decoding (is_long, accuracy): (True, 1) iff p > 1/3, else (False, 1/2).

    Holds for the ideal policy and for every ridge if the gate bias is regularised.
    ValueError unless 0 < p < 1, and at the tie |p - 1/3| <= 1e-12.
    """
    p = in_range("p", p, 0, 1)
    not_tied("p", p, 1 / 3)
    is_long = p > 1 / 3
    return is_long, np.where(is_long, 1.0, 0.5)[()]


def pass_at_k(p: Float, k: Float, tau: Float = 1.0) -> Float:
    """P(at least one of k samples is right) = 1 - ((1-A)^k + (A(1-C))^k)/2.

    Ideal policy. ValueError unless 0 < p < 1, tau > 0 and k >= 1 is an integer.
    """
    k = integer("k", k, 1)
    fail_plus, fail_minus = _class_failure(p, tau)
    return 1 - (fail_plus**k + fail_minus**k) / 2


def majority_at_k(p: Float, k: Float, tau: Float = 1.0) -> Float:
    """Accuracy of the majority of k final tokens, a fair coin breaking ties.

    Mean over the success s of the two halves of the inputs, A and 1 - A(1-C), of
    P(Bin(k,s) > k/2) + P(Bin(k,s) = k/2)/2.
    Ideal policy. ValueError unless 0 < p < 1, tau > 0 and k >= 1 is an integer.
    """
    k = integer("k", k, 1)

    def won(s: Float) -> Float:
        return binom.sf(np.floor(k / 2), k, s) + binom.pmf(k / 2, k, s) / 2

    fail_plus, fail_minus = _class_failure(p, tau)
    return (won(1 - fail_plus) + won(1 - fail_minus)) / 2


def _class_failure(p: Float, tau: Float) -> tuple[Float, Float]:
    """Failure (1-A, A(1-C)) on inputs whose parity is x_1, and on the others.

    Both are (1-p)/2 at tau = 1 and only there; accurate when they are tiny.
    """
    u, v = log_odds(p, tau)
    return expit(-u), expit(u) * expit(-v)
