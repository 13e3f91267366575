"""STaR in closed form: printed values, invariants, one recursion against the other."""

import numpy as np
import pytest
from scipy.special import expit

from parity_jax import theory

PRINTED = 0.51e-6  # half a unit of the sixth digit

# (p, tau): (A, C, P) after rounds 1, 2, ...
TRAJECTORIES = {
    (0.1, 1): [
        (0.590909, 0.307692, 0.181818),
        (0.653846, 0.470588, 0.307692),
        (0.735294, 0.640000, 0.470588),
    ],
    (0.1, 0.7): [
        (0.595325, 0.189151, 0.112606),
        (0.658549, 0.200017, 0.131721),
        (0.741315, 0.216340, 0.160376),
    ],
    (0.1, 1.5): [
        (0.591832, 0.423219, 0.250475),
        (0.649828, 0.619344, 0.402467),
        (0.704721, 0.734516, 0.517629),
    ],
    (0.25, 0.5): [(0.784133, 0.470588, 0.369004), (0.950047, 0.612440, 0.581847)],
}

ROUNDS = [(1e-6, 19), (0.001, 9), (0.01, 6), (0.05, 4), (1 / 17, 4), (0.1, 3)]
ROUNDS += [(1 / 9, 3), (0.15, 2), (0.2, 2), (0.25, 1), (1 / 3, 1), (0.34, 0), (0.6, 0)]


@pytest.mark.parametrize("p, tau", TRAJECTORIES)
def test_trajectory_values(p, tau):
    expected = TRAJECTORIES[p, tau]
    path = theory.star_trajectory(p, len(expected), tau)
    np.testing.assert_allclose(path[1:], expected, atol=PRINTED, rtol=0)
    A, C = theory.probs(p)
    np.testing.assert_allclose(path[0], [A, C, p], rtol=1e-12)


@pytest.mark.parametrize("p, rounds", ROUNDS)
def test_rounds_at_temperature_one(p, rounds):
    assert theory.star_rounds(p) == rounds


@pytest.mark.parametrize(
    "p, tau, rounds",
    [
        (0.1, 0.7, 8),
        (0.08, 0.7, None),
        (0.21, 0.5, 4),
        (0.1, 1.5, 2),
        (0.01, 2, 2),
        (1e-6, 2, 4),
        (1e-6, 4, 2),
        (0.2, 0.5, None),  # the unstable point itself
        (1e-300, 1, 996),
        (0.01, 0.05, None),
    ],
)
def test_rounds_at_other_temperatures(p, tau, rounds):
    assert theory.star_rounds(p, tau) == rounds


def test_rounds_closed_forms():
    """l = log2 c: l_n = l* + (l_0 - l*)/tau^n with l* = tau/(tau-1); l_0 + n at 1."""
    for p in np.random.default_rng(0).uniform(0.001, 1 / 3, 50):
        log_c = np.log2(2 * p / (1 - p))
        assert theory.star_rounds(p) == np.floor(-log_c) + 1
        for tau in (0.9, 1.5, 3.0):
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


def test_critical_and_fixed_points():
    np.testing.assert_allclose(
        theory.star_critical_p([0.5, 0.7, 0.9]),
        [0.2, 0.090258, 0.000976],
        atol=PRINTED,
        rtol=0,
    )
    a, c = theory.star_fixed_point([1.5, 2, 4])
    np.testing.assert_allclose(a, [5.832, 2.777778, 1.805399], atol=PRINTED, rtol=0)
    np.testing.assert_allclose(c, [8, 4, 2.519842], atol=PRINTED, rtol=0)
    for tau, state in zip([1.5, 2, 4], zip(a, c, strict=True), strict=True):
        np.testing.assert_allclose(theory.star_step(*state, tau), state, rtol=1e-12)
    assert theory.star_critical_p(1 - 1e-9) == 0
    assert theory.star_fixed_point(1 + 1e-9) == (np.inf, np.inf)


@pytest.mark.parametrize("tau", [0.3, 0.7, 0.95])
def test_star_below_critical_p_collapses(tau):
    p = theory.star_critical_p(tau)
    assert theory.star_rounds(p * (1 - 1e-6), tau) is None
    assert theory.star_rounds(p * (1 + 1e-6), tau) > 0
    collapsed = theory.star_trajectory(p * 0.9, 200, tau)
    assert collapsed[-1, 2] < 1e-12


def test_mixture_curve_is_invariant_at_temperature_one():
    p = np.array([1e-6, 0.1, 0.3, 0.8])
    a, c = theory.star_step(*theory.odds(p))
    np.testing.assert_allclose(a, 1 + c, rtol=1e-12)
    np.testing.assert_allclose((a, c), theory.odds(2 * p / (1 + p)), rtol=1e-12)
    np.testing.assert_allclose(theory.star_p(p, 1), 2 * p / (1 + p), rtol=1e-12)
    path = theory.star_trajectory(0.1, 50)
    np.testing.assert_allclose(path[:, 2], theory.star_p(0.1, np.arange(51)))
    assert theory.star_p(0.1, 5000) == 1


@pytest.mark.parametrize("tau, side", [(0.7, 1), (1.5, -1)])
def test_mixture_curve_is_left_at_other_temperatures(tau, side):
    a, c = theory.star_step(*theory.odds(0.1), tau)
    assert np.sign(a - 1 - c) == side


@pytest.mark.parametrize("tau", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("reward", ["e2e", "cot"])
def test_ideal_map_is_the_clean_case_of_the_recursion(tau, reward):
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
    "n, tau, lam, reward, expected",
    [
        (1, 1, 1e-4, "e2e", (0.590268, 0.305662, 0.000876, 0.000732)),
        (3, 1, 1e-4, "e2e", (0.731652, 0.632710, 0.001265, 0.000730)),
        (1, 1.5, 1e-3, "e2e", (0.561678, 0.341746, 0.023105, 0.018373)),
        (3, 1.5, 1e-3, "e2e", (0.537782, 0.448963, 0.152595, 0.134298)),
        (3, 1.5, 1e-3, "cot", (0.584977, 0.519234, 0.006134, 0.005245)),
    ],
)
def test_ridge_star_values(n, tau, lam, reward, expected):
    state, _ = policy_after(theory.pretrain_state(0.1, 16), n, tau, reward, lam)
    row = [*state[:3], state.eps[0]]
    np.testing.assert_allclose(row, expected, atol=PRINTED, rtol=0)


def test_ridge_star_keep_rates():
    start = theory.pretrain_state(0.1, 16)
    _, keep_rates = policy_after(start, 4, 1.0, "e2e", 1e-4)
    expected = [0.548787, 0.588075, 0.648257, 0.726275]
    np.testing.assert_allclose(keep_rates, expected, atol=PRINTED, rtol=0)


@pytest.mark.parametrize(
    "n, reward, expected",
    [
        (0, "e2e", (0.567500, 0.251101, 0.017341, 0.050000, 0.228768)),
        (1, "e2e", (0.582121, 0.291784, 0.013427, 0.031978, 0.396417)),
        (3, "e2e", (0.661676, 0.490066, 0.002700, 0.002809, 0.924153)),
        (1, "cot", (0.570268, 0.246437, 0, 0, 1)),
        (3, "cot", (0.697713, 0.566746, 0, 0, 1)),
    ],
)
def test_noisy_star_values(n, reward, expected):
    start = theory.pretrain_state(0.15, 16, "step", 0.05)
    state, _ = policy_after(start, n, 1.0, reward, 0.0)
    row = [*state[:3], state.eps[0], np.prod(1 - 2 * state.eps)]
    np.testing.assert_allclose(row, expected, atol=PRINTED, rtol=0)


def test_emitted_noise_values():
    start = theory.pretrain_state(0.15, 16, "emit", 0.05)
    assert np.prod(1 - 2 * start.eps) == pytest.approx(0.047101, abs=PRINTED)
    state, _ = policy_after(start, 1, 1.0, "e2e", 0.0)
    assert state.C_plus == pytest.approx(0.259855, abs=PRINTED)
    assert state.eps[0] == pytest.approx(0.086367, abs=PRINTED)


@pytest.mark.parametrize("noise", ["emit", "step"])
def test_noisy_accuracy_is_that_of_the_pretrained_state(noise):
    p, q = 0.3, 0.07
    state = theory.pretrain_state(p, 7, noise, q)
    accuracy = theory.noisy_accuracy(p, 7, q, noise)
    assert theory.state_accuracy(state) == pytest.approx(accuracy, rel=1e-12)
    P = state.A * state.C_plus + (1 - state.A) * state.C_minus
    assert pytest.approx(p, rel=1e-12) == P


def test_noisy_accuracy_values():
    assert theory.noisy_accuracy(0.1, 5, 0.05, "emit") == pytest.approx(
        0.521523, abs=PRINTED
    )
    assert theory.noisy_accuracy(0.1, 5, 0.05, "step") == pytest.approx(
        0.532805, abs=PRINTED
    )
    np.testing.assert_allclose(
        [theory.noisy_accuracy(0.4, 5, 0.05, noise) for noise in ("emit", "step")],
        [0.586093, 0.631220],
        atol=PRINTED,
        rtol=0,
    )


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


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: theory.star_p(0.1, -1), "n must be an integer >= 0, got -1"),
        (lambda: theory.star_step(0.0, 1.0), r"a must lie in \(0, inf\), got 0"),
        (lambda: theory.star_step(1.0, np.inf), "c must"),
        (lambda: theory.star_step(1.0, 1.0, 0.0), "tau must"),
        (lambda: theory.star_trajectory(0.1, 1.5), "n must be an integer"),
        (lambda: theory.star_rounds(1.0), "p must"),
        (lambda: theory.star_rounds(0.1, -1.0), "tau must"),
        (lambda: theory.star_critical_p(1.0), r"tau must lie in \(0, 1\), got 1"),
        (lambda: theory.star_fixed_point(1.0), r"tau must lie in \(1, inf\), got 1"),
        (lambda: theory.pretrain_state(0.1, 5, "other"), "noise must be one of clean"),
        (lambda: theory.pretrain_state(0.1, 5, "clean", 0.1), "q must be 0 for clean"),
        (lambda: theory.pretrain_state(0.1, 5, "step", 0.5), r"q must lie in \[0, 0.5"),
        (lambda: theory.noisy_accuracy(0.1, 5, 0.1, "clean"), "noise must be one of"),
        (
            lambda: theory.fit_logits(theory.pretrain_state(0.1, 5), -1.0),
            r"lam must lie in \[0, inf\)",
        ),
        (
            lambda: theory.star_state_step(theory.pretrain_state(0.1, 5), 1.0, "both"),
            "reward must be one of e2e, cot, got 'both'",
        ),
    ],
)
def test_domain_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
