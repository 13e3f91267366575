"""Many valid chains of different length and quality (Q3).

Command    parity-jax run --config=experiments/q3_many_chains.py \
               --workdir=runs/q3_many_chains
Device     2 CPU cores, 18 minutes beside other work
Expected   the blind coin says where the greedy threshold is: at 1/3 for every chain
           whose next token is known (leap-2, repeated), near 0.60 for one that shows
           the bits in a random order announced by nothing; with full, leap-2 and leap-4
           chains in one mixture STaR keeps the ratio of the right ones, 1/|y| prefers
           the short one, and a price between their critical ones lets the full chain
           shrink and the leap-2 chain grow
Figure     beyond the paper (open question 3 of its reviews); all sizes are ours

A random order has no known next token: after x_i the bits that are left split the mass
of going on, and only the larger part stands against EOS (`theory.shuffled_long`).
"""

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, finish, greedy_crossing
from matplotlib.axes import Axes

from parity_jax import theory
from parity_jax.analysis import Answer, Check, Claim, Results, last
from parity_jax.analysis.overlays import overlay
from parity_jax.analysis.plots import (
    ACCENT,
    BLUE,
    CYCLE,
    GREEN,
    INK,
    dots,
    draw_members,
    end_of,
    label_line,
)
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.optim import OptimizerConfig
from parity_jax.stages import (
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    StarConfig,
    dr_grpo,
)
from parity_jax.tasks import ChainsConfig
from parity_jax.tasks.chains import Chain

NUM_BITS, P_COT = 10, 0.3
SURE = (0.25, 0.3, 0.36, 0.45)  # p_cot around 1/3
THRESHOLDS: dict[Chain, tuple[float, ...]] = {
    "leap2": SURE,
    "repeated": SURE,
    "shuffled": (0.4, 0.5, 0.57, 0.63, 0.75),
}
MIXED: tuple[Chain, ...] = ("full", "leap2", "leap4")
PRICE = 0.9  # between the critical prices of full and of leap-2 chains
ROLLOUT = RolloutConfig(num_prompts=32, num_generations=8)
NORMS = {
    "token": ("per token", PolicyGradientConfig(rollout=ROLLOUT, loss_type="dapo")),
    "response": ("per response, 1/|y|", PolicyGradientConfig(rollout=ROLLOUT)),
    "constant": ("constant", dr_grpo(rollout=ROLLOUT)),
}


def get_config() -> Experiment:
    num_steps = 1000
    alone = RunConfig(
        stage=PretrainConfig(64, OptimizerConfig(decay_steps=num_steps)),
        hypers=Hypers(learning_rate=1e-3),
        num_steps=num_steps,
        log_every=num_steps // 10,
        eval_every=num_steps // 2,
    )
    runs = {}
    for chain, p_cot in THRESHOLDS.items():
        task = ChainsConfig(NUM_BITS, (chain,), (1.0,))
        axes: dict[str, Any] = {"p_cot": p_cot}
        runs[chain] = replace(alone, task=task, axes=FrozenDict(axes))
    deep = replace(SMALL, depth=4)  # 2 blocks may miss the steps of a leap
    runs["mixed"] = replace(
        alone,
        stage=PretrainConfig(128, OptimizerConfig(decay_steps=2000)),
        hypers=Hypers(p_cot=P_COT, learning_rate=1e-3),
        num_steps=2000,
        model=deep,
    )
    updates = RunConfig(
        hypers=Hypers(p_cot=P_COT, learning_rate=1e-4),
        num_steps=40,
        log_every=10,
        eval_every=5,
        parent="mixed",
        model=deep,
    )
    for name, (_, stage) in NORMS.items():
        runs[name] = replace(updates, stage=stage)
    priced = replace(updates.hypers, length_price=PRICE)
    runs["priced"] = replace(updates, stage=dr_grpo(rollout=ROLLOUT), hypers=priced)
    single = RolloutConfig(num_prompts=3072, num_generations=1)
    runs["star"] = replace(
        updates,
        stage=StarConfig(rollout=single, batch_size=128, num_epochs=3, decay=True),
        hypers=Hypers(p_cot=P_COT, learning_rate=3e-4),
        num_steps=4,
        log_every=1,
        eval_every=1,
    )
    return Experiment(
        task=ChainsConfig(NUM_BITS, MIXED, (1.0,) * len(MIXED)),
        model=SMALL,
        axes=FrozenDict({"seed": (0, 1, 2)}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(1024, (1.0,), num_samples=4),
    )


def expected_long(chain: Chain, p_cot: float, num_bits: int) -> float:
    """Share of prompts on which the blind coin decodes long."""
    if chain == "shuffled":
        return float(theory.shuffled_long(p_cot, num_bits))
    return float(p_cot > theory.greedy_threshold())


def expected_crossing(chain: Chain, end: xr.Dataset, num_bits: int) -> float:
    """Where half of the prompts decode long, interpolated as what is measured."""
    p = end["p_cot"]
    long = [expected_long(chain, x, num_bits) for x in p.values.tolist()]
    return float(
        greedy_crossing(xr.Dataset({"greedy/p_long": ("p_cot", long)}, {"p_cot": p}))
    )


def full_share(run: xr.Dataset) -> xr.DataArray:
    """Right full chains among right full and leap-2 chains, over the steps."""
    full, leap = (
        run[f"t1/share_{chain}"] * run[f"t1/right_{chain}"].fillna(0)
        for chain in MIXED[:2]
    )
    return full / (full + leap)


def change(values: xr.DataArray) -> xr.DataArray:
    """From the first evaluation to the last."""
    return values.isel(step=-1, drop=True) - values.isel(step=0, drop=True)


def claims(results: Results) -> list[Claim]:
    """Thresholds of each kind; which chain every algorithm makes of the mixture."""
    num_bits, seen, checks = results.experiment.task.num_bits, {}, {}
    for chain in THRESHOLDS:
        end = last(results[chain])
        crossing, where = greedy_crossing(end), expected_crossing(chain, end, num_bits)
        seen[f"{chain}, of each seed"] = crossing
        checks[chain] = Check.within(crossing.mean(skipna=False), where, 0.04)
    shift = {name: change(full_share(results[name])) for name in [*NORMS, "star"]}
    before, star = last(results["mixed"]), shift["star"]
    priced = {c: change(results["priced"][f"t1/share_{c}"]) for c in MIXED}
    right = {c: before[f"t1/right_{c}"] for c in MIXED}
    return [
        Claim.of("Q3", seen=seen, **checks),
        Claim.of(
            "Q3-star", seen=right, shift=Check.within(star.mean(skipna=False), 0, 0.1)
        ),
        Claim.of(
            "Q3-response",
            seen={name: each for name, each in shift.items() if name != "response"},
            shift=Check.below(shift["response"].mean(skipna=False), 0),
        ),
        Claim.of(
            "Q3-price",
            seen={
                f"share of {c}": last(results["priced"])[f"t1/share_{c}"] for c in MIXED
            },
            full=Check.below(priced["full"], 0),
            leap2=Check.above(priced["leap2"], 0),
        ),
    ]


def answer(results: Results) -> Answer:
    """Where the threshold is for each kind, and what 1/|y| chooses."""
    crossing = {
        c: float(greedy_crossing(last(results[c])).mean(skipna=False))
        for c in THRESHOLDS
    }
    said = ", ".join(f"{c} {x:.2f}" for c, x in crossing.items())
    shift = {
        n: float(change(full_share(results[n])).mean(skipna=False))
        for n in (*NORMS, "star")
    }
    kept = ", ".join(f"{n} {x:+.2f}" for n, x in shift.items())
    return Answer(
        "Does the two-component mixture capture many chains; where is the threshold?",
        f"The greedy threshold by kind of chain is {said}; among right full and leap-2 "
        f"chains the share of full ones changes by {kept}.",
    )


def figure(results: Results) -> plt.Figure:
    """Greedy decoding over p_cot, shares of the kinds, and full against leap-2."""
    figure, axes = plt.subplots(1, 4, figsize=(16, 4), layout="constrained")
    draw_thresholds(axes[0], results)
    draw_shares(axes[1], results)
    draw_ratio(axes[2], results)
    draw_priced(axes[3], results)
    figure.suptitle(f"Many chains, parity of {results.experiment.task.num_bits} bits")
    return figure


def draw_thresholds(ax: Axes, results: Results) -> None:
    """Share of greedy answers that are long over p_cot, the blind coin's dashed."""
    num_bits, p = results.experiment.task.num_bits, np.linspace(0.25, 0.75, 201)
    for color, chain in zip(CYCLE, THRESHOLDS, strict=False):
        long = last(results[chain])["greedy/p_long"]
        dots(ax, long["p_cot"], long, color, ms=5)
        ax.plot([], [], "o", color=color, label=chain)
    for color, chain in ((BLUE, "leap2"), (GREEN, "shuffled")):
        predicted = [expected_long(chain, x, num_bits) for x in p]
        overlay(ax, p, predicted, f"blind coin, {chain}", color)
    title, ylabel = "Next-token prediction, greedy", "share of long answers"
    finish(ax, title, "p_cot", ylabel, ncols=2)


def draw_shares(ax: Axes, results: Results) -> None:
    """Shares of the kinds before RL and after each algorithm."""
    names = ["mixed", *NORMS, "star", "priced"]
    for color, chain in zip(CYCLE, MIXED, strict=False):
        for i, name in enumerate(names):
            share = last(results[name])[f"t1/share_{chain}"]
            ax.plot([i] * share.size, share, "o", color=color, ms=5, alpha=0.7)
        ax.plot([], [], "o", color=color, label=chain)
    ax.set_xticks(range(len(names)), ["before", *names[1:]], rotation=30)
    finish(ax, "Kinds of chains, temperature 1", "", "share of samples", ylim=(0, 1))
    ax.legend(fontsize=7, frameon=False)


def draw_ratio(ax: Axes, results: Results) -> None:
    """Right full chains among right full and leap-2 chains over P(long)."""
    for color, name in zip(CYCLE, (*NORMS, "star"), strict=False):
        share = full_share(results[name])
        x = share["step"] / float(share["step"][-1])
        draw_members(ax, share, color, NORMS.get(name, ("STaR", None))[0], x=x)
    start = end_of(full_share(results["mixed"]))
    overlay(ax, [0, 1], [start, start], "STaR keeps the ratio", INK)
    title, xlabel = "Full against leap-2 chains", "share of the updates or rounds"
    finish(ax, title, xlabel, "full / (full + leap-2)", ncols=2, ylim=(0, 1))


def draw_priced(ax: Axes, results: Results) -> None:
    """Shares under a price between the critical ones."""
    d, run = results.experiment.task.num_bits, results["priced"]
    for color, chain in zip((BLUE, ACCENT, GREEN), MIXED, strict=False):
        share = run[f"t1/share_{chain}"]
        draw_members(ax, share, color)
        label_line(ax, float(share["step"][-1]), end_of(share), chain, color)
    low, high = (float(theory.alpha_critical(d, long_len=n)) for n in (d, d // 2))
    title = f"Price {PRICE:g}; full turns at {low:.2f}, leap-2 at {high:.2f}"
    finish(ax, title, "update of Dr. GRPO", "share of samples", ylim=(0, 1))
