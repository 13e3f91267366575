"""Fits of intervals: they cover the truth, and censored members count."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from parity_jax.analysis.fits import interval_fit, log_mass, reached


def test_the_mass_between_two_points():
    low = np.array([-np.inf, -1.0, 0.5, 8.0])
    high = np.array([0.0, 1.0, np.inf, 9.0])
    expected = np.log(stats.norm.cdf(high[:3]) - stats.norm.cdf(low[:3]))
    found = log_mass(low, high)
    np.testing.assert_allclose(found[:3], expected, rtol=1e-9)
    tail = stats.norm.sf(8.0) - stats.norm.sf(9.0)  # cdf(9) - cdf(8) is 0 in float64
    assert found[3] == pytest.approx(np.log(tail), rel=1e-9)


def censored(slope, seed=0):
    """Numbers that grow like e^(slope x), seen by evaluations and within a budget."""
    x = np.repeat(np.arange(8.0), 3)
    true = np.exp(np.random.default_rng(seed).normal(7 + slope * x, 0.3))
    high = np.ceil(true / 500) * 500
    budget = np.exp(11.0)
    is_there = high <= budget
    low = np.where(is_there, high - 500, budget)
    return x, low, np.where(is_there, high, np.inf)


def test_the_interval_covers_the_truth_on_most_draws():
    slopes = np.array([interval_fit(*censored(0.9, n)).slope for n in range(12)])
    assert abs(slopes[:, 0].mean() - 0.9) < 0.05  # least squares of those there: 0.83
    assert ((slopes[:, 1] < 0.9) & (slopes[:, 2] > 0.9)).sum() >= 9


def test_censored_members_count():
    x, low, high = censored(0.9)
    there = np.isfinite(high)
    assert there.mean() < 0.7
    fit = interval_fit(x, low, high)
    assert 0.15 < fit.spread < 0.5
    later = interval_fit(x, np.where(there, low, 20 * low), high)  # not after 20 times
    assert later.slope[0] > fit.slope[0]
    flat = interval_fit(x, np.full(24, 900.0), np.full(24, 1000.0))
    assert flat.slope[1] < 0 < flat.slope[2]


def test_a_member_that_diverged_is_not_one_that_needs_more():
    scores = xr.DataArray(
        [[0.1, 0.1], [np.nan, 0.1], [0.1, np.nan]],
        {"step": [0, 1], "sequences": ("step", [0, 64])},
        ("seed", "step"),
    )
    high = reached(scores, 0.5)["high"].values
    assert high[0] == high[1] == np.inf and np.isnan(high[2])
    x, low, high = censored(0.9)
    low[0] = high[0] = np.nan
    assert np.isnan(interval_fit(x, low, high).slope).all()


def test_two_places_bound_no_slope():
    assert np.isnan(interval_fit([1, 2, 3], [1, 1, 1], [2, 2, np.inf]).slope).all()


def test_reached_is_between_two_evaluations():
    scores = xr.DataArray(
        [
            [0.5, 0.9, 0.1, 0.9, 0.9],
            [0.9, 0.9, 0.1, 0.1, 0.1],
            [0.1, 0.1, 0.1, 0.1, 0.9],
        ],
        {"step": [0, 1, 2, 3, 4], "sequences": ("step", [0, 10, 20, 30, 40])},
        ("member", "step"),
    )
    found = reached(scores, 0.8)
    assert found["low"].values.tolist() == [20, 0, 40]
    assert found["high"].values.tolist() == [30, 0, np.inf]
