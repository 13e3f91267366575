"""Noisy chains on the linear model: the greedy threshold moves to 1 / (3 - 2q).

Command    parity-jax run --config=experiments/linear_noise.py \
               --workdir=runs/linear_noise
Device     2 CPU cores, about 2 minutes
Expected   flipping the intermediate tokens of long demonstrations with probability q
           (shown only, or propagating) moves the p_cot above which greedy decoding goes
           long from 1/3 to 1 / (3 - 2q); sampled accuracy is (1 + p_cot (1 - 2q)^n)
           / 2 with n = 2d - 2 (shown only) or d - 1 (propagating).
Figure     beyond the paper: what demonstrations with mistakes in their chains change
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import xarray as xr
from flax.core import FrozenDict
from lab import FAST_SGD, all_at_most, finish, first_zero, linear_pretrain

from parity_jax import theory
from parity_jax.analysis import Check, Claim, Results, last
from parity_jax.analysis.overlays import overlay
from parity_jax.analysis.plots import CYCLE, INK, dots, label_line
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment
from parity_jax.models import LinearConfig
from parity_jax.population import PopulationConfig
from parity_jax.tasks import ParityConfig

NOISE = (0.0, 0.05, 0.1, 0.2)
P_COT = (0.25, 0.3, 0.32, 0.34, 0.36, 0.38, 0.4, 0.45)
KINDS = {"emit": "Shown tokens flipped", "step": "Steps flipped (propagating)"}


def get_config() -> Experiment:
    # small steps: chain labels are noisy too
    sgd = replace(FAST_SGD, max_chain_step_size=0.2)
    runs = {
        kind: linear_pretrain(  # 12,000 updates of 64 examples
            24, sgd, axes=FrozenDict({f"{kind}_noise": NOISE})
        )
        for kind in KINDS
    }
    return Experiment(
        task=ParityConfig(num_bits=8),
        model=LinearConfig(),
        axes=FrozenDict({"p_cot": P_COT, "seed": (0, 1)}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(num_prompts=8192, temperatures=(1.0,)),
        population=PopulationConfig(vmap_width=8),
    )


def final_scores(results: Results) -> dict[str, xr.Dataset]:
    """The last evaluation under both kinds of noise, over q, p_cot and seed."""
    return {k: last(results[k]).rename({f"{k}_noise": "q"}) for k in KINDS}


def crossing(run: xr.Dataset) -> xr.DataArray:
    """The p_cot at which the gate's mean margin crosses 0, interpolated; q by seed."""
    return first_zero(-run["exact/margin_mean"], "p_cot")


def threshold(run: xr.Dataset) -> xr.DataArray:
    """The theory's p_cot at which the gate goes on, by q."""
    return xr.apply_ufunc(theory.greedy_threshold, run["q"])


def accuracy(run: xr.Dataset, kind: str, d: int) -> xr.DataArray:
    """The theory's accuracy at temperature 1, by p_cot and q."""
    return xr.apply_ufunc(theory.noisy_accuracy, run["p_cot"], d, run["q"], kind)


def claims(results: Results) -> list[Claim]:
    """Thresholds of every seed; accuracy where it is farthest from the theory."""
    runs, d = final_scores(results), results.experiment.task.num_bits
    thresholds = {
        kind: Check.within(crossing(run), threshold(run), 0.005)
        for kind, run in runs.items()
    }
    gaps = {k: abs(run["t1/accuracy"] - accuracy(run, k, d)) for k, run in runs.items()}
    tolerance = 0.025  # 4 standard deviations of 8192 samples, and the ridge
    return [
        Claim.of("noise-threshold", **thresholds),
        Claim.of("noise-accuracy", **all_at_most(gaps, tolerance)),
    ]


def figure(results: Results) -> plt.Figure:
    """The gate's margin over p_cot for both kinds of noise, and sampled accuracy."""
    runs, d = final_scores(results), results.experiment.task.num_bits
    figure, axes = plt.subplots(
        1, 3, figsize=(11.5, 3.6), layout="constrained", sharex=True
    )
    for ax, (kind, run) in zip(axes, runs.items(), strict=False):
        draw_by_noise(ax, run["exact/margin_mean"], ls="-", lw=0.8)
        for color, where in zip(CYCLE, threshold(run).values, strict=False):
            ax.axvline(where, color=color, ls="--", lw=1.3)
        ax.axhline(0, color="k", lw=0.6)
        label = "theory (1 / (3 - 2q): calibrated gate, infinite data)"
        ax.plot([], [], "--", color=INK, label=label)
        ylabel = "gate logit after y_1 = x_1 (long above 0)"
        finish(ax, f"{KINDS[kind]}, d = {d}", "p_cot", ylabel)
    ax, run = axes[2], runs["step"]
    draw_by_noise(ax, run["t1/accuracy"])
    for color, predicted in zip(CYCLE, accuracy(run, "step", d).T, strict=False):
        overlay(ax, run["p_cot"], predicted, "infinite data, no ridge", color)
    title, ylabel = "Propagating flips, sampled", "accuracy at temperature 1"
    finish(ax, title, "p_cot", ylabel, num=1)
    return figure


def draw_by_noise(ax: plt.Axes, values: xr.DataArray, **look: float | str) -> None:
    """Every seed over p_cot, q by colour and label."""
    p_cot = values["p_cot"]
    for color, at in zip(CYCLE, values.transpose("q", ...), strict=False):
        dots(ax, p_cot, at, color, marker=".", ms=4, alpha=1, **look)
        end = float(at.isel(p_cot=-1).mean())
        label_line(ax, float(p_cot[-1]), end, f"q = {float(at['q']):g}", color)
