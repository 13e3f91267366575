"""Predictions of the theory over measurements: dashed, the assumption in the legend.

Each helper draws one closed form of `parity_jax.theory` on axes of any experiment.
"""

from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from parity_jax import theory
from parity_jax.analysis.plots import INK

Score = Literal["accuracy", "p_long"]
CALIBRATED = "calibrated, exact chain, parity unlearned"


def overlay(
    ax: Axes, x: ArrayLike, y: ArrayLike, assumption: str, color: str = INK
) -> None:
    """Any prediction y over x, dashed, with what it assumes."""
    label = f"theory ({assumption})"
    ax.plot(x, y, ls="--", lw=1.3, color=color, label=label, zorder=4)


def overlay_fit(
    ax: Axes, x: ArrayLike, y: ArrayLike, label: str, color: str = INK
) -> None:
    """A line that was fitted to what is drawn: no prediction."""
    ax.plot(x, y, ls="-.", lw=1.1, color=color, label=f"fit: {label}", zorder=4)


def overlay_temperature(
    ax: Axes, p_cot: float, temperatures: ArrayLike, score: Score, color: str = INK
) -> None:
    """Accuracy or P(long) of a policy pre-trained on D(p_cot) versus temperature."""
    predict = {"accuracy": theory.accuracy, "p_long": theory.p_long}[score]
    overlay(ax, temperatures, predict(p_cot, temperatures), CALIBRATED, color)


def overlay_star(
    ax: Axes, p_cot: float, num_rounds: int, tau: float = 1.0, color: str = INK
) -> None:
    """P(long) at temperature 1 after each STaR round that samples at tau."""
    p_long = theory.star_trajectory(p_cot, num_rounds, tau)[:, 2]
    assumption = f"every round refitted to its optimum, tau = {tau:g}"
    overlay(ax, np.arange(num_rounds + 1), p_long, assumption, color)


def overlay_threshold(ax: Axes, noise: float = 0.0, color: str = INK) -> None:
    """The p_cot above which greedy decoding is long: 1/3, or 1/(3 - 2 noise)."""
    where = float(theory.greedy_threshold(noise))
    name = "1/3" if noise == 0 else f"1/(3 - 2 x {noise:g})"
    label = f"theory ({name}: calibrated gate, infinite data)"
    ax.axvline(where, ls="--", lw=1.3, color=color, label=label, zorder=4)
