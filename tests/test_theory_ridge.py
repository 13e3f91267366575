"""The linear model's ridge optimum: printed values, identities, bounds on its bias."""

import numpy as np
import pytest
from scipy.special import expit, lambertw

from parity_jax import theory

PRINTED = 0.51e-6  # half a unit of the sixth digit
GRID_P = np.array([0.01, 0.1, 0.25, 1 / 3, 0.4, 0.7, 0.95])[:, None]
GRID_LAM = np.array([1e-1, 1e-2, 1e-3, 1e-4, 1e-7])

# (p, lam): w1; (b, theta, C+, C-) with a regularised bias; the same with a free one
TABLE = {
    (0.1, 1e-3): [
        0.199863,
        (-3.325688, 1.830720, 0.183177, 0.005729),
        (-3.756022, 2.238207, 0.179783, 0.002487),
    ],
    (0.25, 1e-3): [
        0.508656,
        (-2.703702, 2.299583, 0.400323, 0.006671),
        (-3.033867, 2.619662, 0.397904, 0.003493),
    ],
    (0.4, 1e-3): [
        0.843285,
        (-2.264960, 2.551806, 0.571224, 0.008028),
        (-2.538389, 2.817857, 0.569416, 0.004696),
    ],
    (0.25, 1e-2): [
        0.489974,
        (-1.762636, 1.370234, 0.403139, 0.041772),
        (-2.123918, 1.662706, 0.386698, 0.022169),
    ],
}


def gate_row(p: float, lam: float, reg_bias: bool) -> list[float]:
    b, theta = theory.ridge_gate(p, lam, reg_bias)
    return [b, theta, expit(b + theta), expit(b - theta)]


@pytest.mark.parametrize("p, lam", TABLE)
def test_ridge_table(p, lam):
    first, reg_gate, free_gate = TABLE[p, lam]
    assert theory.ridge_first(p, lam) == pytest.approx(first, abs=PRINTED)
    assert gate_row(p, lam, True) == pytest.approx(reg_gate, abs=PRINTED)
    assert gate_row(p, lam, False) == pytest.approx(free_gate, abs=PRINTED)


def test_ridge_values():
    lam = np.array([1e-2, 1e-3, 1e-4])
    chain = theory.ridge_chain(lam)
    np.testing.assert_allclose(chain, [3.359275, 5.245186, 7.231211], atol=PRINTED)
    np.testing.assert_allclose(expit(-chain), [0.033593, 0.005245, 0.000723], atol=6e-7)
    np.testing.assert_allclose(
        theory.ridge_threshold(lam, reg_bias=False),
        [0.345245, 0.335162, 0.333583],
        atol=PRINTED,
        rtol=0,
    )


@pytest.mark.parametrize(
    "args, p_long, accuracy",
    [
        ((0.25, 8, 1e-3), 0.252503, 0.614941),
        ((0.25, 16, 1e-3, 2), 0.286347, 0.512417),
        ((0.4, 16, 1e-3), 0.401790, 0.669440),
    ],
)
def test_ridge_stats(args, p_long, accuracy):
    stats = theory.ridge_stats(*args)
    assert stats["p_long"] == pytest.approx(p_long, abs=PRINTED)
    assert stats["accuracy"] == pytest.approx(accuracy, abs=PRINTED)
    assert theory.ridge_stats(GRID_P, 8, GRID_LAM, 2.0)["accuracy"].shape == (7, 5)


def test_exact_inversions_recover_the_mixture():
    c = theory.ridge_first(GRID_P, GRID_LAM)
    recovered = np.broadcast_to(GRID_P, c.shape)
    np.testing.assert_allclose(np.tanh(c / 2) + 2 * GRID_LAM * c, recovered, rtol=1e-12)
    b, theta = theory.ridge_gate(GRID_P, GRID_LAM)
    t_plus, t_minus = b + theta, b - theta
    gate = (expit(t_plus) + GRID_LAM * t_plus) / (2 - expit(t_plus))
    np.testing.assert_allclose(gate, recovered, rtol=1e-9)
    np.testing.assert_allclose(
        (1 - GRID_P) * expit(t_minus), -GRID_LAM * t_minus, rtol=1e-9
    )


def test_free_bias_calibrates_length():
    b, theta = theory.ridge_gate(GRID_P, GRID_LAM, reg_bias=False)
    C_plus, C_minus = expit(b + theta), expit(b - theta)
    p_long = (1 + GRID_P) / 2 * C_plus + (1 - GRID_P) / 2 * C_minus
    np.testing.assert_allclose(p_long, np.broadcast_to(GRID_P, p_long.shape), rtol=1e-9)
    np.testing.assert_allclose(
        (1 - GRID_P) * C_minus, GRID_LAM * theta, rtol=1e-7, atol=1e-14
    )


@pytest.mark.parametrize("reg_bias", [True, False])
@pytest.mark.parametrize("lam", [1e-1, 1e-3, 1e-6])
def test_threshold_is_where_the_gate_margin_changes_sign(lam, reg_bias):
    p_crit = theory.ridge_threshold(lam, reg_bias)
    for p, sign in [(p_crit - 1e-6, -1), (p_crit + 1e-6, 1)]:
        assert np.sign(sum(theory.ridge_gate(p, lam, reg_bias))) == sign


def test_vanishing_ridge_limits():
    p, lam = np.array([0.1, 0.25, 0.6]), 1e-9
    A, C = theory.probs(p)
    np.testing.assert_allclose(theory.ridge_first(p, 0.0), np.log(A / (1 - A)))
    u0 = np.log((1 + p) / (1 - p))
    np.testing.assert_allclose(
        theory.ridge_first(p, 1e-5), u0 * (1 - 4e-5 / (1 - p**2)), rtol=1e-8
    )
    np.testing.assert_allclose(gate_row(p, lam, True)[2], C, rtol=1e-7)
    stats = theory.ridge_stats(p, 16, lam)
    np.testing.assert_allclose(stats["p_long"], p, rtol=1e-6)
    np.testing.assert_allclose(stats["accuracy"], (1 + p) / 2, rtol=1e-6)
    c = theory.ridge_chain(lam)
    assert c == pytest.approx(lambertw(1 / lam).real, rel=1e-6)
    assert theory.ridge_chain(0.0, 0.1) == pytest.approx(np.log(9))
    assert theory.ridge_chain(0.0) == np.inf
    tiny = np.array([1e-20, 1e-100, 1e-300])
    np.testing.assert_allclose(theory.ridge_first(0.25, tiny), u0[1], rtol=1e-12)
    for reg_bias in (True, False):
        b, theta = theory.ridge_gate(0.25, tiny, reg_bias)
        np.testing.assert_allclose(expit(b + theta), 0.4, rtol=1e-12)
        assert np.all(expit(b - theta) < 1e-16)


def test_finite_sample_sd_matches_simulated_frequencies():
    p, N, rng = 0.25, 20_000, np.random.default_rng(3)
    right_long = rng.binomial(N, p, 200_000)
    right = right_long + rng.binomial(N - right_long, 0.5)
    sd = theory.finite_sample_sd(p, N, 8)
    for name, samples in [
        ("A", right / N),
        ("C", right_long / right),
        ("p_long", right_long / N),
    ]:
        assert sd[name] == pytest.approx(samples.std(), rel=0.01)


def test_finite_sample_sd_of_weights_is_the_sandwich():
    """Hessian^-1 Cov(gradient) Hessian^-1 of head 1, by enumeration of D(p)."""
    p, N, d = 0.3, 1000, 5
    x = 1.0 - 2 * (np.arange(2**d)[:, None] >> np.arange(d) & 1)
    margin = np.log((1 + p) / (1 - p)) * x[:, 0]
    p_up = p * (x[:, 0] > 0) + (1 - p) * (x.prod(axis=1) > 0)
    residual2 = p_up * expit(-margin) ** 2 + (1 - p_up) * expit(margin) ** 2
    hessian = (x.T * expit(margin) * expit(-margin)) @ x / len(x)
    inverse = np.linalg.inv(hessian)
    cov = inverse @ (x.T * residual2) @ x / len(x) @ inverse / N
    sd = theory.finite_sample_sd(p, N, d)
    np.testing.assert_allclose(np.sqrt(cov.diagonal()), sd["w1"], rtol=1e-12)
    spurious = np.sqrt(cov[1:, 1:].trace())
    assert spurious == pytest.approx(sd["margin_over_x"], rel=1e-12)


def test_bounds_contain_the_ridge_bias():
    """With T huge only the bias term is left; the exact optimum must respect it."""
    rate = (1e30, 8, 0.5)
    A = expit(theory.ridge_first(GRID_P, GRID_LAM))
    first = theory.bound_first(GRID_P, GRID_LAM, *rate)
    assert np.all(np.abs(A - (1 + GRID_P) / 2) <= first)
    b, theta = theory.ridge_gate(GRID_P, GRID_LAM)
    plus, minus = theory.bound_gate(GRID_P, GRID_LAM, *rate)
    gap = np.abs(expit(b + theta) - 2 * GRID_P / (1 + GRID_P))
    assert np.all(gap <= plus)
    assert np.all(expit(b - theta) <= minus)
    chain = theory.bound_chain(GRID_LAM, 1e30, 8, 3, 0.5)
    assert np.all(expit(-theory.ridge_chain(GRID_LAM)) <= chain)


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


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: theory.ridge_first(0.1, -1e-3), r"lam must lie in \[0, inf\)"),
        (lambda: theory.ridge_gate(0.1, 0.0), r"lam must lie in \(0, inf\), got 0"),
        (lambda: theory.ridge_chain(1e-3, 1.5), r"eps must lie in \[0, 1\], got 1.5"),
        (lambda: theory.ridge_threshold(0.0), "lam must"),
        (lambda: theory.linear_weights(0.1, 2, 1e-3), "d must be an integer >= 3"),
        (lambda: theory.ridge_stats(0.1, 8, 1e-3, 0.0), "tau must"),
        (lambda: theory.ridge_stats(1.0, 8, 1e-3), "p must"),
        (lambda: theory.finite_sample_sd(0.1, 100, 3), "d must be an integer >= 4"),
        (lambda: theory.bound_first(0.1, 1e-3, 0, 8, 0.1), r"T must lie in \[1, inf\)"),
        (lambda: theory.bound_gate(0.1, 1e-3, 10, 8, 1.0), r"delta must"),
        (lambda: theory.bound_chain(1e-3, 10, 8, 9, 0.1), r"step/d must lie in \(0, 1"),
        (lambda: theory.bound_chain(1e-3, 10, 8, 1, 0.1), "step must be an integer"),
    ],
)
def test_domain_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
