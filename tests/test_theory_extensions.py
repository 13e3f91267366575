"""Thresholds beyond the plain mixture: printed values and the limits that tie them."""

import numpy as np
import pytest

from parity_jax import theory

PRINTED = 0.51e-6  # half a unit of the sixth digit


def test_greedy_threshold_values():
    q = np.array([0.05, 0.1, 0.2])
    expected = [0.344828, 0.357143, 0.384615]
    np.testing.assert_allclose(theory.greedy_threshold(q), expected, atol=PRINTED)
    joint = theory.greedy_threshold(0.1, eps2=0.1)
    assert joint == pytest.approx(0.381679, abs=PRINTED)


def test_greedy_threshold_limits():
    assert theory.greedy_threshold() == theory.greedy_threshold(eps2=0.0) == 1 / 3
    assert theory.greedy_threshold(eps2=0.5) == 0.5  # chain step 2 not learned


@pytest.mark.parametrize("noise", ["emit", "step"])
def test_greedy_threshold_is_where_the_noisy_gate_flips(noise):
    q = 0.15
    for shift, goes_on in [(-1e-6, False), (1e-6, True)]:
        p = theory.greedy_threshold(q) + shift
        assert (theory.pretrain_state(p, 6, noise, q).C_plus > 0.5) == goes_on


def test_mixture_leap_values():
    learned = theory.mixture_leap(0.3, 0.1, 3, 9)
    assert learned["accuracy"] == pytest.approx(0.563281, abs=PRINTED)
    assert learned["greedy_full"] is True
    leaps = theory.mixture_leap(0.2, 0.25, 3, 9)
    assert leaps["accuracy"] == pytest.approx(0.508779, abs=PRINTED)
    assert leaps["greedy_full"] is False


def test_mixture_without_leaps_is_the_plain_one():
    for p in (0.2, 0.4):
        plain = theory.mixture_leap(p, 0.0, 3, 9)
        assert (plain["A"], plain["C_plus"]) == pytest.approx(theory.probs(p))
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
    p_minus, p_plus, fail_lo, fail_hi = theory.skill_thresholds(0.6)
    np.testing.assert_allclose(
        [p_minus, p_plus, fail_lo, fail_hi],
        [0.285714, 0.375000, 0.166667, 0.285714],
        atol=PRINTED,
    )
    p_minus, p_plus, fail_lo, fail_hi = theory.skill_thresholds([0.5, 2 / 3, 0.8])
    assert p_minus[0] == p_plus[0] == pytest.approx(1 / 3)  # no skill
    assert fail_lo[1] == pytest.approx(fail_hi[1])  # the window closes at 2/3
    assert p_minus[2] == fail_lo[2] > fail_hi[2]


@pytest.mark.parametrize("g", [0.55, 0.6, 0.66, 0.7, 0.9])
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


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: theory.greedy_threshold(0.5), r"q must lie in \[0, 0\.5\), got 0\.5"),
        (lambda: theory.greedy_threshold(0.1, 0.6), r"eps2 must lie in \[0, 0\.5\]"),
        (lambda: theory.mixture_leap(0.0, 0.1, 3, 9), "p1 must"),
        (lambda: theory.mixture_leap(0.6, 0.4, 3, 9), r"p1 \+ pk must lie in \(0, 1\)"),
        (lambda: theory.mixture_leap(0.3, 0.1, 2, 8), "k must be an integer >= 3"),
        (lambda: theory.mixture_leap(0.3, 0.1, 3, 8), "d/k must be an integer >= 2"),
        (lambda: theory.mixture_leap(0.3, 0.1, 6, 6), "d/k must be an integer >= 2"),
        (lambda: theory.mixture_leap(0.3, 0.3, 3, 9), "p1 - pk must differ from the"),
        (lambda: theory.mixture_leap(0.3, 0.05, 3, 9), "3 p1 \\+ 2 pk must differ"),
        (lambda: theory.skill_thresholds(0.4), r"g must lie in \[0\.5, 1\], got 0\.4"),
    ],
)
def test_domain_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
