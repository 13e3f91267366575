"""How many unique prompts does RL need? (Q2)

Command    parity-jax run --config=experiments/q2_unique_prompts.py \
               --workdir=runs/q2_unique_prompts
Device     2 CPU cores, 15 minutes beside other work
Expected   very few: what RL learns is whether to go on after the first token, on all
           prompts alike, and only prompts whose parity is not x_1 pay for it; a pool of
           n prompts has one of these with probability 1 - 2^-n, so that 16 prompts
           teach as much as fresh ones, and one prompt teaches it or not
Figure     beyond the paper (open question 2 of its reviews); all sizes are ours

Pools are drawn once for a member and stay; evaluation is on fresh prompts. On a pool
that is too small answers can be memorised instead: then P(long) does not grow on fresh
prompts. If the chain broke first, long answers to fresh prompts would be wrong.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, finish
from matplotlib.axes import Axes

from parity_jax import theory
from parity_jax.analysis import Answer, Check, Claim, Results, last
from parity_jax.analysis.overlays import overlay
from parity_jax.analysis.plots import CYCLE, draw_members
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.optim import OptimizerConfig
from parity_jax.stages import (
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    StarConfig,
)
from parity_jax.tasks import ParityConfig

ENOUGH, FRESH = 16, 0  # prompts that suffice in theory; the pool of fresh ones
POOLS = {
    "grpo": (1, 4, 16, 64, 256, 1024, FRESH),
    "star": (1, 16, 256, FRESH),
}
SCORES = {
    "greedy/accuracy": "greedy accuracy",
    "t1/p_long": "P(long) at temperature 1",
    "t1/accuracy_long": "long samples right",
}


def get_config() -> Experiment:
    pretrain = RunConfig(
        stage=PretrainConfig(128, OptimizerConfig(decay_steps=600)),
        hypers=Hypers(learning_rate=1e-3),
        num_steps=600,
        log_every=60,
        eval_every=300,
    )
    updates = RunConfig(
        hypers=Hypers(learning_rate=2e-4),
        num_steps=60,
        log_every=10,
        eval_every=5,
        parent="pretrain",
    )
    runs = {"pretrain": pretrain}
    for pool in POOLS["grpo"]:
        rollout = RolloutConfig(32, 8, num_unique_prompts=pool)
        stage = PolicyGradientConfig(rollout=rollout, loss_type="dapo")
        runs[f"grpo_{pool}"] = replace(updates, stage=stage)
    for pool in POOLS["star"]:
        rollout = RolloutConfig(1536, 1, num_unique_prompts=pool)
        star = StarConfig(rollout=rollout, batch_size=128, num_epochs=2, decay=True)
        runs[f"star_{pool}"] = replace(updates, stage=star, num_steps=6, eval_every=1)
    return Experiment(
        task=ParityConfig(num_bits=12),
        model=SMALL,
        axes=FrozenDict({"p_cot": (0.1, 0.25), "seed": (0, 1, 2)}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(512, (1.0,)),
    )


def over_pools(results: Results, algorithm: str) -> xr.Dataset:
    """The last evaluation over the size of the pool, infinite for fresh prompts."""
    sizes = [pool or np.inf for pool in POOLS[algorithm]]
    ends = [last(results[f"{algorithm}_{pool}"]) for pool in POOLS[algorithm]]
    ends = [end.drop_vars("sequences", errors="ignore") for end in ends]
    return xr.concat(ends, xr.Variable("pool", sizes))


def num_solved(end: xr.Dataset) -> xr.DataArray:
    """Share of members that are right on 99% of fresh prompts, by pool."""
    accuracy = end["greedy/accuracy"]
    is_right = (accuracy >= 0.99).where(accuracy.notnull())
    return is_right.mean(["p_cot", "seed"], skipna=False)


def claims(results: Results) -> list[Claim]:
    """Who generalises from which pool; what small pools break."""
    found, chain, seen, same = {}, {}, {}, {}
    for algorithm in POOLS:
        end = over_pools(results, algorithm)
        enough = end.sel(pool=end["pool"] >= ENOUGH)
        accuracy, p_long = (
            end["greedy/accuracy"],
            enough["t1/p_long"].mean("seed", skipna=False),
        )
        found[algorithm] = Check.at_least(enough["greedy/accuracy"], 0.99)
        seen[f"{algorithm}, smaller pools"] = accuracy.sel(pool=end["pool"] < ENOUGH)
        same[algorithm] = Check.within(p_long, p_long.isel(pool=-1, drop=True), 0.15)
        chain[algorithm] = Check.at_least(end["t1/accuracy_long"], 0.95)
    one = num_solved(over_pools(results, "grpo")).isel(pool=0)
    return [
        Claim.of("Q2", seen=seen, **found),
        Claim.of("Q2-fresh", **same),
        Claim.of("Q2-one", solved=Check.below(one, 1)),
        Claim.of("Q2-chain", **chain),
    ]


def answer(results: Results) -> Answer:
    """The smallest pool from which every member generalises."""
    said = []
    for algorithm in POOLS:
        solved = num_solved(over_pools(results, algorithm))
        enough = np.logical_and.accumulate(solved.values[::-1] == 1)[::-1]
        pools = solved["pool"].values[enough]  # that and all larger ones
        is_pool = pools.size and np.isfinite(pools.min())  # else there are fresh ones
        least = f"{pools.min():g}" if is_pool else "no number of"
        said.append(f"{least} ({algorithm})")
    one = float(num_solved(over_pools(results, "grpo")).isel(pool=0))
    return Answer(
        "How many unique prompts does RL need?",
        f"Every member generalises from pools of {' and '.join(said)} prompts; from a "
        f"single one {one:.0%} of the members do.",
    )


def figure(results: Results) -> plt.Figure:
    """Greedy accuracy over updates for every pool; the end over the pool's size."""
    shares = results["pretrain"]["p_cot"].values
    figure, (top, bottom) = plt.subplots(2, 4, figsize=(15, 7.2), layout="constrained")
    panels = [(a, p) for a in POOLS for p in shares]
    for ax, (algorithm, p_cot) in zip(top, panels, strict=False):
        draw_training(ax, results, algorithm, float(p_cot))
    for ax, (score, name) in zip(bottom, SCORES.items(), strict=False):
        draw_end(ax, results, score, name)
    draw_solved(bottom[3], results)
    d = results.experiment.task.num_bits
    figure.suptitle(f"RL on fixed pools of prompts, parity of {d} bits, fresh prompts")
    return figure


def draw_training(ax: Axes, results: Results, algorithm: str, p_cot: float) -> None:
    """Greedy accuracy on fresh prompts, a colour for each pool."""
    pools = [pool for pool in POOLS[algorithm] if pool in (1, 4, ENOUGH, 256, FRESH)]
    for color, pool in zip(CYCLE, pools, strict=False):
        values = results[f"{algorithm}_{pool}"]["greedy/accuracy"].sel(p_cot=p_cot)
        draw_members(ax, values, color, str(pool or "fresh"))
    title = f"{algorithm}, p_cot = {p_cot:g}"
    unit = "update" if algorithm == "grpo" else "round"
    finish(ax, title, unit, "greedy accuracy", ncols=5, ylim=(0.4, 1.03))


def draw_end(ax: Axes, results: Results, score: str, name: str) -> None:
    """A score at the end over the size of the pool; every member."""
    for color, algorithm in zip(CYCLE, POOLS, strict=False):
        values = over_pools(results, algorithm)[score].stack(member=("p_cot", "seed"))
        x = np.where(np.isfinite(values["pool"]), values["pool"], 4096)
        ax.plot(
            x, values.transpose("pool", "member"), "o", color=color, ms=4, alpha=0.6
        )
        ax.plot(x, values.median("member"), color=color, label=algorithm)
    finish(ax, name, "unique prompts (4096: fresh)", name, xscale="log", ylim=(0, 1.05))


def draw_solved(ax: Axes, results: Results) -> None:
    """Share of members that generalise, and of pools that pay for going on."""
    for color, algorithm in zip(CYCLE, POOLS, strict=False):
        share = num_solved(over_pools(results, algorithm))
        x = np.where(np.isfinite(share["pool"]), share["pool"], 4096)
        ax.plot(x, share, "o", color=color, label=algorithm)
    n = np.arange(1, 33)
    overlay(ax, n, theory.pool_coverage(n), "a pool has a prompt of parity -x_1")
    title = "Members right on 99% of fresh prompts"
    finish(
        ax, title, "unique prompts", "share of members", xscale="log", ylim=(0, 1.05)
    )
