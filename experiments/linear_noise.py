"""Noisy chains on the linear model: the greedy threshold moves to 1 / (3 - 2q).

Command    python -m experiments.main --config=experiments/linear_noise.py \
               --workdir=runs/linear_noise
Device     2 CPU cores, about 2 minutes
Expected   flipping the intermediate tokens of long demonstrations with probability q
           (shown only, or propagating) moves the p_cot above which greedy decoding goes
           long from 1/3 to 1 / (3 - 2q); sampled accuracy is (1 + p_cot (1 - 2q)^n)
           / 2 with n = 2d - 2 (shown only) or d - 1 (propagating).
Figure     beyond the paper (question Q5: imperfect demonstrations)
"""

from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from ml_collections import ConfigDict

from parity_jax import theory
from parity_jax.config import (
    EvaluateConfig,
    Experiment,
    LinearConfig,
    LinearPretrainConfig,
    ParityConfig,
    PopulationConfig,
    RunConfig,
    SgdConfig,
    to_config_dict,
)
from parity_jax.overlays import overlay
from parity_jax.plots import CYCLE, INK, label_line, legend_below, save_figure
from parity_jax.results import Claim, load_metrics, read_json, write_claims
from parity_jax.types import Hypers

NUM_BITS = 8
NOISE = (0.0, 0.05, 0.1, 0.2)
P_COT = (0.25, 0.3, 0.32, 0.34, 0.36, 0.38, 0.4, 0.45)
Kind = Literal["emit", "step"]
KINDS: dict[Kind, str] = {"emit": "emit_noise", "step": "step_noise"}


def get_config() -> ConfigDict:
    stage = LinearPretrainConfig(  # small steps: chain labels are noisy too
        SgdConfig(64, max_step_size=0.2, max_chain_step_size=0.2, average_power=3),
        num_updates=500,
    )
    runs = {
        kind: RunConfig(
            stage=stage,
            hypers=Hypers(ridge=1e-5),
            num_steps=24,  # 12,000 updates of 64 examples
            log_every=24,
            eval_every=24,
            axes=FrozenDict({name: NOISE}),
        )
        for kind, name in KINDS.items()
    }
    return to_config_dict(
        Experiment(
            task=ParityConfig(num_bits=NUM_BITS),
            model=LinearConfig(),
            axes=FrozenDict({"p_cot": P_COT, "seed": (0, 1)}),
            runs=FrozenDict(runs),
            evaluate=EvaluateConfig(num_prompts=8192, temperatures=(1.0,)),
            population=PopulationConfig(vmap_width=8),
        )
    )


def analyse(workdir: Path) -> None:
    d = read_json(workdir / "config.json")["task"]["num_bits"]
    runs = {
        kind: load_metrics(workdir / kind, "eval").isel(step=-1).rename({name: "q"})
        for kind, name in KINDS.items()
    }
    write_claims(workdir, claims(runs, d))
    save_figure(figure(runs, d), workdir)


def crossing(run: xr.Dataset) -> xr.DataArray:
    """The p_cot at which the gate's mean margin crosses 0, interpolated; q by seed."""

    def zero(margin: np.ndarray) -> float:
        return float(np.interp(0.0, margin, run["p_cot"].values))

    margin = run["exact/margin_mean"]
    return xr.apply_ufunc(zero, margin, input_core_dims=[["p_cot"]], vectorize=True)


def accuracy_gap(run: xr.Dataset, kind: Kind, d: int) -> float:
    """Largest distance of sampled accuracy from the closed form."""
    accuracy = run["t1/accuracy"].transpose("q", "p_cot", "seed").values
    q, p_cot = run["q"].values[:, None], run["p_cot"].values[None]
    expected = theory.noisy_accuracy(p_cot, d, q, kind)
    return float(abs(accuracy - expected[..., None]).max())


def claims(runs: dict[Kind, xr.Dataset], d: int) -> list[Claim]:
    expected = {q: float(theory.greedy_threshold(q)) for q in NOISE}
    found = {kind: crossing(run) for kind, run in runs.items()}
    thresholds = {
        kind: {
            f"q={q:g}": [round(float(p), 4) for p in values.sel(q=q)] for q in expected
        }
        for kind, values in found.items()
    }
    distance = max(
        float(abs(values.sel(q=q) - p).max())
        for values in found.values()
        for q, p in expected.items()
    )
    gaps = {kind: accuracy_gap(run, kind, d) for kind, run in runs.items()}
    return [
        Claim(
            "noise-threshold",
            "the gate goes on for p_cot above 1 / (3 - 2q), for both kinds of noise",
            str({f"q={q:g}": round(p, 4) for q, p in expected.items()}),
            thresholds,
            "0.005 in p_cot, every seed",
            distance <= 0.005,
        ),
        Claim(
            "noise-accuracy",
            "sampled accuracy is (1 + p_cot (1 - 2q)^n) / 2",
            "distance 0",
            {kind: round(gap, 4) for kind, gap in gaps.items()},
            "0.025: 4 standard deviations of 8192 samples, and the ridge",
            all(gap <= 0.025 for gap in gaps.values()),
        ),
    ]


def figure(runs: dict[Kind, xr.Dataset], d: int) -> plt.Figure:
    figure, axes = plt.subplots(
        1, 3, figsize=(11.5, 3.6), layout="constrained", sharex=True
    )
    titles: dict[Kind, str] = {
        "emit": "Shown tokens flipped",
        "step": "Steps flipped (propagating)",
    }
    for ax, (kind, run) in zip(axes, runs.items(), strict=False):
        for color, q in zip(CYCLE, run["q"].values, strict=False):
            margin = run["exact/margin_mean"].sel(q=q).transpose("p_cot", "seed")
            ax.plot(run["p_cot"], margin, ".-", color=color, lw=0.8, ms=4)
            label_line(ax, P_COT[-1], float(margin[-1].mean()), f"q = {q:g}", color)
            ax.axvline(float(theory.greedy_threshold(q)), color=color, ls="--", lw=1.3)
        ax.axhline(0, color="k", lw=0.6)
        label = "theory (1 / (3 - 2q): calibrated gate, infinite data)"
        ax.plot([], [], "--", color=INK, label=label)
        legend_below(ax)
        ax.set(xlabel="p_cot", ylabel="gate logit after y_1 = x_1 (long above 0)")
        ax.set_title(f"{titles[kind]}, d = {d}", loc="left")
    ax, run = axes[2], runs["step"]
    for color, q in zip(CYCLE, run["q"].values, strict=False):
        accuracy = run["t1/accuracy"].sel(q=q).transpose("p_cot", "seed")
        ax.plot(run["p_cot"], accuracy, ".", color=color, ms=4)
        predicted = theory.noisy_accuracy(run["p_cot"].values, d, q, "step")
        overlay(ax, run["p_cot"], predicted, "infinite data, no ridge", color)
        label_line(ax, P_COT[-1], float(accuracy[-1].mean()), f"q = {q:g}", color)
    legend_below(ax, 1)
    ax.set(xlabel="p_cot", ylabel="accuracy at temperature 1")
    ax.set_title("Propagating flips, sampled", loc="left")
    return figure
