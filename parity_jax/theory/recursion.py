"""The exact STaR recursion of the linear model, with noisy chains and ridge.

Beyond the ideal policy of `star`: any stray continuation C_minus, any error rate per
chain step, both rewards, refit with or without ridge. The noisy demonstrations
of `pretrain_state` extend the paper's setting.
"""

from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit

from parity_jax.theory._checks import Float, in_range, integer, one_of
from parity_jax.theory.ridge import ridge_logit


class State(NamedTuple):
    """A policy of the linear model, as probabilities or (in `fit_logits`) as logits."""

    A: Float  # P(y_1 = x_1)
    C_plus: Float  # P(continue | y_1 = x_1)
    C_minus: Float  # P(continue | y_1 != x_1)
    eps: Float  # P(y_l != y_{l-1} x_l), l = 2..d, shape (d-1,); logit: of being right


def pretrain_state(
    p: float, d: int, noise: Literal["clean", "emit", "step"] = "clean", q: float = 0.0
) -> State:
    """Policy pre-trained on D(p) whose long demonstrations flip tokens 1..d-1 w.p. q.

    emit: y_l = t_l xi_l, so eps_l = 2q(1-q) and eps_d = q. step: y_l = y_{l-1} x_l
    xi_l, so eps_l = q and eps_d = 0. With r = p(1-2q) both have A = (1+r)/2,
    C_plus = 2p(1-q)/(1+r) and C_minus = 2pq/(1-r). Linear model, lam -> 0.
    ValueError unless 0 < p < 1, d >= 3 is an integer, 0 <= q < 1/2, and q = 0 if clean.
    """
    one_of("noise", noise, ("clean", "emit", "step"))
    p, d = in_range("p", p, 0, 1), int(integer("d", d, 3))
    q = in_range("q", q, 0, 0.5, closed="left")
    if noise == "clean" and q > 0:
        raise ValueError(f"q must be 0 for clean demonstrations, got {q}")
    inner, last = (2 * q * (1 - q), q) if noise == "emit" else (q, 0.0)
    bias = p * (1 - 2 * q)
    return State(
        A=(1 + bias) / 2,
        C_plus=2 * p * (1 - q) / (1 + bias),
        C_minus=2 * p * q / (1 - bias),
        eps=np.array([inner] * (d - 2) + [last]),
    )


def fit_logits(state: State, lam: float = 0.0) -> State:
    """Logits of the linear model refitted, with ridge lam, to data drawn from `state`.

    u, t+, t- of sg(u) + lam u = A, 2A (sg(t+) - C_plus) + lam t+ = 0 and
    2(1-A)(sg(t-) - C_minus) + lam t- = 0; chain c_l of sg(c_l) + lam c_l = 1 - eps_l
    (so eps = sg(-c)). Infinite where lam = 0 and the event is certain.
    ValueError unless lam >= 0 and 0 <= eps_l <= 1.
    """
    lam = in_range("lam", lam, 0, closed="left")
    eps = in_range("eps", state.eps, 0, 1, closed="both")
    return State(
        A=ridge_logit(state.A, 1.0, lam),
        C_plus=ridge_logit(state.C_plus, 2 * state.A, lam),
        C_minus=ridge_logit(state.C_minus, 2 * (1 - state.A), lam),
        eps=-ridge_logit(eps, 1.0, lam),
    )


def star_state_step(
    logits: State, tau: float = 1.0, reward: Literal["e2e", "cot"] = "e2e"
) -> tuple[State, Float]:
    """Distribution of the answers kept in one round, and the share that is kept.

    Samples at temperature tau. After a right or wrong y_1, a long answer is kept w.p.
    (1 +- rho)/2 (e2e: final token right), or prod(1 - eps_l) and 0 (cot: all tokens
    right); a short one w.p. 1/2. rho = prod(1 - 2 eps_l). Exact for the linear model;
    refit with `fit_logits`.
    ValueError unless tau > 0 and the reward is e2e or cot.
    """
    one_of("reward", reward, ("e2e", "cot"))
    tau = in_range("tau", tau, 0)
    A, C_plus, C_minus = (expit(np.asarray(z) / tau) for z in logits[:3])
    step_logits = np.asarray(logits.eps) / tau
    factors = np.tanh(step_logits / 2)
    rho = factors.prod()
    if reward == "e2e":
        right_plus, right_minus = (1 + rho) / 2, (1 - rho) / 2
    else:
        right_plus, right_minus = expit(step_logits).prod(), 0.0
    kept_plus = C_plus * right_plus + (1 - C_plus) / 2
    kept_minus = C_minus * right_minus + (1 - C_minus) / 2
    keep_rate = A * kept_plus + (1 - A) * kept_minus
    kept = State(
        A=A * kept_plus / keep_rate,
        C_plus=C_plus * right_plus / kept_plus,
        C_minus=C_minus * right_minus / kept_minus,
        eps=np.zeros_like(factors),
    )
    if reward == "e2e":
        kept = kept._replace(
            eps=_kept_step_errors(A * C_plus, (1 - A) * C_minus, factors, step_logits)
        )
    return kept, keep_rate


def _kept_step_errors(
    long_plus: Float, long_minus: Float, factors: np.ndarray, step_logits: np.ndarray
) -> np.ndarray:
    """P(step l errs | long, final token right): the other steps must make up for it."""
    others = np.array([np.delete(factors, i).prod() for i in range(len(factors))])
    rho = factors.prod()
    saved = long_plus * (1 - others) + long_minus * (1 + others)
    return (
        expit(-step_logits) * saved / (long_plus * (1 + rho) + long_minus * (1 - rho))
    )


def state_accuracy(state: State) -> Float:
    """Accuracy (1 + rho (A C_plus - (1-A) C_minus))/2 of one sample of `state`.

    rho = prod_l (1 - 2 eps_l); short answers are right half of the time.
    """
    rho = np.prod(1 - 2 * np.asarray(state.eps))
    return (1 + rho * (state.A * state.C_plus - (1 - state.A) * state.C_minus)) / 2


def noisy_accuracy(
    p: Float, d: Float, q: Float, noise: Literal["emit", "step"]
) -> Float:
    """Accuracy (1 + p (1-2q)^n)/2 after noisy pre-training; n = 2d-2 emit, d-1 step.

    The kinds of noise are those of `pretrain_state`; linear model, lam -> 0, tau = 1.
    ValueError unless 0 < p < 1, d >= 3 is an integer and 0 <= q < 1/2.
    """
    one_of("noise", noise, ("emit", "step"))
    p, d = in_range("p", p, 0, 1), integer("d", d, 3)
    q = in_range("q", q, 0, 0.5, closed="left")
    flips = 2 * d - 2 if noise == "emit" else d - 1
    return (1 + p * (1 - 2 * q) ** flips) / 2
