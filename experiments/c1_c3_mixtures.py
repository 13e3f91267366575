"""Next-token prediction alone, over the share of long demonstrations (C1, C2, C3).

Command    python -m experiments.main --config=experiments/c1_c3_mixtures.py \
               --workdir=runs/c1_c3_mixtures [--config.scale=paper]
Device     2 CPU cores, about 8 minutes; paper scale: one GPU
Expected   sampled at temperature 1 the model is calibrated: P(long) = p_cot, accuracy
           (1 + p_cot) / 2, P(EOS | first chain token) = (1 - p_cot) / (1 + p_cot);
           greedy decoding turns from short and at chance to long and right at 1/3
Figure     the paper's calibration curves and greedy threshold (its d = 25; batch,
           learning rate and the depth and width among the paper's are ours)
"""

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from matplotlib.axes import Axes
from ml_collections import ConfigDict
from scipy.special import logit
from scipy.stats import sem, t

from experiments.lab import choose, close, dots, is_solved, is_stuck
from parity_jax import theory
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
from parity_jax.overlays import Score, overlay, overlay_temperature, overlay_threshold
from parity_jax.plots import (
    ACCENT,
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    draw_members,
    label_line,
    save_figure,
)
from parity_jax.results import Claim, load_metrics, read_json, write_claims
from parity_jax.types import Hypers

SHORT, LONG = 0.28, 0.4  # clear of the threshold: greedy decoding is decided up to here
SHOWN = (0.1, 0.25, 0.4)  # shares that are drawn over temperature and over training


class Scale(NamedTuple):
    """What a scale sets."""

    num_bits: int
    model: TransformerConfig
    batch_size: int
    num_steps: int
    seeds: tuple[int, ...]


SCALES = {
    "cpu": Scale(
        16, mistral(2, 64, num_heads=4, num_kv_heads=2), 64, 800, seeds=(0, 1, 2, 3)
    ),
    "paper": Scale(25, mistral(2, 128), 256, 10_000, seeds=(0, 1, 2)),
}


def get_config(scale: str = "cpu") -> ConfigDict:
    size = choose(SCALES, scale)
    p_cot = (0.05, 0.1, 0.25, 0.28, 0.31, 0.33, 0.36, 0.4, 1.0)
    pretrain = RunConfig(
        stage=PretrainConfig(
            batch_size=size.batch_size,
            decay_steps=size.num_steps,  # a gate without noise at the end
            final_lr_ratio=0.02,
        ),
        hypers=Hypers(learning_rate=1e-3),
        num_steps=size.num_steps,
        log_every=size.num_steps // 30,
        eval_every=size.num_steps // 4,
    )
    return to_config_dict(
        Experiment(
            task=ParityConfig(num_bits=size.num_bits),
            model=size.model,
            axes=FrozenDict({"p_cot": p_cot, "seed": size.seeds}),
            runs=FrozenDict({"pretrain": pretrain}),
            evaluate=EvaluateConfig(256, (0.5, 1.0, 1.5), num_samples=8),
        )
    )


def analyse(workdir: Path) -> None:
    num_bits = read_json(workdir / "config.json")["task"]["num_bits"]
    scores = load_metrics(workdir / "pretrain", "eval")
    write_claims(workdir, claims(scores, num_bits))
    save_figure(figure(scores, num_bits), workdir)


def temperatures(scores: xr.Dataset) -> list[float]:
    names = [str(n).partition("/")[0] for n in scores if str(n).endswith("/p_long")]
    return sorted(float(n.removeprefix("t")) for n in names if n != "greedy")


def over_temperature(scores: xr.Dataset, score: str) -> xr.DataArray:
    """A sampled score with the temperature as a dimension."""
    values = temperatures(scores)
    arrays = [scores[f"t{t:g}/{score}"] for t in values]
    return xr.concat(arrays, "temperature").assign_coords(temperature=values)


def predicted(like: xr.DataArray, name: str, *args: float) -> xr.DataArray:
    """A closed form of the ideal policy over the p_cot and temperatures of `like`."""
    shape = like.isel(seed=0, drop=True)
    tau = shape.coords.get("temperature", xr.DataArray(1.0))
    function = getattr(theory, name)
    return xr.apply_ufunc(lambda p, t: function(p, *args, t), shape["p_cot"], tau)


def claims(scores: xr.Dataset, num_bits: int) -> list[Claim]:
    last = scores.isel(step=-1, drop=True)
    p = last["p_cot"]
    mixed = last.sel(p_cot=p < 1)  # at p_cot = 1 the closed forms have no short answer
    sampled = over_temperature(mixed, "p_long")
    right = over_temperature(mixed, "accuracy")
    begun = last["t1/p_stop_begun"]
    votes = [
        close(
            f"C2-{name}",
            f"{name} of samples at temperature 1 as for the ideal policy",
            mixed[f"t1/{name}"],
            predicted(mixed[f"t1/{name}"], function, 8),
            0.05,
        )
        for name, function in (("pass@8", "pass_at_k"), ("maj@8", "majority_at_k"))
    ]
    return [
        close(
            "C1",
            "after pre-training P(long) at temperature 1 is p_cot",
            last["t1/p_long"],
            p,
            0.05,
        ),
        close(
            "C1-gate",
            "P(EOS) after a right first token is (1 - p_cot) / (1 + p_cot)",
            begun,
            (1 - p) / (1 + p),
            0.05,
        ),
        close(
            "C1-temperature",
            "P(long) over temperature as for the ideal policy",
            sampled,
            predicted(sampled, "p_long"),
            0.1,
        ),
        close(
            "C2",
            "accuracy at temperature 1 is (1 + p_cot) / 2",
            last["t1/accuracy"],
            (1 + p) / 2,
            0.05,
        ),
        close(
            "C2-temperature",
            "accuracy over temperature as for the ideal policy",
            right,
            predicted(right, "accuracy"),
            0.1,
        ),
        *votes,
        *threshold_claims(last, num_bits),
    ]


def threshold_claims(last: xr.Dataset, num_bits: int) -> list[Claim]:
    """Both sides of the threshold, and where it is."""
    below = last.sel(p_cot=last["p_cot"] <= SHORT)
    above = last.sel(p_cot=last["p_cot"] >= LONG)
    by_seed = crossings(last)
    where, error = by_seed.mean(), sem(by_seed)
    low, high = t.interval(0.95, len(by_seed) - 1, where, error)
    return [
        Claim(
            "C3-below",
            f"greedy decoding is short and at chance for p_cot <= {SHORT}",
            "length 1, accuracy 0.5 on every seed",
            extremes(below),
            "accuracy 0.1, length exact",
            bool(is_stuck(below).all()),
        ),
        Claim(
            "C3-above",
            f"greedy decoding is long and perfect for p_cot >= {LONG}",
            f"length {num_bits}, accuracy >= 0.99 on every seed",
            extremes(above),
            "accuracy 0.01, length exact",
            bool(is_solved(above, num_bits).all()),
        ),
        Claim(
            "C3",
            "the greedy threshold is at p_cot = 1/3",
            "1/3",
            {
                "crossing": round(float(where), 4),
                "95% interval": [round(float(low), 4), round(float(high), 4)],
                "of each seed": by_seed.round(4).tolist(),
            },
            "0.02, and the interval is narrower than 0.08",
            bool(abs(where - 1 / 3) <= 0.02 and high - low < 0.08),
        ),
    ]


def extremes(data: xr.Dataset) -> dict[str, list[float]]:
    names = ("greedy/accuracy", "greedy/length_median")
    return {n: [float(data[n].min()), float(data[n].max())] for n in names}


def crossings(last: xr.Dataset) -> np.ndarray:
    """p_cot where P(EOS | first chain token) is 1/2, for every seed.

    The gate's log-odds are linear in ln(2p / (1 - p)) in theory; a line is fitted to
    the members of a seed with 0.2 <= p_cot <= 0.4. Those are no independent
    measurements: who is long is a uniform number below p_cot, the same for all of them.
    """
    near = last.sel(p_cot=(last["p_cot"] >= 0.2) & (last["p_cot"] <= LONG))
    p = near["p_cot"].values
    gate_by_seed = -logit(near["t1/p_stop_begun"]).transpose("seed", "p_cot").values
    slope, intercept = np.polyfit(np.log(2 * p / (1 - p)), gate_by_seed.T, 1)
    odds = np.exp(-intercept / slope)
    return odds / (2 + odds)


def figure(scores: xr.Dataset, num_bits: int) -> plt.Figure:
    figure, axes = plt.subplots(2, 4, figsize=(15, 6.4))
    last = scores.isel(step=-1, drop=True)
    draw_mixture(axes[0], last, num_bits)
    draw_sampling(axes[1], scores)
    figure.suptitle(f"Next-token prediction alone, parity of {num_bits} bits")
    figure.tight_layout()
    return figure


def draw_mixture(row: list[Axes], last: xr.Dataset, num_bits: int) -> None:
    """Over p_cot: P(long), accuracy by mode, the gate, greedy decoding."""
    p, curve = last["p_cot"].values, np.linspace(0.01, 0.99, 99)
    long, right, gate, greedy = row
    dots(long, p, last["t1/p_long"], BLUE)
    overlay(long, curve, curve, "calibrated")
    long.set(ylabel="P(long) at temperature 1")
    for name, at, color in (
        ("", 0.7, BLUE),
        ("_long", 0.99, GREEN),
        ("_short", 0.5, ACCENT),
    ):
        dots(right, p, last[f"t1/accuracy{name}"], color)
        label_line(right, 0.5, at, name[1:] or "all", color)
    overlay(right, curve, (1 + curve) / 2, "calibrated")
    right.set(ylabel="accuracy at temperature 1", ylim=(0.3, 1.08))
    for name, color in (("begun", BLUE), ("departed", ACCENT)):
        dots(gate, p, last[f"t1/p_stop_{name}"], color)
    overlay(gate, curve, (1 - curve) / (1 + curve), "calibrated", BLUE)
    overlay(gate, curve, np.ones_like(curve), "calibrated", ACCENT)
    label_line(gate, 0.5, 0.42, "first token right", BLUE)
    label_line(gate, 0.5, 0.93, "first token wrong", ACCENT)
    gate.set(ylabel="P(EOS) after one token")
    dots(greedy, p, last["greedy/accuracy"], ACCENT)
    dots(greedy, p, last["greedy/length_mean"] / num_bits, GREY, marker="s")
    overlay_threshold(greedy)
    label_line(greedy, 0.5, 0.93, "accuracy", ACCENT)
    label_line(greedy, 0.5, 0.86, "mean length / d (squares)", GREY)
    greedy.set(ylabel="greedy decoding", ylim=(0, 1.05))
    for ax in row:
        ax.set_xlabel("p_cot, share of long demonstrations")


def draw_sampling(row: list[Axes], scores: xr.Dataset) -> None:
    """Over temperature, over the number of samples, and over training."""
    last, curve = scores.isel(step=-1, drop=True), np.linspace(0.3, 1.6, 50)
    names: tuple[Score, ...] = ("p_long", "accuracy")
    for ax, score in zip(row[:2], names, strict=True):
        values = over_temperature(last, score)
        for p_cot, color in zip(SHOWN, CYCLE, strict=False):
            at = values.sel(p_cot=p_cot)
            dots(ax, temperatures(scores), at, color)
            overlay_temperature(ax, p_cot, curve, score, color)
            end = float(at.isel(temperature=-1).mean("seed"))
            label_line(ax, 1.5, end, f"p_cot = {p_cot:g}", color)
        ax.set(xlabel="temperature", ylabel={"p_long": "P(long)"}.get(score, score))
    draw_votes(row[2], last)
    for p_cot, color in zip(SHOWN, CYCLE, strict=False):
        values = scores["t1/p_long"].sel(p_cot=p_cot)
        draw_members(row[3], scores["step"], values, color)
        row[3].axhline(p_cot, ls="--", lw=1.3, color=color)
        label_line(row[3], float(scores["step"][-1]), p_cot, f"{p_cot:g}", color)
    row[3].set(xlabel="step", ylabel="P(long) at temperature 1")


def draw_votes(ax: Axes, last: xr.Dataset) -> None:
    """pass@8 and maj@8 at temperature 1 over p_cot."""
    curve = np.linspace(0.02, 0.98, 49)
    votes = (("pass@8", theory.pass_at_k), ("maj@8", theory.majority_at_k))
    for (name, function), color in zip(votes, (GREEN, BLUE), strict=True):
        dots(ax, last["p_cot"].values, last[f"t1/{name}"], color)
        overlay(ax, curve, function(curve, 8), "ideal policy", color)
        label_line(ax, 0.4, float(function(0.4, 8)), name, color, xytext=(6, -9))
    ax.set(xlabel="p_cot", ylabel="8 samples at temperature 1")
