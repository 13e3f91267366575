"""Training sequences until greedy decoding is right, over the number of bits (C9).

Command    parity-jax run --config=experiments/c9_sample_complexity.py \
               --workdir=runs/c9_sample_complexity [--config.scale=paper]
Device     2 CPU cores, about 8 minutes; paper scale: one GPU
Expected   next-token prediction alone has to learn the parity of d bits: sequences grow
           exponentially in d; with GRPO after it only the chain has to be learned:
           sequences grow like a low power of d
Figure     the paper's sample complexity to 95% greedy accuracy (small d)
"""

import warnings
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, choose
from matplotlib.axes import Axes
from scipy import stats

from parity_jax.analysis import Check, Claim, Results
from parity_jax.analysis.overlays import overlay
from parity_jax.analysis.plots import ACCENT, BLUE, GREY, dots, label_line
from parity_jax.config import label_text
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import TransformerConfig, mistral
from parity_jax.stages import PolicyGradientConfig, PretrainConfig, RolloutConfig
from parity_jax.tasks import ParityConfig

TARGET = 0.95  # greedy accuracy, in two evaluations in a row
NUM_RESAMPLES = 2000  # of the members, for the intervals of the fits


class Scale(NamedTuple):
    """What a scale sets."""

    model: TransformerConfig
    batch_size: int
    num_steps: dict[int, int]  # of next-token prediction alone, by number of bits
    switches: tuple[int, ...]  # steps from which GRPO starts; the best one counts
    p_cot: tuple[float, ...]
    num_updates: int
    eval_every: int
    seeds: tuple[int, ...]


SCALES = {
    "cpu": Scale(
        model=SMALL,
        batch_size=64,
        num_steps={5: 600, 6: 800, 7: 2000, 8: 4000, 16: 900},
        switches=(300, 600),
        p_cot=(0.1, 0.2),
        num_updates=30,
        eval_every=100,
        seeds=(0, 1),
    ),
    "paper": Scale(
        model=mistral(2, 128),
        batch_size=256,
        num_steps={
            d: min(500 * 2 ** max(d - 4, 0), 50_000)
            for d in (*range(5, 14), 20, 30, 50)
        },
        switches=(250, 500),
        p_cot=(0.05, 0.1, 0.2),
        num_updates=100,
        eval_every=50,
        seeds=(0, 1, 2),
    ),
}


def get_config(scale: str = "cpu") -> Experiment:
    size = choose(SCALES, scale)
    rollout = RolloutConfig(num_prompts=32, num_generations=8)
    runs = {}
    for num_bits, num_steps in size.num_steps.items():
        name, task = f"d{num_bits}", ParityConfig(num_bits)
        runs[name] = RunConfig(
            stage=PretrainConfig(size.batch_size),
            hypers=Hypers(learning_rate=1e-3),
            num_steps=num_steps,
            log_every=size.eval_every,
            eval_every=size.eval_every,
            checkpoint_steps=size.switches,
            task=task,
        )
        runs[f"{name}_grpo"] = RunConfig(
            stage=PolicyGradientConfig(rollout=rollout, loss_type="dapo"),
            hypers=Hypers(learning_rate=2e-4),
            num_steps=size.num_updates,
            log_every=10,
            eval_every=2,
            parent=name,
            axes=FrozenDict({"parent_step": size.switches}),
            task=task,
        )
    return Experiment(
        model=size.model,
        axes=FrozenDict({"p_cot": size.p_cot, "seed": size.seeds}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(256, (1.0,)),
    )


def sequences_used(results: Results) -> xr.Dataset:
    """Sequences to the target over (bits, p_cot, seed); NaN where it is not reached.

    alone: next-token prediction; with_rl: with GRPO, from the best of the checkpoints;
    budget: what next-token prediction alone was given.
    """
    per_d = {
        run.task.num_bits: xr.Dataset(
            {
                "alone": reached(results[name]),
                "with_rl": reached(results[f"{name}_grpo"]).min("parent_step"),
                "budget": results[name]["sequences"].max(),
            }
        )
        for name, run in results.runs.items()
        if not run.parent.path
    }
    return xr.concat(per_d.values(), xr.Variable("bits", list(per_d)))


def reached(scores: xr.Dataset) -> xr.DataArray:
    """Sequences until the first of two evaluations in a row at the target, else NaN."""
    good = scores["greedy/accuracy"] >= TARGET
    twice = good & good.shift(step=-1, fill_value=False)
    return scores["sequences"].where(twice).min("step")


class Fit(NamedTuple):
    """A line of ln(sequences) over d (exponential) or ln(d) (power of d)."""

    intercept: float
    slope: np.ndarray  # and the low and high end of its 95% interval
    residual: float  # standard deviation of ln(sequences) about the line


def fit(used: xr.DataArray, scale_of_d: np.ufunc) -> Fit:
    """Least squares over the members that got there; NaN below 3 values of d."""
    members = used.where(used > 0).stack(member=used.dims).dropna("member")
    x, y = scale_of_d(members["bits"].values), np.log(members.values)
    if len(set(x)) < 3:
        return Fit(np.nan, np.full(3, np.nan), np.nan)
    slope, intercept = np.polyfit(x, y, 1)
    with warnings.catch_warnings(action="ignore"):  # of draws of a single d: NaN
        slopes = stats.bootstrap(
            (x, y),
            lambda x, y: np.polyfit(x, y, 1)[0] if np.ptp(x) else np.nan,
            n_resamples=NUM_RESAMPLES,
            paired=True,
            vectorized=False,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).bootstrap_distribution
    interval = np.nanquantile(slopes, [0.025, 0.975])
    residual = np.std(y - slope * x - intercept, ddof=2)
    return Fit(intercept, np.array([slope, *interval]), residual)


def growth(used: xr.DataArray) -> dict[str, dict[str, Any]]:
    """Both fits by p_cot: [value, low, high], and the residuals of ln(sequences)."""
    found = {}
    for p in used["p_cot"].values.tolist():
        exponential, power = (fit(used.sel(p_cot=p), x) for x in (np.positive, np.log))
        found[label_text({"p_cot": p})] = {
            "factor per bit": np.exp(exponential.slope),
            "power of d": power.slope,
            "residual, exponential": exponential.residual,
            "residual, power": power.residual,
        }
    return found


def claims(results: Results) -> list[Claim]:
    """Growth over the d that reach the target; at the largest d who reaches it."""
    used = sequences_used(results)
    alone, with_rl = growth(used["alone"]), growth(used["with_rl"])
    factors = [found["factor per bit"][1] for found in alone.values()]
    powers = [found["power of d"][2] for found in with_rl.values()]
    low = {"low end of factor per bit": Check.above(factors, 2)}
    high = {"high end of power of d": Check.below(powers, 3)}
    largest = used.isel(bits=-1)
    ratio = largest["budget"] / largest["with_rl"]
    at_largest = {
        "reached alone": Check.equal(int(largest["alone"].count()), 0),
        "budget / needed with GRPO": Check.above(ratio, 1),
    }
    return [
        Claim.of("C9-alone", seen=alone, **low),
        Claim.of("C9-rl", seen=with_rl, **high),
        Claim.of("C9", seen={"d": int(largest["bits"])}, **at_largest),
    ]


def draw_fitted(
    ax: Axes, used: xr.DataArray, color: str, label: str, scale_of_d: np.ufunc
) -> None:
    """A dot for every member, the fitted line dashed."""
    dots(ax, used["bits"], used, color, ms=4, alpha=1)
    known = used.dropna("bits", how="all")
    if known.size:
        first, end = (int(known["bits"][i]) for i in (0, -1))
        fitted, d = fit(used, scale_of_d), np.linspace(first, end, 50)
        line = np.exp(fitted.intercept + fitted.slope[0] * scale_of_d(d))
        overlay(ax, d, line, "fit", color)
        y = float(known.isel(bits=-1).max())
        label_line(ax, end, y, label, color, xytext=(8, -4))


def figure(results: Results) -> plt.Figure:
    """Sequences over d for each p_cot, fits dashed; triangles: a budget not enough."""
    used = sequences_used(results)
    shares = used["p_cot"].values
    figure, axes = plt.subplots(
        1, len(shares), figsize=(4.2 * len(shares), 3.6), sharey=True, squeeze=False
    )
    for ax, p_cot in zip(axes[0], shares, strict=True):
        at = used.sel(p_cot=p_cot)
        draw_fitted(ax, at["alone"], BLUE, "next-token\nprediction alone", np.positive)
        draw_fitted(ax, at["with_rl"], ACCENT, "with GRPO", np.log)
        missing = at["alone"].isnull().any("seed")
        ax.plot(used["bits"], at["budget"].where(missing), "^", color=GREY, ms=7)
        ax.set(xlabel="bits d", title=f"p_cot = {p_cot:g}", yscale="log")
        ax.set_ylabel(
            f"sequences to {TARGET:.0%} greedy accuracy\n"
            "(triangle: some seed not there alone)"
        )
    figure.tight_layout()
    return figure
