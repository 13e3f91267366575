"""Theorem 2 on the linear model: STaR doubles the odds of a long answer every round.

Command    python -m experiments.main --config=experiments/linear_theorem2.py \
               --workdir=runs/linear_theorem2
Device     2 CPU cores, about 4 minutes
Expected   the share q_n of long answers after n rounds is close to p_n = 2^n p / (1 +
           (2^n - 1) p); greedy decoding becomes the right chain after exactly n* =
           max(0, floor(log2((1-p)/(2p))) + 1) rounds where the gate's margin is clear.
Figure     Theorem 2 of the paper (grid, d, sample sizes and ridge are ours)
"""

from pathlib import Path

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
    LinearStarConfig,
    ParityConfig,
    PopulationConfig,
    RolloutConfig,
    RunConfig,
    SgdConfig,
    to_config_dict,
)
from parity_jax.overlays import overlay, overlay_star
from parity_jax.plots import CYCLE, INK, label_line, legend_below, save_figure
from parity_jax.results import Claim, load_metrics, write_claims
from parity_jax.types import Hypers

# In the middle between two ties (0.02162 .. 0.26120), nearer to one, and above 1/3.
P_COT = (0.02162, 0.04232, 0.08123, 0.1, 0.15022, 0.2612, 0.4)
SIZES = {8: P_COT, 16: P_COT, 50: P_COT[-3:]}  # p_cot of each d
NUM_ROUNDS = 5
TICKS = (0.02, 0.05, 0.1, 0.2, 0.4)
CLEAR = 3.0  # a margin is clear at so many std over inputs: 99% are on one side


def get_config() -> ConfigDict:
    sgd = SgdConfig(128, max_step_size=0.2, max_chain_step_size=2.0, average_power=3)
    runs = {}
    for d, p_cot in SIZES.items():
        grid: FrozenDict[str, tuple[float, ...]] = FrozenDict({"p_cot": p_cot})
        runs[f"pretrain_d{d}"] = RunConfig(
            stage=LinearPretrainConfig(sgd, num_updates=500),
            hypers=Hypers(ridge=1e-5),
            num_steps=20,
            log_every=20,
            eval_every=20,
            task=ParityConfig(num_bits=d),
            axes=grid,
        )
        runs[f"star_d{d}"] = RunConfig(
            stage=LinearStarConfig(
                RolloutConfig(num_prompts=131072, num_generations=1, rewards=("cot",)),
                sgd,
                num_updates=6000,
            ),
            hypers=Hypers(ridge=1e-5),
            num_steps=NUM_ROUNDS,
            log_every=1,
            eval_every=1,
            parent=f"pretrain_d{d}",
            task=ParityConfig(num_bits=d),
            axes=grid,
        )
    return to_config_dict(
        Experiment(
            model=LinearConfig(),
            axes=FrozenDict({"seed": (0, 1)}),
            runs=FrozenDict(runs),
            evaluate=EvaluateConfig(num_prompts=512, temperatures=(1.0,)),
            population=PopulationConfig(vmap_width=1),
        )
    )


def analyse(workdir: Path) -> None:
    runs = {f"d{d}": load_metrics(workdir / f"star_d{d}", "eval") for d in SIZES}
    write_claims(workdir, claims(runs))
    save_figure(figure(runs), workdir)


def p_n(run: xr.Dataset) -> xr.DataArray:
    """The theorem's share of long answers, by p_cot and round."""
    values = theory.star_p(run["p_cot"].values[:, None], run["step"].values[None])
    coords = {"p_cot": run["p_cot"], "step": run["step"]}
    return xr.DataArray(values, coords, ("p_cot", "step"))


def rounds_to_greedy(run: xr.Dataset) -> xr.DataArray:
    """First round after which 99% of the inputs get the right chain, or NaN."""
    right = run["exact/greedy_right"] >= 0.99
    return run["step"].where(right).min("step")


def n_star(run: xr.Dataset) -> xr.DataArray:
    """The theorem's number of rounds, by p_cot."""
    rounds = [theory.star_rounds(p) for p in run["p_cot"].values]
    return xr.DataArray(rounds, {"p_cot": run["p_cot"]}, ("p_cot",))


def has_clear_margins(run: xr.Dataset) -> xr.DataArray:
    """Members whose gate decides all inputs alike, by a distance, up to round n*."""
    clear = abs(run["exact/margin_mean"]) > CLEAR * run["exact/margin_std"]
    return (clear | (run["step"] > n_star(run))).all("step")


def rounds_agreement(run: xr.Dataset) -> dict[str, object]:
    rounds, clear, expected = rounds_to_greedy(run), has_clear_margins(run), n_star(run)
    agrees = rounds == expected
    by_p = {
        f"p_cot={p:g}": {
            "rounds": [int(r) for r in rounds.sel(p_cot=p).fillna(-1)],
            "n*": int(expected.sel(p_cot=p)),
            "clear": [bool(c) for c in clear.sel(p_cot=p)],
        }
        for p in run["p_cot"].values
    }
    return {
        "clear members": int(clear.sum()),
        "members": int(clear.size),
        "clear members that need n* rounds": int((agrees & clear).sum()),
        "members that need n* rounds": int(agrees.sum()),
        "by p_cot": by_p,
    }


def claims(runs: dict[str, xr.Dataset]) -> list[Claim]:
    gaps = {name: abs(run["exact/p_long"] - p_n(run)) for name, run in runs.items()}
    largest = {name: float(gap.max()) for name, gap in gaps.items()}
    agreement = {name: rounds_agreement(run) for name, run in runs.items()}
    return [
        Claim(
            "T2-trajectory",
            "the probability q_n of the right chain after n rounds follows p_n",
            "q_n - p_n = 0",
            {name: round(value, 4) for name, value in largest.items()},
            "0.03, the largest over rounds, p_cot and seeds",
            all(value <= 0.03 for value in largest.values()),
        ),
        Claim(
            "T2-rounds",
            "greedy decoding becomes perfect after exactly n* rounds",
            "n* = max(0, floor(log2((1-p)/(2p))) + 1)",
            agreement,
            f"exact where |mean margin| > {CLEAR:g} std over inputs up to round n*",
            all(
                a["clear members that need n* rounds"] == a["clear members"]
                for a in agreement.values()
            ),
        ),
    ]


def figure(runs: dict[str, xr.Dataset]) -> plt.Figure:
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained")
    draw_trajectories(axes[0], runs["d16"])
    draw_gap(axes[1], runs)
    draw_rounds(axes[2], runs)
    return figure


def draw_trajectories(ax: plt.Axes, run: xr.Dataset) -> None:
    for i, p in enumerate(run["p_cot"].values[::2]):
        color = CYCLE[i]
        values = run["exact/p_long"].sel(p_cot=p).transpose("step", "seed")
        ax.plot(run["step"], values, ".", color=color, ms=5, alpha=0.7)
        overlay_star(ax, float(p), NUM_ROUNDS, color=color)
        label_line(ax, NUM_ROUNDS, float(values[-1].mean()), f"{p:.2g}", color)
    legend_below(ax, 1)
    ax.set(xlabel="STaR round", ylabel="P(right chain)", ylim=(0, 1))
    ax.set_title("Trajectories, d = 16 (by p_cot)", loc="left")


def draw_gap(ax: plt.Axes, runs: dict[str, xr.Dataset]) -> None:
    for color, (name, run) in zip(CYCLE, runs.items(), strict=False):
        gap = (run["exact/p_long"] - p_n(run)).stack(member=("p_cot", "seed"))
        ax.plot(run["step"], gap, color=color, lw=0.6, alpha=0.5)
        largest = float(abs(gap).max())
        ax.plot([], [], color=color, label=f"d = {name[1:]}: largest {largest:.3f}")
    ax.axhline(0, color=INK, lw=0.6)
    legend_below(ax, ncols=2)
    ax.set(xlabel="STaR round", ylabel="q_n - p_n (every member)")
    ax.set_title("Distance to the theorem", loc="left")


def draw_rounds(ax: plt.Axes, runs: dict[str, xr.Dataset]) -> None:
    p_cot = np.geomspace(0.015, 0.5, 1000)
    expected = np.array([theory.star_rounds(p) for p in p_cot])
    overlay(ax, p_cot, expected, "n*, every round refitted to its optimum")
    for i, (name, run) in enumerate(runs.items()):
        rounds = rounds_to_greedy(run).transpose("p_cot", "seed")
        x = run["p_cot"].values * (0.97 + 0.03 * i)
        ax.plot(x, rounds, "o", ms=4, color=CYCLE[i], alpha=0.6)
        ax.plot([], [], "o", ms=4, color=CYCLE[i], label=f"d = {name[1:]}")
    ax.set(
        xscale="log", xlabel="p_cot", ylabel="rounds until greedy is the right chain"
    )
    ax.set_xticks(TICKS, [f"{p:g}" for p in TICKS])
    ax.set_xticks([], minor=True)
    ax.set_title("Rounds to perfect greedy decoding", loc="left")
    legend_below(ax)
