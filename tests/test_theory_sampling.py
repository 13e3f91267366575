"""The ideal policy and its thresholds: enumerated groups, counting, limits, values."""

import itertools

import numpy as np
import pytest

from parity_jax import theory

PRINTED = 0.51e-6  # half a unit of the sixth digit


@pytest.mark.parametrize(
    "p, tau, expected",  # P(long), pass@4, maj@4, maj@9
    [
        (0.25, 1, (0.250000, 0.980225, 0.683594, 0.783382)),
        (0.4, 0.5, (0.540690, 0.995432, 0.857001, 0.944751)),
        (0.1, 2, (0.168218, 0.966453, 0.623214, 0.688997)),
    ],
)
def test_values(p, tau, expected):
    actual = [
        theory.p_long(p, tau),
        theory.pass_at_k(p, 4, tau),
        theory.majority_at_k(p, 4, tau),
        theory.majority_at_k(p, 9, tau),
    ]
    np.testing.assert_allclose(actual, expected, atol=PRINTED, rtol=0)


@pytest.mark.parametrize("p, tau, k", [(0.1, 0.5, 5), (0.25, 1.0, 2), (0.4, 2.0, 4)])
def test_scores_are_those_of_every_group_of_answers(p, tau, k):
    """Tempered frequencies of the demonstrations; both halves of the inputs."""

    def tempered(prob: float) -> float:
        return prob ** (1 / tau) / (prob ** (1 / tau) + (1 - prob) ** (1 / tau))

    A, C = tempered((1 + p) / 2), tempered(p / (p + (1 - p) / 2))
    mass = np.array([A * C, A * (1 - C), 1 - A])  # long, short with y_1 = x_1, without
    passed = voted = right = 0.0
    for is_right in ([1, 1, 0], [1, 0, 1]):  # the parity is x_1, or is not
        for group in itertools.product(range(3), repeat=k):
            share, votes = mass[list(group)].prod() / 2, np.take(is_right, group).sum()
            right += share * votes / k
            passed += share * (votes > 0)
            voted += share * ((votes > k / 2) + (votes == k / 2) / 2)
    assert theory.p_long(p, tau) == pytest.approx(A * C, rel=1e-12)
    assert theory.accuracy(p, tau) == pytest.approx(right, rel=1e-12)
    assert theory.pass_at_k(p, k, tau) == pytest.approx(passed, rel=1e-12)
    assert theory.majority_at_k(p, k, tau) == pytest.approx(voted, rel=1e-12)


def test_policy_is_calibrated_at_temperature_one():
    p = np.linspace(1e-9, 1 - 1e-9, 101)
    np.testing.assert_allclose(theory.p_long(p), p, rtol=1e-12)
    np.testing.assert_allclose(theory.accuracy(p), (1 + p) / 2, rtol=1e-12)
    np.testing.assert_allclose(theory.pass_at_k(p, 3), 1 - ((1 - p) / 2) ** 3)


def test_scores_broadcast_and_one_sample_is_a_sample():
    p, tau = np.array([[0.1], [0.3], [0.6]]), np.array([0.4, 3.0])
    accuracy = theory.accuracy(p, tau)
    assert accuracy.shape == (3, 2)
    for best_of in (theory.pass_at_k, theory.majority_at_k):
        np.testing.assert_allclose(best_of(p, 1, tau), accuracy, rtol=1e-12)
        assert best_of([0.1, 0.2], [[1], [2], [3]]).shape == (3, 2)
        assert np.isscalar(best_of(0.1, 3))
    assert all(
        np.isscalar(value) for value in (theory.p_long(0.1), *theory.greedy(0.4))
    )


def test_greedy_is_the_cold_limit():
    p = np.array([1e-9, 0.2, 0.33, 0.34, 0.9])
    is_long, accuracy = theory.greedy(p)
    assert is_long.tolist() == [False, False, False, True, True]
    np.testing.assert_allclose(theory.p_long(p, 1e-3), is_long, atol=1e-6)
    np.testing.assert_allclose(theory.accuracy(p, 1e-3), accuracy, atol=1e-6)
    assert theory.greedy(0.4) == (True, 1.0)


def test_hot_limit_and_extreme_arguments_stay_finite():
    assert theory.p_long(0.3, 1e9) == pytest.approx(0.25, abs=1e-9)
    p, tau = np.array([1e-300, 1e-12, 1 - 1e-12])[:, None], np.array([1e-3, 0.1, 50.0])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for value in (
            theory.accuracy(p, tau),
            theory.pass_at_k(p, 9, tau),
            theory.majority_at_k(p, 9, tau),
        ):
            assert np.all((value >= 0) & (value <= 1))


def test_greedy_threshold():
    q = np.array([0.05, 0.1, 0.2])
    expected = [0.344828, 0.357143, 0.384615]
    np.testing.assert_allclose(theory.greedy_threshold(q), expected, atol=PRINTED)
    joint = theory.greedy_threshold(0.1, eps2=0.1)
    assert joint == pytest.approx(0.381679, abs=PRINTED)
    assert theory.greedy_threshold() == theory.greedy_threshold(eps2=0.0) == 1 / 3
    assert theory.greedy_threshold(eps2=0.5) == 0.5  # chain step 2 not learned


@pytest.mark.parametrize("shift, goes_on", [(-1e-6, False), (1e-6, True)])
def test_greedy_threshold_by_counting(shift, goes_on):
    """After y_1 = x_1: stop or go on (gate), or EOS against either bit (softmax)."""
    q, eps2 = 0.15, 0.1
    p = theory.greedy_threshold(q) + shift
    assert (theory.pretrain_state(p, 6, "emit", q).C_plus > 0.5) == goes_on
    p = theory.greedy_threshold(q, eps2) + shift
    stop, likelier_bit = (1 - p) / 2, p * (1 - q) * (1 - eps2)
    assert (likelier_bit > stop) == goes_on


def test_mixture_leap():
    learned = theory.mixture_leap(0.3, 0.1, 3, 9)
    assert learned["accuracy"] == pytest.approx(0.563281, abs=PRINTED)
    leaps = theory.mixture_leap(0.2, 0.25, 3, 9)
    assert leaps["accuracy"] == pytest.approx(0.508779, abs=PRINTED)
    short = theory.mixture_leap(0.28, 0.05, 3, 9)
    assert [m["greedy_full"] for m in (learned, leaps, short)] == [True, False, False]
    for m in (learned, leaps, short):  # greedy: the likelier token, twice
        assert m["greedy_full"] == (m["C_plus"] > 0.5 and m["r"] < 0.5)


def test_mixture_without_leaps_is_the_plain_one():
    for p in (0.2, 0.4):
        plain, state = theory.mixture_leap(p, 0.0, 3, 9), theory.pretrain_state(p, 9)
        assert (plain["A"], plain["C_plus"]) == pytest.approx((state.A, state.C_plus))
        assert plain["C_minus"] == plain["r"] == 0
        assert plain["accuracy"] == pytest.approx(theory.accuracy(p))
        assert plain["greedy_full"] == theory.greedy(p)[0]


def test_mixture_leap_shares_by_counting():
    """Long answers have the share p1 + pk; a fraction r of them stops after d/k."""
    p1, pk = 0.28, 0.13
    mixture = theory.mixture_leap(p1, pk, 4, 12)
    P = mixture["A"] * mixture["C_plus"] + (1 - mixture["A"]) * mixture["C_minus"]
    assert pytest.approx(p1 + pk) == P
    assert mixture["r"] * P == pytest.approx(pk)


def test_skill_thresholds():
    np.testing.assert_allclose(
        theory.skill_thresholds(0.6),
        [0.285714, 0.375000, 0.166667, 0.285714],
        atol=PRINTED,
    )
    p_minus, p_plus, fail_lo, fail_hi = theory.skill_thresholds([0.5, 2 / 3, 0.8])
    assert p_minus[0] == p_plus[0] == pytest.approx(1 / 3)  # no skill
    assert fail_lo[1] == pytest.approx(fail_hi[1])  # the window closes at 2/3
    assert p_minus[2] == fail_lo[2] > fail_hi[2]


@pytest.mark.parametrize("g", [0.55, 0.66, 0.9])  # a window, hardly one, none
def test_skill_thresholds_by_counting(g):
    """Greedy picks the likelier token twice: y_1, then stop or go on after it."""
    p_minus, p_plus, fail_lo, fail_hi = theory.skill_thresholds(g)
    for p in np.linspace(0.0051, 0.9949, 199):  # no exact tie
        right, wrong = (1 - p) * g, (1 - p) * (1 - g)  # short answers
        # Class -: the parity differs from x_1, with which long answers begin.
        first_is_x1 = p + wrong > right
        long_minus = first_is_x1 and p > wrong
        assert long_minus == (p > p_minus)
        assert (first_is_x1 and not long_minus) == (fail_lo < p < fail_hi)
        assert (p > right) == (p > p_plus)  # class +: y_1 = x_1 = parity


def test_step_noise_at_which_a_chain_is_a_coin():
    for d, printed in ((8, 0.109101), (16, 0.048305)):
        q = theory.critical_step_noise(d)
        assert q == pytest.approx(printed, abs=PRINTED)
        state = theory.pretrain_state(0.25, d, "step", q)
        assert np.prod(1 - state.eps) == pytest.approx(0.5)  # as right as a short one


def test_the_rate_of_an_erring_reward_by_counting():
    seen = 0.0
    for is_right, mass in ((1, 0.7), (0, 0.3)):  # a reward of 1 is lost, one of 0 made
        seen += mass * (1 - 0.1 if is_right else 0.2)
    assert theory.seen_rate(0.7, 0.2, 0.1) == pytest.approx(seen)
    gap = theory.seen_rate([1.0, 0.5], 0.4, 0.6)
    assert gap[0] == pytest.approx(gap[1])  # no signal


@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_pool_coverage_by_counting(num_prompts):
    bits = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
    pays = bits.prod(1) != bits[:, 0]  # the parity is not x_1
    pools = np.array(np.meshgrid(*[pays] * num_prompts)).reshape(num_prompts, -1)
    assert theory.pool_coverage(num_prompts) == pytest.approx(pools.any(0).mean())


@pytest.mark.parametrize("p", [0.4, 0.55, 0.6])
def test_shuffled_chains_by_counting_orders(p):
    d, num_long = 4, 0
    for x in itertools.product((-1, 1), repeat=d):
        tokens = [np.cumprod(order) for order in itertools.permutations(x)]
        first = max((-1, 1), key=lambda s: np.mean([t[0] == s for t in tokens]))
        after = [t[1] for t in tokens if t[0] == first]
        share = len(after) / len(tokens)
        best = max(np.mean([t == s for t in after]) for s in (-1, 1))
        num_long += p * share * best > (1 - p) / 2
    assert theory.shuffled_long(p, d) == pytest.approx(num_long / 2**d)
