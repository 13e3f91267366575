"""When to start RL, and from what: checkpoint x p_cot, with p_cot = 0 (C8, C11).

Command    python -m experiments.main --config=experiments/c8_c11_timing.py \
               --workdir=runs/c8_c11_timing [--config.scale=paper]
Device     2 CPU cores, about 9 minutes; paper scale: one GPU
Expected   GRPO from a checkpoint at which the chain is learned generalises; from one
           before, answers may grow but stay wrong; at p_cot = 0.01 the length grows
           from almost every checkpoint; at p_cot = 0 nothing is there to be amplified
Figure     the paper's maps over pre-training checkpoint and p_cot (its d = 50)
"""

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from matplotlib.axes import Axes
from ml_collections import ConfigDict

from experiments.lab import choose, is_solved
from parity_jax.config import (
    EvaluateConfig,
    Experiment,
    ParityConfig,
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    RunConfig,
    TransformerConfig,
    mistral,
    to_config_dict,
)
from parity_jax.plots import save_figure
from parity_jax.results import Claim, by_member, load_metrics, read_json, write_claims
from parity_jax.theory import majority_at_k, pass_at_k
from parity_jax.types import Hypers

RARE, FREQUENT = 0.01, 0.25


class Scale(NamedTuple):
    """What a scale sets."""

    num_bits: int
    model: TransformerConfig
    batch_size: int
    checkpoints: tuple[int, ...]  # steps from which RL starts
    p_cot: tuple[float, ...]
    rollout: RolloutConfig
    num_updates: int
    seeds: tuple[int, ...]


SCALES = {
    "cpu": Scale(
        16,
        mistral(2, 64, num_heads=4, num_kv_heads=2),
        64,
        (50, 150, 400, 1200, 4800),
        (0.0, RARE, FREQUENT),
        RolloutConfig(num_prompts=32, num_generations=8),
        40,
        (0, 1),
    ),
    "paper": Scale(
        50,
        mistral(2, 128),
        256,
        (200, 600, 2000, 6000, 20_000, 50_000),
        (0.0, RARE, 0.05, 0.1, FREQUENT),
        RolloutConfig(num_prompts=64, num_generations=8),
        150,
        (0, 1, 2),
    ),
}


def get_config(scale: str = "cpu") -> ConfigDict:
    size = choose(SCALES, scale)
    every, last = size.checkpoints[0], size.checkpoints[-1]
    pretrain = RunConfig(
        stage=PretrainConfig(batch_size=size.batch_size),  # all checkpoints alike
        hypers=Hypers(learning_rate=1e-3),
        num_steps=last,
        log_every=every,
        eval_every=last // 4,
        checkpoint_steps=size.checkpoints,
    )
    grpo = RunConfig(
        stage=PolicyGradientConfig(rollout=size.rollout, loss_type="dapo"),
        hypers=Hypers(learning_rate=2e-4),
        num_steps=size.num_updates,
        log_every=5,
        eval_every=size.num_updates // 4,
        parent="pretrain",
        axes=FrozenDict({"parent_step": size.checkpoints}),
    )
    return to_config_dict(
        Experiment(
            task=ParityConfig(num_bits=size.num_bits),
            model=size.model,
            axes=FrozenDict({"p_cot": size.p_cot, "seed": size.seeds}),
            runs=FrozenDict({"pretrain": pretrain, "grpo": grpo}),
            evaluate=EvaluateConfig(256, (1.0,), num_samples=4),
        )
    )


def analyse(workdir: Path) -> None:
    num_bits = read_json(workdir / "config.json")["task"]["num_bits"]
    scores = load_metrics(workdir / "grpo", "eval")
    write_claims(workdir, claims(scores, num_bits))
    save_figure(figure(scores, num_bits), workdir)


def claims(scores: xr.Dataset, num_bits: int) -> list[Claim]:
    before, after = scores.isel(step=0, drop=True), scores.isel(step=-1, drop=True)
    accuracy, length = after["greedy/accuracy"], after["greedy/length_mean"]
    late, early = accuracy["parent_step"].values[[-1, 0]]
    frequent = accuracy.sel(p_cot=FREQUENT)
    solved = is_solved(after.sel(p_cot=FREQUENT, parent_step=late), num_bits)
    grown = (length - before["greedy/length_mean"]).sel(p_cot=RARE).mean("seed") > 0.5
    control = {
        "greedy accuracy": accuracy.sel(p_cot=0),
        "greedy length": length.sel(p_cot=0),
        "P(long) before RL": before["t1/p_long"].sel(p_cot=0),
        "P(continue) before RL, exact": 1 - before["t1/p_stop_begun"].sel(p_cot=0),
    }
    return [
        Claim(
            "C8",
            f"RL from step {late} at p_cot = {FREQUENT} generalises",
            f"greedy accuracy >= 0.99, length {num_bits} on every seed",
            by_member(frequent.sel(parent_step=late)),
            "accuracy 0.01, length exact",
            bool(solved.all()),
        ),
        Claim(
            "C8-early",
            f"RL from step {early} at p_cot = {FREQUENT}, before the chain is "
            "learned, does not generalise",
            "greedy accuracy < 0.9 on every seed",
            {
                "accuracy": by_member(frequent.sel(parent_step=early)),
                "length": by_member(length.sel(parent_step=early, p_cot=FREQUENT)),
                "accuracy of long samples before RL": by_member(
                    before["t1/accuracy_long"].sel(parent_step=early, p_cot=FREQUENT)
                ),
            },
            "none",
            bool((frequent.sel(parent_step=early) < 0.9).all()),
        ),
        Claim(
            "C8-rare",
            f"at p_cot = {RARE} the length grows from almost every checkpoint",
            "greedy length + 0.5 in the mean over seeds, but for one checkpoint",
            {
                "length after RL": by_member(length.sel(p_cot=RARE)),
                "accuracy after RL": by_member(accuracy.sel(p_cot=RARE)),
                "accuracy of long samples before RL": by_member(
                    before["t1/accuracy_long"].sel(p_cot=RARE).fillna(0.0)
                ),
            },
            "0.5 tokens, 1 checkpoint",
            bool((~grown).sum() <= 1),
        ),
        Claim(
            "C11",
            "without long demonstrations (p_cot = 0) RL stays at chance",
            "greedy accuracy 0.5 from every checkpoint",
            {name: by_member(values) for name, values in control.items()},
            "0.1",
            bool((abs(accuracy.sel(p_cot=0) - 0.5) <= 0.1).all()),
        ),
        votes(before, after),
    ]


def votes(before: xr.Dataset, after: xr.Dataset) -> Claim:
    """pass@4 and maj@4 at temperature 1, where the chain is learned before RL."""
    late = before["parent_step"].values[-1]
    measured, gaps = {}, []
    for stage, scores in (("before", before), ("after", after)):
        scores = scores.sel(p_cot=FREQUENT, parent_step=late)
        p_long = scores["t1/p_long"].clip(1e-6, 1 - 1e-6)
        for name, function in (("pass@4", pass_at_k), ("maj@4", majority_at_k)):
            value = scores[f"t1/{name}"]
            predicted = p_long.copy(data=function(p_long.values, 4))
            gaps.append(float(abs(value - predicted).max()))
            measured[f"{name} {stage}"] = by_member(value)
            measured[f"{name} {stage}, predicted"] = by_member(predicted)
    return Claim(
        "C2-votes",
        "pass@4 and maj@4 before and after RL are those of the ideal policy with the "
        "measured P(long)",
        f"the closed forms, at p_cot = {FREQUENT} from step {late}",
        measured,
        "0.05",
        max(gaps) <= 0.05,
    )


def figure(scores: xr.Dataset, num_bits: int) -> plt.Figure:
    before, after = scores.isel(step=0, drop=True), scores.isel(step=-1, drop=True)
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), sharey=True)
    right = before["t1/accuracy_long"]
    maps = (
        ("long samples right, before RL", right.where(before["t1/p_long"] >= 0.005)),
        ("P(long) at temperature 1, before RL", before["t1/p_long"]),
        ("greedy accuracy after RL", after["greedy/accuracy"]),
        (f"greedy length after RL / {num_bits}", after["greedy/length_mean"]),
    )
    for ax, (title, values) in zip(axes, maps, strict=True):
        scale = num_bits if "length" in title else 1
        draw_map(ax, values / scale)
        ax.set_title(title, loc="left", fontsize=9)
    axes[0].set_ylabel("p_cot")
    updates = int(scores["step"][-1])
    figure.suptitle(
        f"{updates} updates of GRPO from checkpoints of next-token prediction, "
        f"parity of {num_bits} bits; each cell: lowest - highest seed"
    )
    figure.tight_layout()
    return figure


def draw_map(ax: Axes, values: xr.DataArray) -> None:
    """Mean over seeds as colour, their range as text; empty: under 0.5% of samples."""
    mean = values.mean("seed").transpose("p_cot", "parent_step")
    ax.imshow(mean, vmin=0, vmax=1, cmap="cividis", aspect="auto", origin="lower")
    for (i, j), shade in np.ndenumerate(mean.values):
        seeds = values.isel(p_cot=i, parent_step=j)
        if np.isfinite(shade):
            text = f"{float(seeds.min()):.2f} - {float(seeds.max()):.2f}"
            color = "white" if shade < 0.6 else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color=color)
    ax.set_xticks(range(mean.sizes["parent_step"]), mean["parent_step"].values)
    ax.set_yticks(range(mean.sizes["p_cot"]), [f"{p:g}" for p in mean["p_cot"].values])
    ax.set_xlabel("pre-training step that RL starts from")
    ax.grid(visible=False)
