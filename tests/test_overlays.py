"""Overlays draw the closed forms, dashed, and say what they assume."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parity_jax import theory
from parity_jax.analysis import overlays
from parity_jax.analysis.plots import draw_members


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


def test_curves_are_the_closed_forms(ax) -> None:
    tau = np.linspace(0.5, 2, 5)
    overlays.overlay_temperature(ax, 0.25, tau, "accuracy")
    overlays.overlay_star(ax, 0.1, 3)
    expected = [
        theory.accuracy(0.25, tau),
        theory.star_p(0.1, np.arange(4)),
    ]
    for line, y in zip(ax.lines, expected, strict=True):
        np.testing.assert_allclose(line.get_ydata(), y, rtol=1e-12)


@pytest.mark.parametrize("noise, where", [(0.0, 1 / 3), (0.1, 1 / 2.8)])
def test_the_threshold_stands_where_the_theory_puts_it(ax, noise, where) -> None:
    overlays.overlay_threshold(ax, noise)
    assert ax.lines[0].get_xdata()[0] == pytest.approx(where)


def test_every_prediction_is_dashed_and_names_its_assumption(ax) -> None:
    overlays.overlay_temperature(ax, 0.25, [1.0, 2.0], "p_long")
    overlays.overlay_star(ax, 0.1, 3, tau=0.7)
    overlays.overlay_threshold(ax)
    assert all(line.get_linestyle() == "--" for line in ax.lines)
    assert ["calibrated" in x.get_label() for x in ax.lines] == [True, False, True]
    assert "tau = 0.7" in ax.lines[1].get_label()


def test_members_of_several_checkpoints_stand_where_they_trained(ax) -> None:
    """Those of one as thin lines with a median of their own; one entry in a legend."""
    sizes = {"parent_step": 2, "seed": 3, "step": 4}
    values = xr.DataArray(np.arange(24.0).reshape(2, 3, 4), dims=[*sizes])
    x = xr.DataArray([[0, 1, 2, 3], [7, 8, 9, 10]], dims=["parent_step", "step"])
    draw_members(ax, values, "black", "accuracy", x=x)
    assert len(ax.lines) == 2 * (3 + 1)
    for line, at, y in ((ax.lines[4], 1, values[1, 0]), (ax.lines[3], 0, values[0, 1])):
        assert line.get_xdata().tolist() == x[at].values.tolist()
        assert line.get_ydata().tolist() == y.values.tolist()
    assert [line.get_label() for line in ax.lines].count("accuracy") == 1
