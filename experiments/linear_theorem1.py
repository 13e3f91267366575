"""Theorem 1 on the linear model: calibrated lengths, and greedy decoding around 1/3.

Command    parity-jax run --config=experiments/linear_theorem1.py \
               --workdir=runs/linear_theorem1
Device     2 CPU cores, about 4 minutes
Expected   d = 8, 16, 50: P(full chain) = p_cot and P((parity, EOS)) = (1 - p_cot) / 2
           for every input up to a few percent; greedy decoding is short below p_cot =
           1/3 and the right chain above, wherever the gate's margin is clear of its
           spread; the error of the paper's own SGD stays below Propositions 1-3.
Figure     Theorem 1 and Propositions 1-3 of the paper (grid, sizes and ridge are ours)
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import all_at_most, finish, linear_pretrain

from parity_jax import theory
from parity_jax.analysis import Check, Claim, Results, last
from parity_jax.analysis.overlays import overlay, overlay_temperature, overlay_threshold
from parity_jax.analysis.plots import CYCLE, INK, dots, draw_members, label_line
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import LinearConfig
from parity_jax.population import PopulationConfig
from parity_jax.stages import LinearPretrainConfig
from parity_jax.tasks import ParityConfig

P_COT = (0.05, 0.1, 0.2, 0.25, 0.3, 0.315, 0.325, 0.33, 0.337, 0.345, 0.36, 0.4, 0.5)
SIZES = {8: P_COT, 16: P_COT, 50: P_COT[::2]}  # p_cot of each d
TEMPERATURES = (0.5, 1.0, 2.0)
DELTA = 0.1  # the bounds hold with probability 1 - DELTA
CLEAR = 4.0  # a margin is clear of its spread over inputs by so many of its std


def get_config() -> Experiment:
    runs = {
        f"d{d}": linear_pretrain(
            num_steps=32,  # 16,000 updates of 64 examples
            log_every=8,
            task=ParityConfig(d),
            axes=FrozenDict({"p_cot": grid}),
        )
        for d, grid in SIZES.items()
    }
    runs["sgd"] = RunConfig(  # the paper's algorithm: one example at a time
        stage=LinearPretrainConfig(num_updates=1024),
        hypers=Hypers(p_cot=0.25),
        num_steps=512,  # 524,288 examples
        log_every=8,
        eval_every=8,
        task=ParityConfig(8),
        axes=FrozenDict({"ridge": (0.003, 0.01, 0.03, 0.1)}),
    )
    return Experiment(
        model=LinearConfig(),
        axes=FrozenDict({"seed": (0, 1, 2)}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(num_prompts=512, temperatures=TEMPERATURES),
        population=PopulationConfig(vmap_width=8),
    )


def fast_runs(results: Results) -> dict[str, xr.Dataset]:
    """The last evaluation for every d."""
    return {name: last(results[name]) for name in results if name != "sgd"}


def paper_run(results: Results) -> tuple[xr.Dataset, xr.Dataset]:
    """The paper's SGD from its first example on, and the bounds of its heads' errors.

    The bounds are those of Propositions 1-3, by ridge and step.
    """
    run, sgd = results.runs["sgd"], results["sgd"].isel(step=slice(1, None))
    d, p = run.task.num_bits, run.hypers.p_cot
    ridge, seen = xr.broadcast(sgd["ridge"], sgd["sequences"])
    right, wrong = theory.bound_gate(p, ridge, seen, d, DELTA)
    long_seen = np.maximum(np.floor(p * seen), 1)  # on average
    bounds = {
        "first": theory.bound_first(p, ridge, seen, d, DELTA),
        "gate_right": right,
        "gate_wrong": wrong,
        "chain_error": theory.bound_chain(ridge, long_seen, d, d, DELTA),
    }
    return sgd, xr.Dataset({k: seen.copy(data=bound) for k, bound in bounds.items()})


def greedy_agreement(run: xr.Dataset) -> dict[str, float]:
    """How many members have a clear margin, and how many inputs follow Theorem 1."""
    is_long = run["p_cot"] > 1 / 3
    share = xr.where(is_long, run["exact/greedy_right"], 1 - run["exact/greedy_long"])
    # a margin that is not a number is none that excuses
    clear = ~(abs(run["exact/margin_mean"]) <= CLEAR * run["exact/margin_std"])
    return {
        "clear members": int(clear.sum()),
        "members": int(clear.size),
        "least share, clear": float(share.where(clear, np.inf).min(skipna=False)),
        "least share, all": float(share.min()),
    }


def claims(results: Results) -> list[Claim]:
    """Theorem 1 at the largest error over inputs, p_cot and seeds; Propositions 1-3."""
    runs, (sgd, bounds) = fast_runs(results), paper_run(results)
    long, short = (
        {name: run[f"exact/{kind}_max_error"] for name, run in runs.items()}
        for kind in ("p_long", "p_short")
    )
    greedy = {name: greedy_agreement(run) for name, run in runs.items()}
    ratio = {f"{k} / bound": sgd[f"exact/{k}_max_error"] / v for k, v in bounds.items()}
    run = results.runs["sgd"]
    optimum = theory.ridge_stats(run.hypers.p_cot, run.task.num_bits, sgd["ridge"])
    first = sgd["ridge"].copy(data=optimum["A"])
    return [
        Claim.of("T1-long", **all_at_most(long, 0.05)),
        Claim.of("T1-short", **all_at_most(short, 0.05)),
        Claim.of(
            "T1-greedy",
            seen=greedy | {"clear": f"|mean margin| > {CLEAR:g} std over inputs"},
            **{
                f"{k}, least share, clear": Check.equal(v["least share, clear"], 1)
                for k, v in greedy.items()
            },
        ),
        Claim.of("P1-P3", seen={"delta": DELTA}, **all_at_most(ratio, 1)),
        Claim.within("ridge-optimum", last(sgd)["exact/first"], first, 0.005),
    ]


def figure(results: Results) -> plt.Figure:
    """Theorem 1 over p_cot and temperature; the propositions at two values of ridge."""
    runs, (sgd, bounds) = fast_runs(results), paper_run(results)
    figure, axes = plt.subplots(2, 3, figsize=(11.5, 6.4), layout="constrained")
    left, middle, right = axes[0]
    for color, (name, run) in zip(CYCLE, runs.items(), strict=False):
        label = f"d = {name[1:]}"
        points(left, run["exact/p_long"], color, label)
        points(left, run["exact/p_short"], color)
        points(middle, run["exact/greedy_right"], color, label)
        points(right, run["exact/p_long_max_error"], color, label)
    grid = np.array(P_COT)
    overlay(left, grid, grid, "calibrated: p_cot")
    overlay(left, grid, (1 - grid) / 2, "calibrated: (1 - p_cot) / 2")
    label_line(left, 0.42, 0.5, "full chain", INK, ha="right")
    label_line(left, 0.08, 0.5, "(parity, EOS)", INK)
    overlay_threshold(middle)
    ylabel = "probability, mean over inputs"
    finish(left, "Length calibration", "p_cot", ylabel, ncols=2, ylim=(0, 0.6))
    ylabel = "inputs answered by the right chain"
    finish(middle, "Greedy decoding", "p_cot", ylabel, ncols=2, xlim=(0.28, 0.4))
    title = f"Theorem 1's epsilon after {results['d16']['sequences'].max():,} examples"
    ylabel = "max over inputs of |P(chain) - p_cot|"
    finish(right, title, "p_cot", ylabel, ncols=2, ylim=(0, None))
    draw_temperature(axes[1, 0], runs["d16"])
    for ax, i in zip(axes[1, 1:], (0, -1), strict=True):
        draw_bounds(ax, sgd.isel(ridge=i), bounds.isel(ridge=i))
    return figure


def points(ax: plt.Axes, values: xr.DataArray, color: str, label: str = "") -> None:
    """Every seed as a dot over p_cot, their median as a line."""
    dots(ax, values["p_cot"], values, color, marker=".", ms=4)
    median = values.median("seed")
    ax.plot(median["p_cot"], median, color=color, lw=1.2, label=label)


def draw_temperature(ax: plt.Axes, run: xr.Dataset) -> None:
    """P(long) at some p_cot, and the theory between the temperatures."""
    taus = np.linspace(0.4, 2.2, 50)
    sampled = run[[f"t{tau:g}/p_long" for tau in TEMPERATURES]].to_dataarray()
    for color, p_cot in zip(CYCLE, (0.1, 0.25, 0.4), strict=False):
        dots(ax, TEMPERATURES, sampled.sel(p_cot=p_cot), color, ms=4)
        overlay_temperature(ax, p_cot, taus, "p_long", color)
        end = float(theory.p_long(p_cot, taus[-1]))
        label_line(ax, taus[-1], end, f"{p_cot:g}", color)
    title, ylabel = "Temperature, d = 16 (by p_cot)", "P(long), 512 samples"
    finish(ax, title, "sampling temperature", ylabel, num=1, ylim=(0, 0.6))


def draw_bounds(ax: plt.Axes, sgd: xr.Dataset, bounds: xr.Dataset) -> None:
    """Measured error of each head and its bound, for one ridge."""
    seen = sgd["sequences"]
    for color, (name, bound) in zip(CYCLE, bounds.items(), strict=False):
        draw_members(ax, sgd[f"exact/{name}_max_error"], color, str(name), seen)
        ax.plot(seen, bound, color=color, ls="--", lw=1.2)
    ax.plot([], [], color=INK, ls="--", label=f"bound, probability {1 - DELTA:g}")
    ax.axhline(1, color=INK, lw=0.6)
    ax.set(xscale="log", yscale="log")
    title = f"Paper's SGD, d = 8, ridge {float(sgd['ridge']):g}"
    finish(ax, title, "training examples", "max over inputs of the error", ncols=3)
