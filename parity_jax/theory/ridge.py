"""The autoregressive linear model at the optimum of next-token prediction with ridge.

Each head minimises its mean logistic loss + (lam/2) ||w||^2, bias included, on the
mixture D(p) with d >= 3 bits; chain heads average over long examples only. All but one
or two coordinates of every head are exactly zero. The paper's Lemma 1 is head 1 at
lam -> 0, its Theorem 1 the resulting policy.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from parity_jax.theory._checks import Float, in_range, integer, root

Weights = tuple[NDArray[np.float64], NDArray[np.float64], list[NDArray[np.float64]]]


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
    return root(
        lambda z: weight * (expit(z) - prob) + lam * z, min(edge, 0.0), max(edge, 0.0)
    )


def ridge_first(p: Float, lam: Float) -> Float:
    """Weight c of x_1 in the first head (no bias): sg(c) + lam c = (1+p)/2.

    P(y_1 = x_1) = sg(c); at lam = 0, c = ln((1+p)/(1-p)).
    ValueError unless 0 < p < 1 and lam >= 0.
    """
    p, lam = in_range("p", p, 0, 1), in_range("lam", lam, 0, closed="left")
    return ridge_logit((1 + p) / 2, 1.0, lam)


def ridge_gate(p: Float, lam: Float, reg_bias: bool = True) -> tuple[Float, Float]:
    """Bias b and weight theta of y_1 x_1 in the gate; sg(b +- theta) = P(continue).

    Regularised bias: t+- = b +- theta solve (1+p) sg(t+) + lam t+ = 2p and
    (1-p) sg(t-) + lam t- = 0. Free bias: (1+p) sg(t+) + lam theta = 2p and
    (1-p) sg(t-) = lam theta. ValueError unless 0 < p < 1 and lam > 0.
    """
    p, lam = in_range("p", p, 0, 1), in_range("lam", lam, 0)
    if reg_bias:
        t_plus = ridge_logit(2 * p / (1 + p), 1 + p, lam)
        t_minus = ridge_logit(0.0, 1 - p, lam)
    else:
        low = logit(p) - np.maximum(1.0, np.log(2 * p / lam))
        t_minus = root(_free_bias_excess, low, logit(p), p, lam)
        t_plus = _balanced_logit(t_minus, p)
    return (t_plus + t_minus) / 2, (t_plus - t_minus) / 2


def _balanced_logit(t_minus: Float, p: Float) -> Float:
    """t+ given t- if the length is calibrated: (1+p) sg(t+) + (1-p) sg(t-) = 2p."""
    return logit((2 * p - (1 - p) * expit(t_minus)) / (1 + p))


def _free_bias_excess(t_minus: float, p: float, lam: float) -> float:
    theta = (_balanced_logit(t_minus, p) - t_minus) / 2
    return (1 - p) * expit(t_minus) - lam * theta


def ridge_chain(lam: Float, eps: Float = 0.0) -> Float:
    """Weight c of y_{l-1} x_l in a chain head: sg(c) + lam c = 1 - eps.

    `eps` is the label noise; the step errs with probability sg(-c) = eps + lam c.
    inf at lam = eps = 0. ValueError unless lam >= 0 and 0 <= eps <= 1.
    """
    lam = in_range("lam", lam, 0, closed="left")
    eps = in_range("eps", eps, 0, 1, closed="both")
    return -ridge_logit(eps, 1.0, lam)


def ridge_threshold(lam: Float, reg_bias: bool = True) -> Float:
    """Mixture ratio above which greedy decoding is long.

    Exactly 1/3 with a regularised bias. With a free one, the root of t+ = 0, i.e.
    3p - 1 = -lam logit((3p-1)/(2(1-p))). ValueError unless lam > 0.
    """
    lam = in_range("lam", lam, 0)
    if reg_bias:
        return np.full_like(lam, 1 / 3)[()]

    def excess(t_minus: float, lam: float) -> float:
        stay = expit(t_minus)
        return 4 * stay / (3 + 2 * stay) + lam * t_minus

    return (1 - lam * root(excess, -0.5 / lam, 0.0, lam)) / 3


def linear_weights(p: float, d: int, lam: float, reg_bias: bool = True) -> Weights:
    """All optimal weights: (w_1, gate, [chain head l for l = 2..d]).

    Features: w_1 on x; gate on [1, x, y_1, y_1 x] with positive logit = continue;
    chain head l on [x, y_1..y_{l-1}, y_{l-1} x]. Shapes (d,), (2d+2,), (2d+l-1,).
    ValueError unless 0 < p < 1, d >= 3 is an integer and lam > 0.
    """
    d = int(integer("d", d, 3))
    first, gate = np.zeros(d), np.zeros(2 * d + 2)
    gate[0], gate[d + 2] = ridge_gate(p, lam, reg_bias)
    first[0] = ridge_first(p, lam)
    chain = [np.zeros(2 * d + step - 1) for step in range(2, d + 1)]
    for step, head in enumerate(chain, start=2):
        head[d + 2 * (step - 1)] = ridge_chain(lam)
    return first, gate, chain


def ridge_stats(p: Float, d: Float, lam: Float, tau: Float = 1.0) -> dict[str, Float]:
    """Sampling statistics of the ridge optimum (regularised bias) at temperature tau.

    Every logit is divided by tau. rho = (1 - 2 eps)^(d-1), p_long = A C_plus +
    (1-A) C_minus, accuracy = (1 + rho (A C_plus - (1-A) C_minus))/2.
    ValueError unless 0 < p < 1, d >= 3 is an integer, lam > 0 and tau > 0.
    """
    d, tau = integer("d", d, 3), in_range("tau", tau, 0)
    b, theta = ridge_gate(p, lam)
    A = expit(ridge_first(p, lam) / tau)
    C_plus, C_minus = expit((b + theta) / tau), expit((b - theta) / tau)
    step_logit = ridge_chain(lam) / tau
    rho = np.tanh(step_logit / 2) ** (d - 1)
    long_plus, long_minus = A * C_plus, (1 - A) * C_minus
    return {
        "A": A,
        "C_plus": C_plus,
        "C_minus": C_minus,
        "eps": expit(-step_logit),
        "rho": rho,
        "p_long": long_plus + long_minus,
        "accuracy": (1 + rho * (long_plus - long_minus)) / 2,
    }


def finite_sample_sd(p: Float, N: Float, d: Float) -> dict[str, Float]:
    """Asymptotic standard deviations of the optimum on N i.i.d. examples, lam -> 0.

    w1: one weight of the first head; A, C, p_long: the policy averaged over inputs;
    margin_over_x: the first head's spurious margin, over inputs.
    ValueError unless 0 < p < 1, and N >= 1 and d >= 4 are integers.
    """
    p, N, d = in_range("p", p, 0, 1), integer("N", N, 1), integer("d", d, 4)
    C = 2 * p / (1 + p)
    w1 = 2 / np.sqrt((1 - p**2) * N)
    return {
        "w1": w1,
        "A": np.sqrt((1 - p**2) / (4 * N)),
        "C": np.sqrt(C * (1 - C) / (N * (1 + p) / 2)),
        "p_long": np.sqrt(p * (1 - p) / N),
        "margin_over_x": w1 * np.sqrt(d - 1),
    }
