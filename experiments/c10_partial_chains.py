"""Partial chains help: short, leap-2 and full demonstrations (C10).

Command    python -m experiments.main --config=experiments/c10_partial_chains.py \
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

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from experiments.lab import choose, dots
from parity_jax.config import (
    EvaluateConfig,
    Experiment,
    ParityConfig,
    PretrainConfig,
    RunConfig,
    TransformerConfig,
    mistral,
    to_config_dict,
)
from parity_jax.overlays import overlay
from parity_jax.plots import ACCENT, BLUE, CYCLE, draw_members, label_line, save_figure
from parity_jax.results import Claim, by_member, load_metrics, read_json, write_claims
from parity_jax.types import Hypers

BLIND_COIN = "chains known, parity an independent fair coin"


class Scale(NamedTuple):
    """What a scale sets."""

    num_bits: int
    model: TransformerConfig
    batch_size: int
    num_steps: int
    p_cot: tuple[float, ...]
    p_leap: tuple[float, ...]
    seeds: tuple[int, ...]


SCALES = {
    "cpu": Scale(
        16,
        mistral(4, 64, num_heads=4, num_kv_heads=2),  # depth 2 may miss the leap chain
        64,
        4000,
        p_cot=(0.1, 0.25),
        p_leap=(0.0, 0.45),
        seeds=(0, 1),
    ),
    "paper": Scale(
        50,
        mistral(4, 256),
        256,
        30_000,
        p_cot=(0.1, 0.25),
        p_leap=(0.0, 0.05, 0.1, 0.15, 0.2, 0.28, 0.35, 0.45),
        seeds=(0, 1, 2),
    ),
}


def get_config(scale: str = "cpu") -> ConfigDict:
    size = choose(SCALES, scale)
    pretrain = RunConfig(
        stage=PretrainConfig(
            batch_size=size.batch_size, decay_steps=size.num_steps, final_lr_ratio=0.02
        ),
        hypers=Hypers(learning_rate=1e-3),
        num_steps=size.num_steps,
        log_every=size.num_steps // 30,
        eval_every=size.num_steps // 6,
    )
    return to_config_dict(
        Experiment(
            task=ParityConfig(num_bits=size.num_bits, leap=2),
            model=size.model,
            axes=FrozenDict(
                {"p_cot": size.p_cot, "p_leap": size.p_leap, "seed": size.seeds}
            ),
            runs=FrozenDict({"pretrain": pretrain}),
            evaluate=EvaluateConfig(512, (1.0,)),
        )
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


def analyse(workdir: Path) -> None:
    num_bits = read_json(workdir / "config.json")["task"]["num_bits"]
    scores = load_metrics(workdir / "pretrain", "eval")
    write_claims(workdir, claims(scores))
    save_figure(figure(scores, num_bits), workdir)


def claims(scores: xr.Dataset) -> list[Claim]:
    last = scores.isel(step=-1, drop=True)
    accuracy = last["greedy/accuracy"]
    mean = accuracy.mean("seed")
    predicted = xr.apply_ufunc(greedy_accuracy, last["p_cot"], last["p_leap"])
    none, most = accuracy["p_leap"].values[[0, -1]]
    gap = abs(mean - predicted)
    alone, helped = accuracy.sel(p_leap=none), accuracy.sel(p_leap=most)
    return [
        Claim(
            "C10",
            f"a share of {most} leap-2 chains lets pre-training alone generalise at "
            "p_cot < 1/3, where it does not without them",
            "greedy accuracy >= 0.95 with them, 0.5 without, on every seed",
            {
                "with": by_member(helped),
                "without": by_member(alone),
                "length with": by_member(last["greedy/length_mean"].sel(p_leap=most)),
            },
            "0.05 with, 0.1 without",
            bool((helped >= 0.95).all() and (abs(alone - 0.5) <= 0.1).all()),
        ),
        Claim(
            "C10-coin",
            "greedy accuracy follows the blind coin over p_cot and p_leap",
            "means over seeds within 0.1",
            {
                "largest gap": round(float(gap.max()), 4),
                "measured": by_member(mean),
                "predicted": by_member(predicted),
                "P(long) - (p_cot + p_leap)": by_member(
                    last["t1/p_long"].mean("seed") - last["p_cot"] - last["p_leap"]
                ),
                "long samples right": by_member(last["t1/accuracy_long"].mean("seed")),
            },
            "0.1",
            bool((gap <= 0.1).all()),
        ),
    ]


def figure(scores: xr.Dataset, num_bits: int) -> plt.Figure:
    """Greedy accuracy and length over p_leap, and over training."""
    last = scores.isel(step=-1, drop=True)
    figure, (accuracy, length, training) = plt.subplots(1, 3, figsize=(11, 3.4))
    leap, curve = last["p_leap"].values, np.linspace(0, max(last["p_leap"].values), 400)
    looks = ((BLUE, "top"), (ACCENT, "bottom"))  # the lines end nearly in one point
    for p_cot, (color, va) in zip(last["p_cot"].values, looks, strict=False):
        at = last.sel(p_cot=p_cot)
        dots(accuracy, leap, at["greedy/accuracy"], color)
        overlay(accuracy, curve, greedy_accuracy(p_cot, curve), BLIND_COIN, color)
        dots(length, leap, at["greedy/length_mean"], color)
        mean = at["greedy/length_mean"].mean("seed")
        length.plot(leap, mean, color=color)
        end = float(mean[-1])
        label_line(length, leap[-1], end, f"p_cot = {p_cot:g}", color, va=va)
    for p_leap, color in zip(leap, CYCLE, strict=False):
        values = scores["greedy/accuracy"].isel(p_cot=0).sel(p_leap=p_leap)
        draw_members(training, scores["step"], values, color)
        end = float(values.isel(step=-1).median())
        label_line(training, float(scores["step"][-1]), end, f"{p_leap:g}", color)
    accuracy.set(ylabel="greedy accuracy", ylim=(0.4, 1.05))
    accuracy.set_title(f"dashed: {BLIND_COIN}", loc="left", fontsize=8)
    length.set(ylabel="greedy length (tokens)", ylim=(0, num_bits + 1))
    training.set(xlabel="step", ylabel="greedy accuracy", ylim=(0.4, 1.05))
    title = f"p_cot = {float(scores['p_cot'][0]):g}; labels: p_leap"
    training.set_title(title, loc="left", fontsize=8)
    for ax in (accuracy, length):
        ax.set_xlabel("p_leap, share of leap-2 chains")
    figure.suptitle(f"Next-token prediction alone, parity of {num_bits} bits")
    figure.tight_layout()
    return figure
