"""Partial chains help: short, leap-2 and full demonstrations (C10).

Command    parity-jax run --config=experiments/c10_partial_chains.py \
               --workdir=runs/c10_partial_chains [--config.scale=paper]
Device     2 CPU cores, about 15 minutes; paper scale: one GPU
Expected   chains that show every second running parity let pre-training alone
           generalise although p_cot < 1/3; where they do follows the blind coin of
           `greedy_accuracy`
Figure     the paper's mixture with partial chains (proportions and sizes are ours)

The linear model's formulas (`theory.mixture_leap`) are for leaps that it cannot learn
(k >= 3); a transformer learns t_2, so they do not apply. What does: the parity is an
independent fair coin, everything else is known.
"""

from dataclasses import replace
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, choose
from numpy.typing import ArrayLike

from parity_jax.analysis import Check, Claim, Results, last
from parity_jax.analysis.overlays import overlay
from parity_jax.analysis.plots import CYCLE, dots, draw_members, end_of, label_line
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import TransformerConfig, mistral
from parity_jax.optim import OptimizerConfig
from parity_jax.stages import PretrainConfig
from parity_jax.tasks import ParityConfig

BLIND_COIN = "chains known, parity an independent fair coin"


class Scale(NamedTuple):
    """What a scale sets; the defaults are the CPU's."""

    num_bits: int = 16
    model: TransformerConfig = replace(SMALL, depth=4)  # 2 may miss the leap chain
    batch_size: int = 64
    num_steps: int = 4000
    p_leap: tuple[float, ...] = (0.0, 0.45)
    seeds: tuple[int, ...] = (0, 1)


PAPER = Scale(
    num_bits=50,
    model=mistral(4, 256),
    batch_size=256,
    num_steps=30_000,
    p_leap=(0.0, 0.05, 0.1, 0.15, 0.2, 0.28, 0.35, 0.45),
    seeds=(0, 1, 2),
)
SCALES = {"cpu": Scale(), "paper": PAPER}


def get_config(scale: str = "cpu") -> Experiment:
    size = choose(SCALES, scale)
    axes = {"p_cot": (0.1, 0.25), "p_leap": size.p_leap, "seed": size.seeds}
    optimizer = OptimizerConfig(decay_steps=size.num_steps, final_lr_ratio=0.02)
    pretrain = RunConfig(
        stage=PretrainConfig(size.batch_size, optimizer),
        hypers=Hypers(learning_rate=1e-3),
        num_steps=size.num_steps,
        log_every=size.num_steps // 30,
        eval_every=size.num_steps // 6,
    )
    return Experiment(
        task=ParityConfig(num_bits=size.num_bits, leap=2),
        model=size.model,
        axes=FrozenDict(axes),
        runs=FrozenDict({"pretrain": pretrain}),
        evaluate=EvaluateConfig(512, (1.0,)),
    )


def greedy_accuracy(p_cot: ArrayLike, p_leap: ArrayLike) -> np.ndarray:
    """Of a model that knows both chains while the parity is a fair coin (ours).

    Let s = 1 - p_cot - p_leap and M the larger share of the two chains. After the first
    token EOS has mass s/2, and greedy decoding goes on, and is right, where a chain's
    second token has more; else it is right half of the time. If t_2 = x_1, both chains
    go on from there: with the same token if t_4 = t_2 (mass p_cot + p_leap), else the
    larger one counts (M). If not, only the larger one has begun so (M).
    """
    full, leap = np.asarray(p_cot), np.asarray(p_leap)
    stop, larger = (1 - full - leap) / 2, np.maximum(full, leap)
    goes_on = 0.25 * (full + leap > stop) + 0.75 * (larger > stop)
    return (1 + goes_on) / 2


def claims(results: Results) -> list[Claim]:
    """Without leap-2 chains and with most of them; and all shares over the formula."""
    end = last(results["pretrain"])
    accuracy, p_cot, p_leap = end["greedy/accuracy"], end["p_cot"], end["p_leap"]
    mean, most = accuracy.mean("seed", skipna=False), {"p_leap": [-1]}
    predicted = xr.apply_ufunc(greedy_accuracy, p_cot, p_leap)
    p_long = end["t1/p_long"].mean("seed")
    return [
        Claim.of(
            "C10",
            seen={"length": end["greedy/length_mean"][most]},
            helped=Check.at_least(accuracy[most], 0.95),
            alone=Check.within(accuracy.isel(p_leap=[0]), 0.5, 0.1),
        ),
        Claim.of(
            "C10-coin",
            seen={
                "largest gap": abs(mean - predicted).max(),
                "P(long) - (p_cot + p_leap)": p_long - p_cot - p_leap,
                "long samples right": end["t1/accuracy_long"].mean("seed"),
            },
            mean=Check.within(mean, predicted, 0.1),
        ),
    ]


def figure(results: Results) -> plt.Figure:
    """Greedy accuracy and length over p_leap, and over training."""
    scores, num_bits = results["pretrain"], results.experiment.task.num_bits
    end, training_end = last(scores), float(scores["step"][-1])
    figure, (accuracy, length, training) = plt.subplots(
        1, 3, figsize=(11, 3.4), layout="tight"
    )
    leap = end["p_leap"].values
    curve = np.linspace(0, max(leap), 400)
    above_below = ("top", "bottom")  # the lines end nearly in one point
    for p_cot, color, va in zip(end["p_cot"].values, CYCLE, above_below, strict=False):
        at = end.sel(p_cot=p_cot)
        dots(accuracy, leap, at["greedy/accuracy"], color)
        overlay(accuracy, curve, greedy_accuracy(p_cot, curve), BLIND_COIN, color)
        dots(length, leap, at["greedy/length_mean"], color)
        mean, label = at["greedy/length_mean"].mean("seed").values, f"p_cot = {p_cot:g}"
        length.plot(leap, mean, color=color)
        label_line(length, leap[-1], mean[-1], label, color, va=va)
    for p_leap, color in zip(leap, CYCLE, strict=False):
        values = scores["greedy/accuracy"].isel(p_cot=0).sel(p_leap=p_leap)
        draw_members(training, values, color)
        label_line(training, training_end, end_of(values), f"{p_leap:g}", color)
    accuracy.set(ylabel="greedy accuracy", ylim=(0.4, 1.05))
    accuracy.set_title(f"dashed: {BLIND_COIN}", loc="left", fontsize=8)
    length.set(ylabel="greedy length (tokens)", ylim=(0, num_bits + 1))
    training.set(xlabel="step", ylabel="greedy accuracy", ylim=(0.4, 1.05))
    title = f"p_cot = {float(scores['p_cot'][0]):g}; labels: p_leap"
    training.set_title(title, loc="left", fontsize=8)
    for ax in (accuracy, length):
        ax.set_xlabel("p_leap, share of leap-2 chains")
    figure.suptitle(f"Next-token prediction alone, parity of {num_bits} bits")
    return figure
