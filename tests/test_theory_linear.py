"""The linear model: enumerated inputs and answers with Newton's method, and values.

The enumeration uses no closed form; `theory` must agree with it on all weights.
"""

from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import expit, lambertw, logit

from parity_jax import theory

PRINTED = 0.51e-6  # half a unit of the sixth digit
GRID_P = np.array([0.01, 0.25, 1 / 3, 0.4, 0.95])[:, None]
GRID_LAM = np.array([1e-1, 1e-3, 1e-7])


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
    features: np.ndarray, label: np.ndarray, weight: np.ndarray, lam: float
) -> np.ndarray:
    """Minimiser of the weighted mean logistic loss + lam ||w||^2 / 2 (damped)."""
    weight = weight / weight.sum()

    def loss(w: np.ndarray) -> float:
        return weight @ np.logaddexp(0, -label * (features @ w)) + lam * w @ w / 2

    w = np.zeros(features.shape[1])
    for _ in range(100):
        wrong = expit(-label * (features @ w))
        gradient = lam * w - features.T @ (weight * label * wrong)
        curvature = weight * wrong * (1 - wrong)
        hessian = (features.T * curvature) @ features + lam * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while loss(w - size * step) > loss(w) + 1e-13 and size > 1e-6:
            size /= 2
        w = w - size * step
        if np.abs(step).max() < 1e-12:
            break
    return w


def fitted(answers: Answers, lam: float) -> list[np.ndarray]:
    return [newton(*head, lam) for head in head_data(answers)]


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


def share_right(answers: Answers) -> float:
    right = kept(answers, "e2e")
    return right.long.sum() + right.short.sum()


@pytest.mark.parametrize(
    "p, d, noise, q, short_flip, lam",
    [
        (0.1, 3, "clean", 0.0, 0.0, 1e-2),
        (0.4, 5, "clean", 0.0, 0.0, 1e-4),
        (0.3, 4, "emit", 0.1, 0.2, 1e-3),
        (0.3, 4, "step", 0.1, 0.0, 1e-3),
    ],
)
def test_pretrained_weights_minimise_the_loss(p, d, noise, q, short_flip, lam):
    """Wrong short answers are invisible to the linear heads."""
    weights = fitted(demonstrations(p, d, noise, q, short_flip), lam)
    state = theory.pretrain_state(p, d, noise, q)
    assert_same_weights(weights, closed_weights(theory.fit_logits(state, lam), d))


@pytest.mark.parametrize(
    "d, p, noise, tau, lam, reward",
    [
        (4, 0.15, "clean", 1.0, 1e-2, "e2e"),
        (4, 0.25, "emit", 0.7, 1e-3, "cot"),
        (4, 0.25, "step", 2.0, 1e-2, "e2e"),
        (5, 0.15, "step", 1.0, 1e-3, "cot"),
        (5, 0.3, "emit", 1.5, 1e-2, "e2e"),
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


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_ridge_stats_are_those_of_the_sampled_model(tau):
    p, d, lam = 0.25, 4, 1e-2
    answers = sampled(fitted(demonstrations(p, d), lam), d, tau)
    assert answers.long.sum() + answers.short.sum() == pytest.approx(1, abs=1e-12)
    stats = theory.ridge_stats(p, d, lam, tau)
    assert stats["p_long"] == pytest.approx(answers.long.sum(), abs=1e-9)
    assert stats["accuracy"] == pytest.approx(share_right(answers), abs=1e-9)


@pytest.mark.parametrize("noise", ["emit", "step"])
def test_accuracies_are_those_of_the_sampled_model(noise):
    p, d, q = 0.3, 4, 0.07
    state = theory.pretrain_state(p, d, noise, q)
    answers = sampled(closed_weights(theory.fit_logits(state), d), d, tau=1.0)
    assert answers.long.sum() == pytest.approx(p, rel=1e-12)  # length is calibrated
    accuracy = pytest.approx(share_right(answers), rel=1e-12)
    assert theory.state_accuracy(state) == accuracy
    assert theory.noisy_accuracy(p, d, q, noise) == accuracy


def test_values_of_the_ridge_optimum():
    for (p, lam), (first, b, theta) in {
        (0.1, 1e-3): (0.199863, -3.325688, 1.830720),
        (0.25, 1e-2): (0.489974, -1.762636, 1.370234),
    }.items():
        logits = theory.fit_logits(theory.pretrain_state(p, 8), lam)
        np.testing.assert_allclose(
            logits[:3], [first, b + theta, b - theta], atol=2 * PRINTED, rtol=0
        )
    for args, p_long, accuracy in [
        ((0.25, 8, 1e-3), 0.252503, 0.614941),
        ((0.25, 16, 1e-3, 2), 0.286347, 0.512417),
        ((0.4, 16, 1e-3), 0.401790, 0.669440),
    ]:
        stats = theory.ridge_stats(*args)
        assert stats["p_long"] == pytest.approx(p_long, abs=PRINTED)
        assert stats["accuracy"] == pytest.approx(accuracy, abs=PRINTED)
    eps = theory.ridge_stats(0.25, 8, np.array([1e-2, 1e-3, 1e-4]))["eps"]
    expected = [3.359275, 5.245186, 7.231211]
    np.testing.assert_allclose(-logit(eps), expected, atol=PRINTED, rtol=0)


def test_ridge_stats_solve_their_equations_over_a_grid():
    stats = theory.ridge_stats(GRID_P, 8, GRID_LAM)
    A, C_plus, C_minus, eps = (stats[n] for n in ("A", "C_plus", "C_minus", "eps"))
    recovered = np.broadcast_to(GRID_P, (len(GRID_P), len(GRID_LAM)))
    np.testing.assert_allclose(2 * (A + GRID_LAM * logit(A)) - 1, recovered, rtol=1e-9)
    gate = (C_plus + GRID_LAM * logit(C_plus)) / (2 - C_plus)
    np.testing.assert_allclose(gate, recovered, rtol=1e-9)
    np.testing.assert_allclose(
        (1 - GRID_P) * C_minus, -GRID_LAM * logit(C_minus), rtol=1e-9
    )
    np.testing.assert_allclose(eps, -GRID_LAM * logit(eps), rtol=1e-9)
    assert stats["accuracy"].shape == recovered.shape


def test_vanishing_ridge_limits():
    p, lam = np.array([0.1, 0.25, 0.6]), 1e-9
    stats = theory.ridge_stats(p, 16, lam)
    np.testing.assert_allclose(stats["C_plus"], 2 * p / (1 + p), rtol=1e-7)
    np.testing.assert_allclose(stats["p_long"], p, rtol=1e-6)
    np.testing.assert_allclose(stats["accuracy"], (1 + p) / 2, rtol=1e-6)
    assert -logit(stats["eps"]) == pytest.approx(lambertw(1 / lam).real, rel=1e-6)
    first = np.log((1 + p) / (1 - p)) * (1 - 4e-5 / (1 - p**2))  # to first order in lam
    A = theory.ridge_stats(p, 16, 1e-5)["A"]
    np.testing.assert_allclose(logit(A), first, rtol=1e-8)
    tiny = theory.ridge_stats(0.25, 16, np.array([1e-20, 1e-100, 1e-300]))
    np.testing.assert_allclose(tiny["A"], 0.625, rtol=1e-12)
    np.testing.assert_allclose(tiny["C_plus"], 0.4, rtol=1e-12)
    assert np.all(tiny["C_minus"] < 1e-16)


def test_logits_without_ridge():
    state = theory.State(0.6, 0.3, 0.0, np.array([0.1, 0.0]))
    logits = theory.fit_logits(state)
    assert logits[:3] == pytest.approx((logit(0.6), logit(0.3), -np.inf))
    np.testing.assert_allclose(logits.eps, [np.log(9), np.inf])


def policy_after(
    state: theory.State, n: int, tau: float, reward: str, lam: float
) -> tuple[theory.State, list[float]]:
    """The policy (at temperature 1) after n rounds, and the keep rates."""
    logits, keep_rates = theory.fit_logits(state, lam), []
    for _ in range(n):
        kept, keep_rate = theory.star_state_step(logits, tau, reward)
        logits = theory.fit_logits(kept, lam)
        keep_rates.append(keep_rate)
    A, C_plus, C_minus = expit(logits[:3])
    return theory.State(A, C_plus, C_minus, expit(-logits.eps)), keep_rates


@pytest.mark.parametrize(
    "start, tau, lam, reward, expected",  # A, C_plus, C_minus, eps_2 after 3 rounds
    [
        ((0.1, 16), 1, 1e-4, "e2e", (0.731652, 0.632710, 0.001265, 0.000730)),
        ((0.1, 16), 1.5, 1e-3, "cot", (0.584977, 0.519234, 0.006134, 0.005245)),
        (
            (0.15, 16, "step", 0.05),
            1,
            0.0,
            "e2e",
            (0.661676, 0.490066, 0.002700, 0.002809),
        ),
    ],
)
def test_values_of_star_at_sixteen_bits(start, tau, lam, reward, expected):
    state, _ = policy_after(theory.pretrain_state(*start), 3, tau, reward, lam)
    row = [*state[:3], state.eps[0]]
    np.testing.assert_allclose(row, expected, atol=PRINTED, rtol=0)


def test_noisy_accuracy_values():
    accuracy = [
        theory.noisy_accuracy(np.array([0.1, 0.4]), 5, 0.05, noise)
        for noise in ("emit", "step")
    ]
    expected = [(0.521523, 0.586093), (0.532805, 0.631220)]
    np.testing.assert_allclose(accuracy, expected, atol=PRINTED, rtol=0)


def test_e2e_star_denoises_quadratically():
    """For uniform small eps, eps' ~ (d-2) eps^2."""
    d, eps = 12, 1e-5
    state = theory.State(0.6, 0.3, 0.0, np.full(d - 1, eps))
    kept, _ = theory.star_state_step(theory.fit_logits(state))
    np.testing.assert_allclose(kept.eps, (d - 2) * eps**2, rtol=1e-3)


@pytest.mark.parametrize("reward", ["e2e", "cot"])
def test_many_rounds_converge_without_warnings(reward):
    with np.errstate(invalid="raise", divide="raise"):
        state, keep_rates = policy_after(
            theory.pretrain_state(0.2, 8, "step", 0.05), 200, 1.0, reward, 1e-6
        )
    assert keep_rates[-1] > 0.999
    assert all(0 <= np.min(z) <= np.max(z) <= 1 for z in state)


def test_bounds_contain_the_ridge_bias():
    """With T huge only the bias term is left; the exact optimum must respect it."""
    rate = (1e30, 8, 0.5)
    stats = theory.ridge_stats(GRID_P, 8, GRID_LAM)
    first = theory.bound_first(GRID_P, GRID_LAM, *rate)
    assert np.all(np.abs(stats["A"] - (1 + GRID_P) / 2) <= first)
    plus, minus = theory.bound_gate(GRID_P, GRID_LAM, *rate)
    assert np.all(np.abs(stats["C_plus"] - 2 * GRID_P / (1 + GRID_P)) <= plus)
    assert np.all(stats["C_minus"] <= minus)
    chain = theory.bound_chain(GRID_LAM, 1e30, 8, 3, 0.5)
    assert np.all(stats["eps"] <= chain)


def test_bounds_by_hand():
    # T = 1: the rate sqrt((1 + ln T)/(delta T)) is 2 at delta = 1/4.
    p, lam = 0.6, 0.5
    assert theory.bound_first(p, lam, 1, 6, 0.25) == pytest.approx(
        6 / 1 * 2 + 0.5 * np.log(4) / 0.64
    )
    assert theory.bound_gate(p, lam, 1, 6, 0.25) == pytest.approx(
        (28 * 2 + 0.5 * 1.6 * np.log(3) / (8 * 0.24), 28 * 2 + np.sqrt(1.25))
    )
    assert theory.bound_chain(lam, 1, 6, 4, 0.25) == pytest.approx(
        15 * 2 + np.sqrt(0.5)
    )
    noise = theory.bound_chain(0.01, np.array([1e6, 4e6]), 6, 4, 0.1) - 0.1
    expected = np.sqrt((1 + np.log(1e6)) / (1 + np.log(4e6)) * 4)
    assert noise[0] / noise[1] == pytest.approx(expected)
