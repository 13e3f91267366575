"""Long chains that are rare: p_cot = c d^-kappa at growing d (Q4).

Command    parity-jax run --config=experiments/q4_long_and_rare.py \
               --workdir=runs/q4_long_and_rare [--config.scale=paper]
Device     2 CPU cores, about 24 minutes, as far as d = 48; paper scale: one GPU,
           to 512, not run
Expected   what costs is to learn the chain, not to find it: sequences of pre-training
           grow like a power of d over p_cot, so by a further power kappa if p_cot falls
           like d^-kappa (a chain is learned from long demonstrations alone), while
           updates of RL grow at most like ln((1 - p_cot) / (2 p_cot))
Figure     beyond the paper (open question 4 of its reviews); its theory asks for
           p_cot = Omega(d^-kappa). All sizes are ours

Evaluations bracket when a chain is learned; fits take the brackets, and members that do
not get there within their budget as that.
"""

from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, choose, finish
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator

from parity_jax.analysis import Answer, Check, Claim, Results, first_step
from parity_jax.analysis.fits import Fit, interval_fit, reached
from parity_jax.analysis.overlays import overlay, overlay_fit
from parity_jax.analysis.plots import CYCLE, INK
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import TransformerConfig, mistral
from parity_jax.stages import PolicyGradientConfig, PretrainConfig, RolloutConfig
from parity_jax.tasks import ParityConfig
from parity_jax.theory import updates_in_log_odds

P_COT, KAPPAS = 0.25, (0.0, 0.5, 1.0)  # p_cot at the smallest d, and how it falls
LEARNED, SOLVED = 0.95, 0.99  # of long samples; of greedy answers after RL


class Scale(NamedTuple):
    """What a scale sets."""

    model: TransformerConfig
    batch_size: int
    num_steps: dict[int, int]  # of pre-training, by number of bits
    num_prompts: int  # of an update
    num_updates: int
    seeds: tuple[int, ...] = (0, 1)


SCALES = {
    "cpu": Scale(
        SMALL,
        64,
        {16: 800, 24: 1200, 32: 1600, 48: 2000},
        num_prompts=32,
        num_updates=40,
    ),
    "paper": Scale(
        mistral(2, 256),
        256,
        {16: 2000, 32: 4000, 64: 10_000, 128: 20_000, 256: 40_000, 512: 50_000},
        num_prompts=64,
        num_updates=200,
        seeds=(0, 1, 2),
    ),
}


def shares_at(num_bits: int, least: int) -> tuple[float, ...]:
    """p_cot at d for every kappa, without repeats."""
    shares = [round(P_COT * (num_bits / least) ** -kappa, 6) for kappa in KAPPAS]
    return tuple(dict.fromkeys(shares))


def get_config(scale: str = "cpu") -> Experiment:
    size = choose(SCALES, scale)
    rollout = RolloutConfig(size.num_prompts, num_generations=8)
    runs = {}
    for num_bits, num_steps in size.num_steps.items():
        name, task = f"d{num_bits}", ParityConfig(num_bits)
        axes: dict[str, Any] = {"p_cot": shares_at(num_bits, min(size.num_steps))}
        runs[name] = RunConfig(
            stage=PretrainConfig(size.batch_size),
            hypers=Hypers(learning_rate=1e-3),
            num_steps=num_steps,
            log_every=num_steps // 20,
            eval_every=num_steps // 20,
            axes=FrozenDict(axes),
            task=task,
        )
        runs[f"{name}_grpo"] = RunConfig(
            stage=PolicyGradientConfig(rollout=rollout, loss_type="dapo"),
            hypers=Hypers(learning_rate=2e-4),
            num_steps=size.num_updates,
            log_every=size.num_updates // 4,
            eval_every=2,
            parent=name,
            axes=FrozenDict(axes),
            task=task,
        )
    return Experiment(
        model=size.model,
        axes=FrozenDict({"seed": size.seeds}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(256, (1.0,), num_samples=4),
    )


def measured(results: Results) -> xr.Dataset:
    """Over (bits, kappa, seed): sequences to a learned chain, and updates of RL.

    low, high   brackets of the sequences after which long samples are right
    updates     until 99% of greedy answers are right, NaN if they never are
    budget      updates that were made
    p_cot       by bits and kappa
    """
    sizes = {
        name: run.task.num_bits
        for name, run in results.runs.items()
        if not run.parent.path
    }
    least, per_d = min(sizes.values()), {}
    for name, num_bits in sizes.items():
        learned = reached(results[name]["t1/accuracy_long"], LEARNED)
        greedy = results[f"{name}_grpo"]["greedy/accuracy"]
        learned["updates"] = first_step(greedy >= SOLVED)
        learned["budget"] = greedy["step"][-1] + 0 * learned["updates"].fillna(0)
        shares = np.array([P_COT * (num_bits / least) ** -k for k in KAPPAS])
        chosen = learned.sel(p_cot=xr.DataArray(shares, dims="kappa"), method="nearest")
        chosen = chosen.drop_vars("p_cot").assign_coords(kappa=list(KAPPAS))
        per_d[num_bits] = chosen.assign(p_cot=("kappa", shares))
    return xr.concat(per_d.values(), xr.Variable("bits", list(per_d)))


def fits(found: xr.Dataset) -> dict[float, Fit]:
    """Power of d of the sequences to a learned chain, for every kappa."""
    lines = {}
    for kappa in KAPPAS:
        at = found.sel(kappa=kappa)
        x = np.log(at["bits"]) + 0 * at["low"]
        lines[kappa] = interval_fit(x, at["low"], at["high"])
    return lines


def claims(results: Results) -> list[Claim]:
    """Powers of d of both costs."""
    found = measured(results)
    lines, updates = fits(found), found["updates"].mean("seed", skipna=False)
    powers = {f"kappa={kappa:g}": [*line.slope] for kappa, line in lines.items()}
    extra = {
        f"kappa={kappa:g}": line.slope[0] - lines[0.0].slope[0]
        for kappa, line in lines.items()
        if kappa
    }
    grown = updates / updates.isel(bits=0, kappa=0, drop=True)
    bound = xr.apply_ufunc(updates_in_log_odds, found["p_cot"])
    bound = bound / float(bound.isel(bits=0, kappa=0))
    seen = {
        "powers of d [value, low, high]": powers,
        "not learned within the budget": int(np.isinf(found["high"]).sum()),
    }
    rare = {
        f"further power, {name}": Check.within(value, kappa, 0.5)
        for (name, value), kappa in zip(extra.items(), KAPPAS[1:], strict=True)
    }
    ends = [results[name]["greedy/accuracy"] for name in results if "_grpo" in name]
    needed = np.concatenate([first_step(end >= SOLVED).values.ravel() for end in ends])
    seen["members"] = needed.size
    unsolved = Check.equal(int(np.isnan(needed).sum()), 0)
    return [
        Claim.of("Q4", seen=seen, **{"members that are not solved": unsolved}),
        Claim.of("Q4-learn", seen=powers, **rare),
        Claim.of(
            "Q4-find",
            seen={"updates": found["updates"]},
            grown=Check.at_most(grown, 1.5 * bound),
        ),
    ]


def answer(results: Results) -> Answer:
    """The powers of d, and the updates at the largest d."""
    found, lines = measured(results), fits(measured(results))
    powers = ", ".join(f"{k:g}: {line.slope[0]:.1f}" for k, line in lines.items())
    end = found.isel(bits=-1)
    needed = end["updates"].mean("seed", skipna=False).values
    updates = ", ".join("no number of" if np.isnan(x) else f"{x:.0f}" for x in needed)
    rarest = float(end["p_cot"].min())
    learned = ", ".join(f"{x / 1e3:.0f}" for x in end["high"].mean("seed").values)
    return Answer(
        "How small may p_cot be at large d?",
        f"Sequences to learn the chain grow as d to the power (by kappa) {powers}; at "
        f"d = {int(end['bits'])}, p_cot down to {rarest:.3f}, they are {learned} "
        f"thousand, and RL then takes {updates} updates.",
    )


def figure(results: Results) -> plt.Figure:
    """Sequences to a learned chain over d and over 1 / p_cot; updates of RL over d."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    found = measured(results)
    draw_learning(axes[0], found)
    draw_long_seen(axes[1], found)
    draw_updates(axes[2], found)
    drawn = found["low"].notnull().any()
    for ax in axes[:2] if drawn else ():
        ax.set_yscale("log")
    for ax in axes:
        ax.minorticks_off()
        ax.set_xticks(found["bits"].values, found["bits"].values)
    for ax in axes[:2] if drawn else ():
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(EngFormatter())
    figure.suptitle("Long and rare: p_cot = c d^-kappa")
    return figure


def draw_brackets(
    ax: Axes, found: xr.Dataset, weight: xr.DataArray | float, shift: float = 0.015
) -> None:
    """The end of every member's bracket, open where the budget was not enough."""
    for i, (color, kappa) in enumerate(zip(CYCLE, KAPPAS, strict=False)):
        at = (
            (found[["low", "high"]] * weight).sel(kappa=kappa).transpose("bits", "seed")
        )
        x = at["bits"] * (1 + shift * (i - 1))
        there = np.isfinite(at["high"])
        ax.plot(x, at["high"].where(there), "o", color=color, ms=5, alpha=0.7)
        ax.plot(x, at["low"].where(~there), "^", color=color, ms=8, mfc="none")
        ax.plot([], [], "o", color=color, label=f"kappa = {kappa:g}")


def draw_learning(ax: Axes, found: xr.Dataset) -> None:
    """Sequences until long samples are right, fits dashed."""
    draw_brackets(ax, found, 1.0)
    d = np.geomspace(float(found["bits"].min()), float(found["bits"].max()), 50)
    for color, (kappa, line) in zip(CYCLE, fits(found).items(), strict=False):
        y = np.exp(line.intercept + line.slope[0] * np.log(d))
        overlay_fit(ax, d, y, f"d^{line.slope[0]:.1f} at kappa = {kappa:g}", color)
    title = f"Sequences to {LEARNED:.0%} right long samples"
    xlabel = "bits d (open: not there after so many)"
    finish(ax, title, xlabel, "sequences", ncols=2, xscale="log")


def draw_long_seen(ax: Axes, found: xr.Dataset) -> None:
    """The same, counted in long demonstrations: one curve in theory."""
    draw_brackets(ax, found, found["p_cot"])
    line = fits(found)[0.0]
    d = np.geomspace(float(found["bits"].min()), float(found["bits"].max()), 50)
    y = P_COT * np.exp(line.intercept + line.slope[0] * np.log(d))
    overlay_fit(ax, d, y, "kappa = 0; all alike if only long ones teach", INK)
    title = "Long demonstrations among them"
    finish(ax, title, "bits d", "long demonstrations", xscale="log")


def draw_updates(ax: Axes, found: xr.Dataset) -> None:
    """Updates of GRPO to 99% greedy accuracy, open: more; growth in ln odds dashed."""
    for color, kappa in zip(CYCLE, KAPPAS, strict=False):
        at = found.sel(kappa=kappa).transpose("bits", "seed", ...)
        ax.plot(at["bits"], at["updates"], "o", color=color, ms=5, alpha=0.7)
        more = at["budget"].where(at["updates"].isnull())
        ax.plot(at["bits"], more, "^", color=color, ms=8, mfc="none")
        scale = float(found["updates"].isel(bits=0).mean())
        steps = updates_in_log_odds(at["p_cot"].values)
        label = f"ln odds, kappa = {kappa:g}"
        overlay(ax, at["bits"], scale * steps / steps[0], label, color)
    title = f"GRPO to {SOLVED:.0%} greedy accuracy"
    xlabel = "bits d (open: not there after so many)"
    finish(ax, title, xlabel, "updates", xscale="log", ylim=(0, None))
