"""Training sequences until greedy decoding is right, over the number of bits (C9).

Command    python -m experiments.main --config=experiments/c9_sample_complexity.py \
               --workdir=runs/c9_sample_complexity [--config.scale=paper]
Device     2 CPU cores, about 8 minutes; paper scale: one GPU
Expected   next-token prediction alone has to learn the parity of d bits: sequences grow
           exponentially in d; with GRPO after it only the chain has to be learned:
           sequences grow like a low power of d
Figure     the paper's sample complexity to 95% greedy accuracy (small d)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from matplotlib.axes import Axes
from ml_collections import ConfigDict

from experiments.lab import choose
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
from parity_jax.overlays import overlay
from parity_jax.plots import (
    ACCENT,
    BLUE,
    GREY,
    label_line,
    save_figure,
)
from parity_jax.results import Claim, by_member, load_metrics, read_json, write_claims
from parity_jax.types import Hypers

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
        mistral(2, 64, num_heads=4, num_kv_heads=2),
        64,
        {5: 600, 6: 800, 7: 2000, 8: 4000, 16: 900},
        (300, 600),
        (0.1, 0.2),
        30,
        100,
        (0, 1),
    ),
    "paper": Scale(
        mistral(2, 128),
        256,
        {d: min(500 * 2 ** max(d - 4, 0), 50_000) for d in (*range(5, 14), 20, 30, 50)},
        (250, 500),
        (0.05, 0.1, 0.2),
        100,
        50,
        (0, 1, 2),
    ),
}
ROLLOUT = RolloutConfig(num_prompts=32, num_generations=8)


def get_config(scale: str = "cpu") -> ConfigDict:
    size = choose(SCALES, scale)
    runs = {}
    for num_bits, num_steps in size.num_steps.items():
        task = ParityConfig(num_bits=num_bits)
        runs[f"d{num_bits}"] = RunConfig(
            stage=PretrainConfig(batch_size=size.batch_size),
            hypers=Hypers(learning_rate=1e-3),
            num_steps=num_steps,
            log_every=size.eval_every,
            eval_every=size.eval_every,
            checkpoint_steps=size.switches,
            task=task,
        )
        runs[f"d{num_bits}_grpo"] = RunConfig(
            stage=PolicyGradientConfig(rollout=ROLLOUT, loss_type="dapo"),
            hypers=Hypers(learning_rate=2e-4),
            num_steps=size.num_updates,
            log_every=10,
            eval_every=2,
            parent=f"d{num_bits}",
            axes=FrozenDict({"parent_step": size.switches}),
            task=task,
        )
    return to_config_dict(
        Experiment(
            task=ParityConfig(num_bits=max(size.num_steps)),
            model=size.model,
            axes=FrozenDict({"p_cot": size.p_cot, "seed": size.seeds}),
            runs=FrozenDict(runs),
            evaluate=EvaluateConfig(256, (1.0,)),
        )
    )


def analyse(workdir: Path) -> None:
    config = read_json(workdir / "config.json")
    used = sequences_used(workdir, config["runs"])
    write_claims(workdir, claims(used))
    save_figure(figure(used), workdir)


def sequences_used(workdir: Path, runs: dict[str, Any]) -> xr.Dataset:
    """Sequences to the target over (bits, p_cot, seed); NaN where it is not reached.

    alone: next-token prediction; with_rl: with GRPO, from the best of the checkpoints;
    budget: what next-token prediction alone was given.
    """
    per_d = []
    for name in (n for n in runs if not n.endswith("_grpo")):
        batch_size = runs[name]["stage"]["batch_size"]
        rollout = runs[f"{name}_grpo"]["stage"]["rollout"]
        samples = rollout["num_prompts"] * rollout["num_generations"]
        updates = reached(load_metrics(workdir / f"{name}_grpo", "eval"))
        with_rl = updates["parent_step"] * batch_size + updates * samples
        data = xr.Dataset(
            {
                "alone": reached(load_metrics(workdir / name, "eval")) * batch_size,
                "with_rl": with_rl.min("parent_step"),
                "budget": runs[name]["num_steps"] * batch_size,
            }
        )
        per_d.append(data.assign_coords(bits=runs[name]["task"]["num_bits"]))
    return xr.concat(per_d, "bits").sortby("bits")


def reached(scores: xr.Dataset) -> xr.DataArray:
    """First of two evaluations in a row at the target; NaN if there is none."""
    good = scores["greedy/accuracy"] >= TARGET
    twice = good & good.shift(step=-1, fill_value=False)
    return scores["step"].where(twice).min("step")


class Fit(NamedTuple):
    """Least squares of ln(sequences) over d or ln(d); intervals are 95%."""

    intercept: float
    slope: float
    low: float
    high: float
    residual: float  # standard deviation of ln(sequences) about the line


def fit(
    used: xr.DataArray, scale_of_d: Callable[[np.ndarray], np.ndarray]
) -> Fit | None:
    """The slope over the members that reached the target; None below 3 values of d."""
    members = used.stack(member=used.dims).dropna("member")
    x, y = scale_of_d(members["bits"].values), np.log(members.values)
    if len(set(x)) < 3:
        return None
    rng = np.random.default_rng(0)
    slopes = []
    for _ in range(NUM_RESAMPLES):
        index = rng.integers(len(x), size=len(x))
        if len(set(x[index])) > 1:
            slopes.append(np.polyfit(x[index], y[index], 1)[0])
    slope, intercept = np.polyfit(x, y, 1)
    low, high = np.quantile(slopes, [0.025, 0.975])
    residual = float(np.std(y - slope * x - intercept, ddof=2))
    return Fit(float(intercept), float(slope), float(low), float(high), residual)


def described(exponential: Fit | None, power: Fit | None) -> dict[str, Any]:
    """Both fits as numbers: the factor for one more bit, and the power of d."""
    if exponential is None or power is None:
        return {"reached at": "fewer than 3 values of d"}
    factor = np.exp([exponential.slope, exponential.low, exponential.high])
    return {
        "factor per bit": [round(float(f), 3) for f in factor],
        "power of d": [round(v, 3) for v in (power.slope, power.low, power.high)],
        "residual, exponential": round(exponential.residual, 3),
        "residual, power": round(power.residual, 3),
    }


def claims(used: xr.Dataset) -> list[Claim]:
    fits = {
        name: {
            float(p): (fit(values, np.asarray), fit(values, np.log))
            for p, values in used[name].groupby("p_cot")
        }
        for name in ("alone", "with_rl")
    }
    measured = {
        name: {f"p_cot={p:g}": described(*pair) for p, pair in by_p.items()}
        for name, by_p in fits.items()
    }
    steep = [e is not None and np.exp(e.low) > 2 for e, _ in fits["alone"].values()]
    mild = [k is not None and k.high < 3 for _, k in fits["with_rl"].values()]
    largest = used.isel(bits=-1)
    stuck = largest["alone"].isnull()
    ratio = largest["budget"] / largest["with_rl"]
    return [
        Claim(
            "C9-alone",
            f"sequences to {TARGET:.0%} of next-token prediction alone grow "
            "exponentially in d",
            "a factor above 2 for each bit, over the d that reach it",
            measured["alone"],
            "the whole 95% interval (lowest, highest of value, low, high)",
            all(steep),
        ),
        Claim(
            "C9-rl",
            "with GRPO after it they grow polynomially",
            "a power of d below 3",
            measured["with_rl"],
            "the whole 95% interval",
            all(mild),
        ),
        Claim(
            "C9",
            f"at d = {int(largest['bits'])} next-token prediction alone does not reach "
            "it with more sequences than GRPO needs in all",
            "not reached; budget above what GRPO needs",
            {
                "reached alone": int((~stuck).sum()),
                "budget / needed with GRPO": by_member(ratio),
            },
            "every member",
            bool(stuck.all() and (ratio > 1).all()),
        ),
    ]


def draw_fitted(
    ax: Axes,
    used: xr.DataArray,
    color: str,
    label: str,
    scale_of_d: Callable[[np.ndarray], np.ndarray],
) -> None:
    """A dot for every member, the fitted line dashed."""
    ax.semilogy(used["bits"], used.transpose("bits", "seed"), "o", ms=4, color=color)
    fitted, known = fit(used, scale_of_d), used.dropna("bits", how="all")
    if fitted is not None:
        d = np.linspace(float(known["bits"][0]), float(known["bits"][-1]), 50)
        line = np.exp(fitted.intercept + fitted.slope * scale_of_d(d))
        overlay(ax, d, line, "fit", color)
    if known.size:
        end, y = int(known["bits"][-1]), float(known.isel(bits=-1).max())
        label_line(ax, end, y, label, color, xytext=(8, -4))


def figure(used: xr.Dataset) -> plt.Figure:
    """Sequences over d for each p_cot, fits dashed; triangles: a budget not enough."""
    shares = used["p_cot"].values
    figure, axes = plt.subplots(
        1, len(shares), figsize=(4.2 * len(shares), 3.6), sharey=True, squeeze=False
    )
    d = used["bits"].values
    for ax, p_cot in zip(axes[0], shares, strict=True):
        at = used.sel(p_cot=p_cot)
        draw_fitted(ax, at["alone"], BLUE, "next-token\nprediction alone", np.asarray)
        draw_fitted(ax, at["with_rl"], ACCENT, "with GRPO", np.log)
        missing = at["alone"].isnull().any("seed")
        budget = at["budget"].where(missing)
        ax.semilogy(d, budget, "^", color=GREY, ms=7)
        ax.set(xlabel="bits d", title=f"p_cot = {p_cot:g}")
    axes[0, 0].set_ylabel(
        f"sequences to {TARGET:.0%} greedy accuracy\n"
        "(triangle: some seed not there alone)"
    )
    figure.tight_layout()
    return figure
