"""The autoregressive linear model at the optimum of next-token prediction with ridge.

Each head minimises its mean logistic loss + (lam/2) ||w||^2, bias included, on the
mixture D(p) with d >= 3 bits; chain heads average over long examples only. All but one
or two coordinates of every head are exactly zero. The paper's Lemma 1 is head 1 at
lam -> 0, its Theorem 1 the resulting policy.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from parity_jax.theory._checks import Float, in_range, integer


def ridge_logit(prob: Float, weight: Float, lam: Float) -> Float:
    """Root z of weight (sg(z) - prob) + lam z = 0: the logit of `prob`, shrunk.

    `weight` is the mass of examples on which the logit acts, sg the logistic function.
    """
    return np.vectorize(_ridge_logit, otypes=[np.float64])(prob, weight, lam)[()]


def _ridge_logit(prob: float, weight: float, lam: float) -> float:
    if lam == 0:
        return logit(prob)
    # Beyond this edge lam |z| exceeds weight sg(-|z|): the root lies inside.
    edge = np.copysign(1 + np.log1p(weight / lam), prob - 0.5)

    def slope(z: float) -> float:
        return weight * (expit(z) - prob) + lam * z

    return brentq(slope, min(edge, 0.0), max(edge, 0.0), xtol=1e-15, rtol=1e-15)


def ridge_stats(p: Float, d: Float, lam: Float, tau: Float = 1.0) -> dict[str, Float]:
    """Sampling statistics of the ridge optimum at temperature tau.

    The logits u of A, t+ of C_plus, t- of C_minus and c of 1 - eps solve sg(u) + lam u
    = (1+p)/2, (1+p) sg(t+) + lam t+ = 2p, (1-p) sg(t-) + lam t- = 0 and sg(c) + lam c
    = 1; then each is divided by tau. rho = (1 - 2 eps)^(d-1), p_long = A C_plus +
    (1-A) C_minus, accuracy = (1 + rho (A C_plus - (1-A) C_minus))/2.
    ValueError unless 0 < p < 1, d >= 3 is an integer, lam > 0 and tau > 0.
    """
    p, d = in_range("p", p, 0, 1), integer("d", d, 3)
    lam, tau = in_range("lam", lam, 0), in_range("tau", tau, 0)
    A = expit(ridge_logit((1 + p) / 2, 1.0, lam) / tau)
    C_plus = expit(ridge_logit(2 * p / (1 + p), 1 + p, lam) / tau)
    C_minus = expit(ridge_logit(0.0, 1 - p, lam) / tau)
    wrong_step_logit = ridge_logit(0.0, 1.0, lam) / tau
    rho = np.tanh(-wrong_step_logit / 2) ** (d - 1)
    long_plus, long_minus = A * C_plus, (1 - A) * C_minus
    return {
        "A": A,
        "C_plus": C_plus,
        "C_minus": C_minus,
        "eps": expit(wrong_step_logit),
        "rho": rho,
        "p_long": long_plus + long_minus,
        "accuracy": (1 + rho * (long_plus - long_minus)) / 2,
    }
