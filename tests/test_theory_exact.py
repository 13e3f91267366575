"""The linear model itself, enumerated: every input, every answer, Newton on every head.

Nothing here uses the closed forms; `theory` must agree on all weights.
"""

from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import expit

from parity_jax import theory


class Answers(NamedTuple):
    """Joint probability of input and answer: x (X, d), long (X, X), short (X, 2).

    The long answers are the X = 2^d sign patterns, in the order of x; the short ones
    are +1 and -1.
    """

    x: np.ndarray
    long: np.ndarray
    short: np.ndarray


def sign_patterns(d: int) -> np.ndarray:
    return 1.0 - 2 * (np.arange(2**d)[:, None] >> np.arange(d) & 1)


def agreement(y: np.ndarray, clean: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """P(y | clean tokens, each flipped with its own probability), last axis tokens."""
    return np.where(y == clean, 1 - flip, flip).prod(axis=-1)


def demonstrations(
    p: float, d: int, noise: str = "clean", q: float = 0.0, short_flip: float = 0.0
) -> Answers:
    """The mixture D(p), chains flipped by `noise`, short answers by `short_flip`."""
    x = sign_patterns(d)
    y = x[None]
    flip = np.append(np.full(d - 1, q), 0.0)
    if noise == "step":
        previous = np.concatenate([np.ones((1, len(x), 1)), y[..., :-1]], axis=-1)
        clean = previous * x[:, None]
    else:
        clean = np.cumprod(x, axis=1)[:, None]
    p_short = agreement(
        np.array([1.0, -1.0])[None, :, None], x.prod(1)[:, None, None], short_flip
    )
    return Answers(
        x, p * agreement(y, clean, flip) / len(x), (1 - p) * p_short / len(x)
    )


def head_data(answers: Answers) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(features, label, weight) rows of the first head, the gate, and the chain."""
    x, d = answers.x, answers.x.shape[1]
    x_long = np.repeat(x, len(x), axis=0)
    y_long = np.tile(x, (len(x), 1))
    w_long, w_short = answers.long.ravel(), answers.short.ravel()
    x_all = np.concatenate([x_long, np.repeat(x, 2, axis=0)])
    y1 = np.concatenate([y_long[:, 0], np.tile([1.0, -1.0], len(x))])[:, None]
    weight = np.concatenate([w_long, w_short])
    gate = np.concatenate([np.ones_like(y1), x_all, y1, y1 * x_all], axis=1)
    goes_on = np.concatenate([np.ones(len(w_long)), -np.ones(len(w_short))])
    heads = [(x_all, y1[:, 0], weight), (gate, goes_on, weight)]
    for step in range(1, d):
        before = y_long[:, :step]
        features = np.concatenate([x_long, before, before[:, -1:] * x_long], axis=1)
        heads.append((features, y_long[:, step], w_long))
    return heads


def newton(
    features: np.ndarray, label: np.ndarray, weight: np.ndarray, lam: np.ndarray
) -> np.ndarray:
    """Minimiser of the weighted mean logistic loss + sum_i lam_i w_i^2 / 2 (damped)."""
    weight = weight / weight.sum()

    def loss(w: np.ndarray) -> float:
        return weight @ np.logaddexp(0, -label * (features @ w)) + lam @ w**2 / 2

    w = np.zeros(features.shape[1])
    for _ in range(100):
        wrong = expit(-label * (features @ w))
        gradient = lam * w - features.T @ (weight * label * wrong)
        curvature = weight * wrong * (1 - wrong)
        hessian = (features.T * curvature) @ features + np.diag(lam)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while loss(w - size * step) > loss(w) + 1e-13 and size > 1e-6:
            size /= 2
        w = w - size * step
        if np.abs(step).max() < 1e-12:
            break
    return w


def fitted(answers: Answers, lam: float, reg_bias: bool = True) -> list[np.ndarray]:
    weights = []
    for index, head in enumerate(head_data(answers)):
        ridge = np.full(head[0].shape[1], lam)
        if index == 1 and not reg_bias:
            ridge[0] = 0.0
        weights.append(newton(*head, ridge))
    return weights


def sampled(weights: list[np.ndarray], d: int, tau: float) -> Answers:
    """What the linear model with these weights says, token by token."""
    x = sign_patterns(d)
    empty = Answers(x, np.ones((len(x), len(x))), np.ones((len(x), 2)))
    data = head_data(empty)
    num_long = len(x) ** 2
    p_long, p_short = np.full(num_long, 1 / len(x)), np.full(2 * len(x), 1 / len(x))
    for (features, label, _), w in zip(data[:2], weights[:2], strict=True):
        prob = expit(label * (features @ w) / tau)
        p_long, p_short = p_long * prob[:num_long], p_short * prob[num_long:]
    for (features, label, _), w in zip(data[2:], weights[2:], strict=True):
        p_long = p_long * expit(label * (features @ w) / tau)
    return Answers(x, p_long.reshape(len(x), -1), p_short.reshape(-1, 2))


def kept(answers: Answers, reward: str) -> Answers:
    x = answers.x
    parity = x.prod(axis=1)[:, None]
    right_long = x[None, :, -1] == parity
    if reward == "cot":
        right_long = (x[None] == np.cumprod(x, axis=1)[:, None]).all(axis=-1)
    right_short = np.array([1.0, -1.0]) == parity
    return Answers(x, answers.long * right_long, answers.short * right_short)


def closed_weights(logits: theory.State, d: int) -> list[np.ndarray]:
    """A state of the theory, written out as all weights of the linear model."""
    first, gate = np.zeros(d), np.zeros(2 * d + 2)
    first[0] = logits.A
    gate[0] = (logits.C_plus + logits.C_minus) / 2
    gate[d + 2] = (logits.C_plus - logits.C_minus) / 2
    chain = []
    for before in range(1, d):  # tokens before this one: [x, y, y_before x]
        head = np.zeros(2 * d + before)
        head[d + before + before] = logits.eps[before - 1]
        chain.append(head)
    return [first, gate, *chain]


def assert_same_weights(actual: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("reg_bias", [True, False])
@pytest.mark.parametrize("d, lam", [(3, 1e-2), (4, 1e-3), (5, 1e-3), (3, 1e-4)])
@pytest.mark.parametrize("p", [0.1, 0.4])
def test_linear_weights_minimise_the_loss(p, d, lam, reg_bias):
    first, gate, chain = theory.linear_weights(p, d, lam, reg_bias)
    assert_same_weights(
        fitted(demonstrations(p, d), lam, reg_bias), [first, gate, *chain]
    )


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_ridge_stats_are_those_of_the_sampled_model(tau):
    p, d, lam = 0.25, 4, 1e-2
    answers = sampled(fitted(demonstrations(p, d), lam), d, tau)
    assert answers.long.sum() + answers.short.sum() == pytest.approx(1, abs=1e-12)
    stats = theory.ridge_stats(p, d, lam, tau)
    assert stats["p_long"] == pytest.approx(answers.long.sum(), abs=1e-9)
    right = kept(answers, "e2e")
    accuracy = right.long.sum() + right.short.sum()
    assert stats["accuracy"] == pytest.approx(accuracy, abs=1e-9)


@pytest.mark.parametrize("noise", ["emit", "step"])
@pytest.mark.parametrize("short_flip", [0.0, 0.2])
def test_noisy_pretraining(noise, short_flip):
    """Wrong short answers are invisible to the linear heads."""
    p, d, q, lam = 0.3, 4, 0.1, 1e-3
    weights = fitted(demonstrations(p, d, noise, q, short_flip), lam)
    state = theory.pretrain_state(p, d, noise, q)
    assert_same_weights(weights, closed_weights(theory.fit_logits(state, lam), d))


@pytest.mark.parametrize("reward", ["e2e", "cot"])
@pytest.mark.parametrize(
    "d, p, noise, tau, lam",
    [
        (4, 0.15, "clean", 1.0, 1e-2),
        (4, 0.25, "emit", 0.7, 1e-3),
        (4, 0.25, "step", 2.0, 1e-2),
        (5, 0.15, "step", 1.0, 1e-3),
        (5, 0.3, "emit", 1.5, 1e-2),
    ],
)
def test_star_recursion_is_exact(d, p, noise, tau, lam, reward):
    """Three rounds of sample, filter, refit; every weight and keep rate."""
    q = 0.0 if noise == "clean" else 0.1
    weights = fitted(demonstrations(p, d, noise, q), lam)
    logits = theory.fit_logits(theory.pretrain_state(p, d, noise, q), lam)
    for _ in range(3):
        right = kept(sampled(weights, d, tau), reward)
        weights = fitted(right, lam)
        state, keep_rate = theory.star_state_step(logits, tau, reward)
        logits = theory.fit_logits(state, lam)
        assert keep_rate == pytest.approx(right.long.sum() + right.short.sum())
        assert_same_weights(weights, closed_weights(logits, d))
