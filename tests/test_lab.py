"""What experiments read off their scores, on scores whose answer is known."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from parity_jax import theory

FILE = Path(__file__).parents[1] / "experiments" / "lab.py"


@pytest.fixture(scope="module")
def lab():
    spec = importlib.util.spec_from_file_location("lab_under_test", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("q", [0.0, 0.1, 0.2])
def test_a_calibrated_gate_crosses_at_the_theorys_threshold(lab, q):
    """With propagating flips: y_1 and y_2 are what was meant with 1 - q each."""
    p = xr.DataArray([0.25, 0.34, 0.42], dims="p_cot")
    stops, goes_on = (1 - p) / 2, p * (1 - q)
    p_stop = (stops / (stops + goes_on)).expand_dims(seed=[0, 1])
    end = xr.Dataset({"t1/p_stop_begun": p_stop}, {"p_cot": p.values})
    crossing = lab.gate_crossing(end, q)
    np.testing.assert_allclose(crossing, theory.greedy_threshold(q, q), rtol=1e-9)


def test_where_growth_first_falls_below_zero(lab):
    growth = xr.DataArray(
        [[0.4, 0.2, -0.2, 0.3], [-0.1, 0.2, 0.2, 0.2], [0.1, 0.2, 0.2, 0.2]],
        {"price": [0.0, 1.0, 2.0, 3.0]},
        ("seed", "price"),
    )
    found = lab.first_zero(growth, "price").values
    np.testing.assert_allclose(found, [1.5, np.nan, np.nan])


def test_a_member_that_diverged_fulfils_nothing(lab):
    """What is not a number stays so: no mean or maximum goes without it."""
    p = np.array([[0.1, 0.2 / 1.1, np.nan, np.nan], [0.1, 0.2 / 1.1, 0.4 / 1.3, 0.47]])
    p_long = xr.DataArray(p, {"step": range(4)}, ("seed", "step"))
    gap = lab.star_gap(p_long).values
    assert np.isnan(gap[0]) and gap[1] < 0.01
    growth = xr.DataArray([0.4, np.nan, 0.2, -0.2], {"price": range(4)}, "price")
    assert np.isnan(lab.first_zero(growth, "price"))
    stop = xr.DataArray([[0.6, 0.5, 0.4], [0.6, np.nan, 0.4]], dims=("seed", "p_cot"))
    end = xr.Dataset({"t1/p_stop_begun": stop}, {"p_cot": [0.25, 0.34, 0.42]})
    crossing = lab.gate_crossing(end).values
    assert np.isfinite(crossing[0]) and np.isnan(crossing[1])


def test_where_half_of_the_answers_are_long(lab):
    long = xr.DataArray(
        [[0.0, 0.25, 1.0]], {"p_cot": [0.2, 0.3, 0.4]}, ("seed", "p_cot")
    )
    found = lab.greedy_crossing(xr.Dataset({"greedy/p_long": long}))
    np.testing.assert_allclose(found, [0.3 + 0.1 / 3])
