"""The pre-trained policy under temperature, in closed form (the paper, Theorem 1).

The policy is ideal: it is calibrated on the mixture D(p), its chains never err, and it
stops after a wrong first token. With m = y_1 x_1 it is then fixed by the odds
a of m = +1 and c of continuing given m = +1; temperature tau raises both to 1/tau.
"""

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from parity_jax.theory._checks import Float, in_range, integer, not_tied, root


def log_odds(p: Float, tau: Float = 1.0) -> tuple[Float, Float]:
    """Logits (u, v): u = ln((1+p)/(1-p)) / tau and v = ln(2p/(1-p)) / tau."""
    p, tau = in_range("p", p, 0, 1), in_range("tau", tau, 0)
    return (np.log1p(p) - np.log1p(-p)) / tau, (np.log(2 * p) - np.log1p(-p)) / tau


def odds(p: Float, tau: Float = 1.0) -> tuple[Float, Float]:
    """Odds (a, c) of y_1 = x_1, and of going on after it, at temperature tau.

    a = ((1+p)/(1-p))^(1/tau), c = (2p/(1-p))^(1/tau); inf where float64 overflows.
    Ideal policy. ValueError unless 0 < p < 1 and tau > 0.
    """
    u, v = log_odds(p, tau)
    with np.errstate(over="ignore"):
        return np.exp(u), np.exp(v)


def probs(p: Float, tau: Float = 1.0) -> tuple[Float, Float]:
    """Probabilities A = a/(1+a) of y_1 = x_1 and C = c/(1+c) of going on after it.

    At tau = 1, A = (1+p)/2 and C = 2p/(1+p). Ideal policy, domain as `odds`.
    """
    u, v = log_odds(p, tau)
    return expit(u), expit(v)


def p_long(p: Float, tau: Float = 1.0) -> Float:
    """P(long) = A C of the ideal policy; equals p at tau = 1. Domain as `odds`."""
    A, C = probs(p, tau)
    return A * C


def accuracy(p: Float, tau: Float = 1.0) -> Float:
    """Accuracy (1 + A C)/2 of one sample of the ideal policy. Domain as `odds`.

    Long answers are right, short ones are right for half of the inputs.
    """
    return (1 + p_long(p, tau)) / 2


def expected_length(
    p: Float, d: Float, tau: Float = 1.0, count_eos: bool = False
) -> Float:
    """Mean number of response tokens, 1 + (d-1) A C, plus 1 with `count_eos`.

    Ideal policy. ValueError unless 0 < p < 1, tau > 0 and d >= 3 is an integer.
    """
    return 1 + (integer("d", d, 3) - 1) * p_long(p, tau) + count_eos


def class_success(p: Float, tau: Float = 1.0) -> tuple[Float, Float]:
    """Success (s_plus, s_minus) on inputs whose parity is x_1, and on the others.

    s_plus = A and s_minus = 1 - A(1-C); both are (1+p)/2 at tau = 1 and only there.
    Each class holds half of the inputs. Ideal policy, domain as `odds`.
    """
    fail_plus, fail_minus = _class_failure(p, tau)
    return 1 - fail_plus, 1 - fail_minus


def greedy(p: Float, tol: float = 1e-12) -> tuple[np.bool_ | np.ndarray, Float]:
    """Greedy decoding (is_long, accuracy): (True, 1) iff p > 1/3, else (False, 1/2).

    Holds for the ideal policy and for every ridge if the gate bias is regularised.
    ValueError unless 0 < p < 1, and at the tie |p - 1/3| <= tol.
    """
    p = in_range("p", p, 0, 1)
    not_tied("p", p, 1 / 3, tol)
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

    Mean over s in {s_plus, s_minus} of P(Bin(k,s) > k/2) + P(Bin(k,s) = k/2)/2.
    Ideal policy. ValueError unless 0 < p < 1, tau > 0 and k >= 1 is an integer.
    """
    k = integer("k", k, 1)

    def won(s: Float) -> Float:
        return binom.sf(np.floor(k / 2), k, s) + binom.pmf(k / 2, k, s) / 2

    s_plus, s_minus = class_success(p, tau)
    return (won(s_plus) + won(s_minus)) / 2


def longest_of_k(p: Float, k: Float, tau: Float = 1.0) -> Float:
    """Accuracy of the longest of k samples (the first if all are short).

    1 - (1-P)^k / 2 with P = P(long). Ideal policy.
    ValueError unless 0 < p < 1, tau > 0 and k >= 1 is an integer.
    """
    return 1 - (1 - p_long(p, tau)) ** integer("k", k, 1) / 2


def tau_majority(p: Float) -> Float:
    """Temperature above which majority vote over many samples becomes perfect.

    Root tau < 1 of tanh(atanh(p)/tau) = (2p/(1-p))^(1/tau), where s_minus = 1/2; below
    it the vote stays at 1/2. Ideal policy. ValueError unless 0 < p < 1/3.
    """
    p = in_range("p", p, 0, 1 / 3)
    u, v = log_odds(p)

    def excess(inverse_tau: float, u: float, v: float) -> float:
        return np.log(np.tanh(inverse_tau * u / 2)) - inverse_tau * v

    return 1 / root(excess, 1.0, np.maximum(2 / u, -1 / v), u, v)


def tau_best(p: Float) -> Float:
    """Temperature that maximises P(long), if the maximum is interior.

    Root of (1-A) ln((1+p)/(1-p)) + (1-C) ln(2p/(1-p)) = 0. Below sqrt(5)-2 P(long)
    rises with tau towards 1/4; above 1/3 it rises to 1 as tau -> 0. Ideal policy.
    ValueError unless sqrt(5)-2 < p < 1/3.
    """
    p = in_range("p", p, np.sqrt(5) - 2, 1 / 3)
    u, v = log_odds(p)

    def slope(inverse_tau: float, u: float, v: float) -> float:
        return expit(-inverse_tau * u) * u + expit(-inverse_tau * v) * v

    return 1 / root(slope, 0.0, np.log(2 * u / -v) / u, u, v)


def _class_failure(p: Float, tau: Float) -> tuple[Float, Float]:
    """Failure probabilities (1-A, A(1-C)), accurate when they are tiny."""
    u, v = log_odds(p, tau)
    return expit(-u), expit(u) * expit(-v)
