"""Next-token prediction alone, over the share of long demonstrations (C1, C2, C3).

Command    parity-jax run --config=experiments/c1_c3_mixtures.py \
               --workdir=runs/c1_c3_mixtures [--config.scale=paper]
Device     2 CPU cores, about 8 minutes; paper scale: 16 minutes on an H100
           that others used
Expected   sampled at temperature 1 the model is calibrated: P(long) = p_cot, accuracy
           (1 + p_cot) / 2, P(EOS | first chain token) = (1 - p_cot) / (1 + p_cot);
           greedy decoding turns from short and at chance to long and right at 1/3
Figure     the paper's calibration curves and greedy threshold (its d = 25; batch,
           learning rate and the depth and width among the paper's are ours)
"""

from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, choose, gate_crossing, solved, stuck
from matplotlib.axes import Axes

from parity_jax import theory
from parity_jax.analysis import Check, Claim, Results, last, mean_interval
from parity_jax.analysis.overlays import (
    Score,
    overlay,
    overlay_temperature,
    overlay_threshold,
)
from parity_jax.analysis.plots import (
    ACCENT,
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    dots,
    draw_members,
    label_line,
)
from parity_jax.evaluate import EvaluateConfig, decodings
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import TransformerConfig, mistral
from parity_jax.optim import OptimizerConfig
from parity_jax.stages import PretrainConfig
from parity_jax.tasks import ParityConfig

SHORT, LONG = 0.28, 0.4  # clear of the threshold: greedy decoding is decided up to here
SHOWN = (0.1, 0.25, 0.4)  # shares that are drawn over temperature and over training


class Scale(NamedTuple):
    """What a scale sets; the defaults are the CPU's."""

    num_bits: int = 16
    model: TransformerConfig = SMALL
    batch_size: int = 64
    num_steps: int = 800
    seeds: tuple[int, ...] = (0, 1, 2, 3)


PAPER = Scale(
    num_bits=25, model=mistral(2, 128), batch_size=256, num_steps=10000, seeds=(0, 1, 2)
)
SCALES = {"cpu": Scale(), "paper": PAPER}


def get_config(scale: str = "cpu") -> Experiment:
    size = choose(SCALES, scale)
    p_cot = (0.05, 0.1, 0.25, 0.28, 0.31, 0.33, 0.36, 0.4, 1.0)
    # a gate without noise at the end
    optimizer = OptimizerConfig(decay_steps=size.num_steps, final_lr_ratio=0.02)
    pretrain = RunConfig(
        stage=PretrainConfig(size.batch_size, optimizer),
        hypers=Hypers(learning_rate=1e-3),
        num_steps=size.num_steps,
        log_every=size.num_steps // 30,
        eval_every=size.num_steps // 4,
    )
    return Experiment(
        task=ParityConfig(num_bits=size.num_bits),
        model=size.model,
        axes=FrozenDict({"p_cot": p_cot, "seed": size.seeds}),
        runs=FrozenDict({"pretrain": pretrain}),
        evaluate=EvaluateConfig(256, (0.5, 1.0, 1.5), num_samples=8),
    )


def over_temperature(results: Results, score: str) -> xr.DataArray:
    """A sampled score at the end, with the temperature as a dimension."""
    end = last(results["pretrain"])
    names = decodings(results.experiment.evaluate)
    names.pop("greedy")
    sampled = xr.concat([end[f"{name}/{score}"] for name in names], "temperature")
    return sampled.assign_coords(temperature=[*names.values()]).sortby("temperature")


def ideal(function: Any, like: xr.DataArray, *args: float) -> xr.DataArray:
    """A closed form of the ideal policy over the p_cot and temperatures of `like`."""
    tau = like.coords.get("temperature", 1.0)
    return xr.apply_ufunc(lambda p, t: function(p, *args, t), like["p_cot"], tau)


def close(
    id: str, measured: xr.DataArray, predicted: xr.DataArray, tolerance: float
) -> Claim:
    """The mean over seeds is within a tolerance of a prediction."""
    mean = measured.mean("seed", skipna=False)
    check = Check.within(mean, predicted, tolerance)
    seen = {"largest gap": abs(mean - predicted).max(), "of each seed": measured}
    return Claim.of(id, seen=seen, mean=check)


def claims(results: Results) -> list[Claim]:
    """Against the ideal policy, both sides of the threshold, and where it is."""
    end, num_bits = last(results["pretrain"]), results.experiment.task.num_bits
    p = end["p_cot"]
    mixed = end.sel(p_cot=p < 1)  # at p_cot = 1 the closed forms have no short answer
    sampled = over_temperature(results, "p_long").sel(p_cot=p < 1)
    right = over_temperature(results, "accuracy").sel(p_cot=p < 1)
    some, most = mixed["t1/pass@8"], mixed["t1/maj@8"]
    crossing = gate_crossing(end.sel(p_cot=(p >= 0.2) & (p <= LONG)))
    low, high = mean_interval(crossing.values)
    return [
        close("C1", end["t1/p_long"], p, 0.05),
        close("C1-gate", end["t1/p_stop_begun"], (1 - p) / (1 + p), 0.05),
        close("C1-temperature", sampled, ideal(theory.p_long, sampled), 0.1),
        close("C2", end["t1/accuracy"], (1 + p) / 2, 0.05),
        close("C2-temperature", right, ideal(theory.accuracy, right), 0.1),
        close("C2-pass@8", some, ideal(theory.pass_at_k, some, 8), 0.05),
        close("C2-maj@8", most, ideal(theory.majority_at_k, most, 8), 0.05),
        Claim.of("C3-below", **stuck(end.sel(p_cot=p <= SHORT))),
        Claim.of("C3-above", **solved(end.sel(p_cot=p >= LONG), num_bits)),
        Claim.of(
            "C3",
            seen={"95% interval": [low, high], "of each seed": crossing},
            crossing=Check.within(crossing.mean(skipna=False), 1 / 3, 0.02),
            width=Check.below(high - low, 0.08),
        ),
    ]


def figure(results: Results) -> plt.Figure:
    """Over p_cot; and over temperature, training, and the number of samples."""
    figure, (top, bottom) = plt.subplots(2, 4, figsize=(15, 6.4), layout="tight")
    num_bits, end = results.experiment.task.num_bits, last(results["pretrain"])
    draw_mixture(top, end, num_bits)
    draw_temperature(bottom[0], results, "p_long", "P(long)")
    draw_temperature(bottom[1], results, "accuracy", "accuracy")
    draw_votes(bottom[2], end)
    draw_training(bottom[3], results["pretrain"]["t1/p_long"])
    figure.suptitle(f"Next-token prediction alone, parity of {num_bits} bits")
    return figure


def draw_mixture(row: list[Axes], end: xr.Dataset, num_bits: int) -> None:
    """Over p_cot: P(long), accuracy by mode, the gate, greedy decoding."""
    p, curve = end["p_cot"].values, np.linspace(0.01, 0.99, 99)
    long, right, gate, greedy = row
    dots(long, p, end["t1/p_long"], BLUE)
    overlay(long, curve, curve, "calibrated")
    modes = (("", 0.7, BLUE), ("_long", 0.99, GREEN), ("_short", 0.5, ACCENT))
    for name, at, color in modes:
        dots(right, p, end[f"t1/accuracy{name}"], color)
        label_line(right, 0.5, at, name[1:] or "all", color)
    overlay(right, curve, (1 + curve) / 2, "calibrated")
    dots(gate, p, end["t1/p_stop_begun"], BLUE)
    dots(gate, p, end["t1/p_stop_departed"], ACCENT)
    overlay(gate, curve, (1 - curve) / (1 + curve), "calibrated", BLUE)
    overlay(gate, curve, np.ones_like(curve), "calibrated", ACCENT)
    label_line(gate, 0.5, 0.42, "first token right", BLUE)
    label_line(gate, 0.5, 0.93, "first token wrong", ACCENT)
    dots(greedy, p, end["greedy/accuracy"], ACCENT)
    dots(greedy, p, end["greedy/length_mean"] / num_bits, GREY, marker="s")
    overlay_threshold(greedy)
    label_line(greedy, 0.5, 0.93, "accuracy", ACCENT)
    label_line(greedy, 0.5, 0.86, "mean length / d (squares)", GREY)
    long.set(ylabel="P(long) at temperature 1")
    right.set(ylabel="accuracy at temperature 1", ylim=(0.3, 1.08))
    gate.set(ylabel="P(EOS) after one token")
    greedy.set(ylabel="greedy decoding", ylim=(0, 1.05))
    for ax in row:
        ax.set_xlabel("p_cot, share of long demonstrations")


def draw_temperature(ax: Axes, results: Results, score: Score, name: str) -> None:
    """A sampled score over temperature."""
    values, curve = over_temperature(results, score), np.linspace(0.3, 1.6, 50)
    tau = values["temperature"].values
    for p_cot, color in zip(SHOWN, CYCLE, strict=False):
        at = values.sel(p_cot=p_cot)
        dots(ax, tau, at, color)
        overlay_temperature(ax, p_cot, curve, score, color)
        end = float(at.isel(temperature=-1).mean())
        label_line(ax, tau[-1], end, f"p_cot = {p_cot:g}", color)
    ax.set(xlabel="temperature", ylabel=name)


def draw_votes(ax: Axes, end: xr.Dataset) -> None:
    """pass@8 and maj@8 at temperature 1 over p_cot."""
    curve = np.linspace(0.02, 0.98, 49)
    votes = (("pass@8", theory.pass_at_k), ("maj@8", theory.majority_at_k))
    for (name, function), color in zip(votes, (GREEN, BLUE), strict=True):
        dots(ax, end["p_cot"].values, end[f"t1/{name}"], color)
        overlay(ax, curve, function(curve, 8), "ideal policy", color)
        label_line(ax, 0.4, float(function(0.4, 8)), name, color, xytext=(6, -9))
    ax.set(xlabel="p_cot", ylabel="8 samples at temperature 1")


def draw_training(ax: Axes, p_long: xr.DataArray) -> None:
    """P(long) over training, with the shares that it should have."""
    for p_cot, color in zip(SHOWN, CYCLE, strict=False):
        draw_members(ax, p_long.sel(p_cot=p_cot), color)
        ax.axhline(p_cot, ls="--", lw=1.3, color=color)
        label_line(ax, float(p_long["step"][-1]), p_cot, f"{p_cot:g}", color)
    ax.set(xlabel="step", ylabel="P(long) at temperature 1")
