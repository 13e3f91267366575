"""Training sequences until greedy decoding is right, over the number of bits (C9).

Command    parity-jax run --config=experiments/c9_sample_complexity.py \
               --workdir=runs/c9_sample_complexity [--config.scale=paper]
Device     2 CPU cores, about 25 minutes; paper scale: one GPU
Expected   next-token prediction alone has to learn the parity of d bits: sequences grow
           exponentially in d; with GRPO after it only the chain has to be learned:
           sequences grow like a low power of d
Figure     the paper's sample complexity to 95% greedy accuracy (small d)

A target is reached somewhere between two evaluations, or beyond the budget: members
count by that interval in both fits, whether they got there or not.
"""

from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, choose
from matplotlib.axes import Axes

from parity_jax.analysis import Check, Claim, Results
from parity_jax.analysis.fits import Fit, interval_fit, reached
from parity_jax.analysis.overlays import overlay_fit
from parity_jax.analysis.plots import ACCENT, BLUE, dots, label_line
from parity_jax.config import label_text
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import TransformerConfig, mistral
from parity_jax.stages import PolicyGradientConfig, PretrainConfig, RolloutConfig
from parity_jax.tasks import ParityConfig

TARGET = 0.95  # greedy accuracy, in two evaluations in a row


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
        num_steps={5: 600, 6: 1500, 7: 3000, 8: 5000, 9: 3000}
        | dict.fromkeys((10, 11, 12, 13, 16), 800),
        switches=(150, 300, 600),
        p_cot=(0.1, 0.2),
        num_updates=30,
        eval_every=50,
        seeds=(0, 1, 2),
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
    """Between which numbers of sequences the target is reached, by bits and member.

    alone_low, alone_high    of next-token prediction alone
    with_rl_low, ..          with GRPO, from the checkpoint that needs the fewest
    """
    per_d = {}
    for name, run in results.runs.items():
        if run.parent.path:
            continue
        alone, with_rl = (
            reached(results[n]["greedy/accuracy"], TARGET)
            for n in (name, f"{name}_grpo")
        )
        parts = {"alone": alone, "with_rl": with_rl.min("parent_step")}
        per_d[run.task.num_bits] = xr.merge(
            [part.rename(low=f"{k}_low", high=f"{k}_high") for k, part in parts.items()]
        )
    return xr.concat(per_d.values(), xr.Variable("bits", list(per_d)))


def fit(low: xr.DataArray, high: xr.DataArray, scale_of_d: np.ufunc) -> Fit:
    """The line of ln(sequences) over d (exponential) or ln(d) (power of d)."""
    low, high = xr.broadcast(low, high)
    return interval_fit(scale_of_d(low["bits"] + 0.0 * low), low, high)


def growth(used: xr.Dataset, name: str) -> dict[str, dict[str, Any]]:
    """Both fits by p_cot: [value, low, high], spread and likelihood of each."""
    found = {}
    for p in used["p_cot"].values.tolist():
        low, high = (used[f"{name}_{end}"].sel(p_cot=p) for end in ("low", "high"))
        exponential, power = (fit(low, high, x) for x in (np.positive, np.log))
        found[label_text({"p_cot": p})] = {
            "factor per bit": np.exp(exponential.slope),
            "power of d": power.slope,
            "spread, exponential": exponential.spread,
            "spread, power": power.spread,
            "log-likelihood, exponential": exponential.log_likelihood,
            "log-likelihood, power": power.log_likelihood,
            "members there": int(np.isfinite(high).sum()),
            "members censored": int(np.isinf(high).sum()),
        }
    return found


def claims(results: Results) -> list[Claim]:
    """Growth over all d; at the largest d who reaches the target."""
    used = sequences_used(results)
    alone, with_rl = growth(used, "alone"), growth(used, "with_rl")
    factors = [found["factor per bit"][1] for found in alone.values()]
    powers = [found["power of d"][2] for found in with_rl.values()]
    low = {"low end of factor per bit": Check.above(factors, 2)}
    high = {"high end of power of d": Check.below(powers, 3)}
    largest = used.isel(bits=-1)
    there = int(np.isfinite(largest["alone_high"]).sum())
    ratio = largest["alone_low"] / largest["with_rl_high"]
    at_largest = {
        "reached alone": Check.equal(there, 0),
        "budget / needed with GRPO": Check.above(ratio, 1),
    }
    return [
        Claim.of("C9-alone", seen=alone, **low),
        Claim.of("C9-rl", seen=with_rl, **high),
        Claim.of("C9", seen={"d": int(largest["bits"])}, **at_largest),
    ]


def draw_fitted(
    ax: Axes, used: xr.Dataset, name: str, color: str, label: str, scale_of_d: np.ufunc
) -> None:
    """A dot for every member that got there, the fitted line dashed."""
    low, high = used[f"{name}_low"], used[f"{name}_high"]
    there = high.where(np.isfinite(high))
    dots(ax, used["bits"], there, color, ms=4, alpha=0.8)
    missing = low.where(np.isinf(high))
    dots(ax, used["bits"], missing, color, marker="^", ms=7, alpha=1, mfc="none")
    fitted = fit(low, high, scale_of_d)
    d = np.linspace(float(used["bits"][0]), float(used["bits"][-1]), 50)
    line = np.exp(fitted.intercept + fitted.slope[0] * scale_of_d(d))
    shown = line <= 10 * float(low.max())  # the rest of the line is far above all data
    if shown.any():
        overlay_fit(ax, d[shown], line[shown], name, color)
        end = (d[shown][-1], line[shown][-1])
        label_line(ax, *end, label, color, xytext=(6, 0))


def figure(results: Results) -> plt.Figure:
    """Sequences over d for each p_cot, fits dashed; triangles: a budget not enough."""
    used = sequences_used(results)
    shares = used["p_cot"].values
    figure, axes = plt.subplots(
        1, len(shares), figsize=(5 * len(shares), 4), sharey=True, squeeze=False
    )
    for ax, p_cot in zip(axes[0], shares, strict=True):
        at = used.sel(p_cot=p_cot)
        alone = "next-token\nprediction alone,\nexponential in d"
        draw_fitted(ax, at, "alone", BLUE, alone, np.positive)
        draw_fitted(ax, at, "with_rl", ACCENT, "with GRPO,\npower of d", np.log)
        ax.set(xlabel="bits d", title=f"p_cot = {p_cot:g}", yscale="log")
        ax.set_ylabel(
            f"sequences to {TARGET:.0%} greedy accuracy\n"
            "(open triangle: not there after so many)"
        )
        ax.set_xticks(used["bits"].values)
        ax.tick_params(labelleft=True)
    figure.tight_layout()
    return figure
