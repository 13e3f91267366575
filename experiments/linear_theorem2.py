"""Theorem 2 on the linear model: STaR doubles the odds of a long answer every round.

Command    parity-jax run --config=experiments/linear_theorem2.py \
               --workdir=runs/linear_theorem2
Device     2 CPU cores, about 4 minutes
Expected   the share q_n of long answers after n rounds is close to p_n = 2^n p / (1 +
           (2^n - 1) p); greedy decoding becomes the right chain after exactly n* =
           max(0, floor(log2((1-p)/(2p))) + 1) rounds where the gate's margin is clear.
Figure     Theorem 2 of the paper (grid, d, sample sizes and ridge are ours)
"""

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import FAST_SGD, all_at_most, finish, linear_pretrain

from parity_jax import theory
from parity_jax.analysis import Check, Claim, Results, first_step
from parity_jax.analysis.overlays import overlay, overlay_star
from parity_jax.analysis.plots import CYCLE, INK, dots, end_of, label_line
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import LinearConfig
from parity_jax.population import PopulationConfig
from parity_jax.stages import LinearStarConfig, RolloutConfig
from parity_jax.tasks import ParityConfig

# In the middle between two ties (0.02162 .. 0.26120), nearer to one, and above 1/3.
P_COT = (0.02162, 0.04232, 0.08123, 0.1, 0.15022, 0.2612, 0.4)
SIZES = {8: P_COT, 16: P_COT, 50: P_COT[-3:]}  # p_cot of each d
NUM_ROUNDS = 5
TICKS = (0.02, 0.05, 0.1, 0.2, 0.4)
CLEAR = 3.0  # a margin is clear at so many std over inputs: 99% are on one side


def get_config() -> Experiment:
    sgd = replace(FAST_SGD, batch_size=128)
    rollout = RolloutConfig(num_prompts=131072, num_generations=1, rewards=("cot",))
    runs = {}
    for d, p_cot in SIZES.items():
        shared: dict[str, Any] = dict(
            task=ParityConfig(d), axes=FrozenDict({"p_cot": p_cot})
        )
        runs[f"pretrain_d{d}"] = linear_pretrain(20, sgd, **shared)
        runs[f"star_d{d}"] = RunConfig(
            stage=LinearStarConfig(rollout, sgd, num_updates=6000),
            hypers=Hypers(ridge=1e-5),
            num_steps=NUM_ROUNDS,
            log_every=1,
            eval_every=1,
            parent=f"pretrain_d{d}",
            **shared,
        )
    return Experiment(
        model=LinearConfig(),
        axes=FrozenDict({"seed": (0, 1)}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(num_prompts=512, temperatures=(1.0,)),
        population=PopulationConfig(vmap_width=1),
    )


def star_runs(results: Results) -> dict[str, xr.Dataset]:
    """The rounds for every d."""
    return {f"d{d}": results[f"star_d{d}"] for d in SIZES}


def distance(run: xr.Dataset) -> xr.DataArray:
    """q_n - p_n: the share of right chains less the theorem's, by member and round."""
    p_n = xr.apply_ufunc(theory.star_p, run["p_cot"], run["step"])
    return run["exact/p_long"] - p_n


def rounds_to_greedy(run: xr.Dataset) -> xr.DataArray:
    """First round after which 99% of the inputs get the right chain, or NaN."""
    return first_step(run["exact/greedy_right"] >= 0.99)


def agreement(run: xr.Dataset) -> dict[str, Any]:
    """Rounds against n*; clear: the gate is on one side of all inputs until then."""
    rounds = rounds_to_greedy(run)
    n_star = xr.apply_ufunc(theory.star_rounds, run["p_cot"], vectorize=True)
    # a margin that is not a number is none that excuses
    near = abs(run["exact/margin_mean"]) <= CLEAR * run["exact/margin_std"]
    clear = (~near | (run["step"] > n_star)).all("step")
    agrees = rounds == n_star
    return {
        "clear members": int(clear.sum()),
        "members": int(clear.size),
        "clear members that need n* rounds": int((agrees & clear).sum()),
        "members that need n* rounds": int(agrees.sum()),
        "rounds": rounds,
        "n*": n_star,
        "clear": clear,
    }


def claims(results: Results) -> list[Claim]:
    """Theorem 2 at the largest distance over rounds, p_cot and seeds; n* exactly."""
    runs = star_runs(results)
    gaps = {name: abs(distance(run)) for name, run in runs.items()}
    found = {name: agreement(run) for name, run in runs.items()}
    clear = f"|mean margin| > {CLEAR:g} std over inputs up to round n*"
    rounds = {
        f"{name}, clear members that need n* rounds": Check.equal(
            x["clear members that need n* rounds"], max(1, x["clear members"])
        )
        for name, x in found.items()
    }
    return [
        Claim.of("T2-trajectory", **all_at_most(gaps, 0.03)),
        Claim.of("T2-rounds", seen=found | {"what is clear": clear}, **rounds),
    ]


def figure(results: Results) -> plt.Figure:
    """Trajectories, their distance to the theorem, rounds to greedy decoding."""
    runs = star_runs(results)
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained")
    left, middle, right = axes
    for color, p in zip(CYCLE, runs["d16"]["p_cot"].values[::2], strict=False):
        values = runs["d16"]["exact/p_long"].sel(p_cot=p)
        dots(left, values["step"], values, color, marker=".", ms=5)
        overlay_star(left, float(p), NUM_ROUNDS, color=color)
        label_line(left, NUM_ROUNDS, end_of(values), f"{p:.2g}", color)
    p_cot = np.geomspace(0.015, 0.5, 1000)
    n_star = [theory.star_rounds(p) for p in p_cot]
    overlay(right, p_cot, n_star, "n*, every round refitted to its optimum")
    for i, (name, run) in enumerate(runs.items()):
        gap, label, color = distance(run), f"d = {name[1:]}", CYCLE[i]
        lines = gap.stack(member=("p_cot", "seed"))
        middle.plot(gap["step"], lines, color=color, lw=0.6, alpha=0.5)
        largest = f"{label}: largest {float(abs(gap).max()):.3f}"
        middle.plot([], [], color=color, label=largest)
        aside = run["p_cot"] * (0.97 + 0.03 * i)
        dots(right, aside, rounds_to_greedy(run), color, ms=4)
        right.plot([], [], "o", ms=4, color=color, label=label)
    middle.axhline(0, color=INK, lw=0.6)
    title = "Trajectories, d = 16 (by p_cot)"
    finish(left, title, "STaR round", "P(right chain)", num=1, ylim=(0, 1))
    title, ylabel = "Distance to the theorem", "q_n - p_n (every member)"
    finish(middle, title, "STaR round", ylabel, ncols=2)
    ylabel = "rounds until greedy is the right chain"
    finish(right, "Rounds to perfect greedy decoding", "p_cot", ylabel, xscale="log")
    right.set_xticks(TICKS, [f"{p:g}" for p in TICKS])
    right.set_xticks([], minor=True)
    return figure
