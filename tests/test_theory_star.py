"""STaR on the ideal policy: values, invariants, one recursion against the other."""

import numpy as np
import pytest
from scipy.special import expit

from parity_jax import theory

PRINTED = 0.51e-6  # half a unit of the sixth digit


@pytest.mark.parametrize(
    "tau, expected",  # (A, C, P) from p = 0.1 after rounds 1, 2, 3
    [
        (
            1,
            [
                (0.590909, 0.307692, 0.181818),
                (0.653846, 0.470588, 0.307692),
                (0.735294, 0.640000, 0.470588),
            ],
        ),
        (
            0.7,
            [
                (0.595325, 0.189151, 0.112606),
                (0.658549, 0.200017, 0.131721),
                (0.741315, 0.216340, 0.160376),
            ],
        ),
        (
            1.5,
            [
                (0.591832, 0.423219, 0.250475),
                (0.649828, 0.619344, 0.402467),
                (0.704721, 0.734516, 0.517629),
            ],
        ),
    ],
)
def test_trajectory_values(tau, expected):
    path = theory.star_trajectory(0.1, 3, tau)
    np.testing.assert_allclose(path[1:], expected, atol=PRINTED, rtol=0)
    np.testing.assert_allclose(path[0], [1.1 / 2, 0.2 / 1.1, 0.1], rtol=1e-12)


@pytest.mark.parametrize("tau, reward", [(0.6, "cot"), (1.0, "e2e"), (1.7, "e2e")])
def test_trajectory_is_the_clean_case_of_the_recursion(tau, reward):
    state = theory.pretrain_state(0.15, 6)
    for A, C, P in theory.star_trajectory(0.15, 4, tau):
        np.testing.assert_allclose([state.A, state.C_plus], [A, C], rtol=1e-12)
        assert theory.state_accuracy(state) == pytest.approx((1 + P) / 2)
        logits = theory.fit_logits(state)
        P_tau = expit(logits.A / tau) * expit(logits.C_plus / tau)
        state, keep_rate = theory.star_state_step(logits, tau, reward)
        assert keep_rate == pytest.approx((1 + P_tau) / 2)
        assert state.C_minus == 0
        assert not state.eps.any()


def test_mixture_curve_is_kept_at_temperature_one_and_left_elsewhere():
    p = np.array([1e-6, 0.1, 0.3, 0.8])
    np.testing.assert_allclose(theory.star_p(p, 1), 2 * p / (1 + p), rtol=1e-12)
    np.testing.assert_allclose(
        theory.star_p(theory.star_p(p, 2), 1), theory.star_p(p, 3)
    )
    A, _, P = theory.star_trajectory(0.1, 50).T
    np.testing.assert_allclose(P, theory.star_p(0.1, np.arange(51)))
    np.testing.assert_allclose(A, (1 + P) / 2, rtol=1e-12)
    assert theory.star_p(0.1, 5000) == 1
    for tau, side in [(0.7, 1), (1.5, -1)]:
        odds_a, odds_c = (
            z / (1 - z) for z in theory.star_trajectory(0.1, 1, tau)[1, :2]
        )
        assert np.sign(odds_a - 1 - odds_c) == side


@pytest.mark.parametrize(
    "p, tau, rounds",
    [
        (0.34, 1, 0),
        (0.1, 1, 3),
        (1e-300, 1, 996),
        (0.1, 0.7, 8),
        (0.08, 0.7, None),
        (0.2, 0.5, None),  # the unstable point itself
        (0.01, 2, 2),
    ],
)
def test_rounds_values(p, tau, rounds):
    assert theory.star_rounds(p, tau) == rounds


def test_rounds_closed_forms():
    """l = log2 c: l_n = l* + (l_0 - l*)/tau^n with l* = tau/(tau-1); l_0 + n at 1."""
    for p in np.random.default_rng(0).uniform(0.001, 1 / 3, 50):
        log_c = np.log2(2 * p / (1 - p))
        assert theory.star_rounds(p) == np.floor(-log_c) + 1
        for tau in (0.9, 1.5):
            fixed = tau / (tau - 1)
            ratio = 1 - log_c / fixed if tau > 1 else -fixed / (log_c - fixed)
            num_rounds = np.floor(np.log(ratio) / abs(np.log(tau))) + 1
            expected = None if ratio < 0 else num_rounds
            assert theory.star_rounds(p, tau) == expected


def test_rounds_respects_its_cap_and_every_exact_tie():
    assert theory.star_rounds(0.1, max_rounds=3) == 3
    assert theory.star_rounds(0.1, max_rounds=2) is None
    for m in range(60):  # p_m = 1/3 exactly, one more round is needed
        assert theory.star_rounds(1 / (2 ** (m + 1) + 1)) == m + 1


def test_below_the_critical_ratio_star_collapses():
    np.testing.assert_allclose(
        theory.star_critical_p([0.5, 0.7, 0.9]),
        [0.2, 0.090258, 0.000976],
        atol=PRINTED,
        rtol=0,
    )
    assert theory.star_critical_p(1 - 1e-9) == 0
    for tau in (0.3, 0.95):
        p = theory.star_critical_p(tau)
        assert theory.star_rounds(p * (1 - 1e-6), tau) is None
        assert theory.star_rounds(p * (1 + 1e-6), tau) > 0
        assert theory.star_trajectory(p * 0.9, 200, tau)[-1, 2] < 1e-12


def test_above_temperature_one_star_ends_at_its_fixed_point():
    a, c = theory.star_fixed_point([1.5, 2, 4])
    np.testing.assert_allclose(a, [5.832, 2.777778, 1.805399], atol=PRINTED, rtol=0)
    np.testing.assert_allclose(c, [8, 4, 2.519842], atol=PRINTED, rtol=0)
    for tau, odds in zip([1.5, 2, 4], np.transpose([a, c]), strict=True):
        end = theory.star_trajectory(0.1, 200, tau)[-1, :2]
        np.testing.assert_allclose(end, odds / (1 + odds), rtol=1e-12)
    assert theory.star_fixed_point(1 + 1e-9) == (np.inf, np.inf)
