"""Theorem 1 on the linear model: calibrated lengths, and greedy decoding around 1/3.

Command    python -m experiments.main --config=experiments/linear_theorem1.py \
               --workdir=runs/linear_theorem1
Device     2 CPU cores, about 4 minutes
Expected   d = 8, 16, 50: P(full chain) = p_cot and P((parity, EOS)) = (1 - p_cot) / 2
           for every input up to a few percent; greedy decoding is short below p_cot =
           1/3 and the right chain above, wherever the gate's margin is clear of its
           spread; the error of the paper's own SGD stays below Propositions 1-3.
Figure     Theorem 1 and Propositions 1-3 of the paper (grid, sizes and ridge are ours)
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
    ParityConfig,
    PopulationConfig,
    RunConfig,
    SgdConfig,
    to_config_dict,
)
from parity_jax.overlays import overlay, overlay_temperature, overlay_threshold
from parity_jax.plots import (
    ACCENT,
    BLUE,
    CYCLE,
    GREEN,
    INK,
    label_line,
    legend_below,
    save_figure,
)
from parity_jax.results import Claim, by_member, load_metrics, read_json, write_claims
from parity_jax.types import Hypers

P_COT = (0.05, 0.1, 0.2, 0.25, 0.3, 0.315, 0.325, 0.33, 0.337, 0.345, 0.36, 0.4, 0.5)
SIZES = {8: P_COT, 16: P_COT, 50: P_COT[::2]}  # p_cot of each d
DELTA = 0.1  # the bounds hold with probability 1 - DELTA
CLEAR = 4.0  # a margin is clear of its spread over inputs by so many of its std


def get_config() -> ConfigDict:
    fast = LinearPretrainConfig(
        SgdConfig(64, max_step_size=0.2, max_chain_step_size=2.0, average_power=3),
        num_updates=500,
    )
    runs = {
        f"d{d}": RunConfig(
            stage=fast,
            hypers=Hypers(ridge=1e-5),
            num_steps=32,  # 16,000 updates of 64 examples
            log_every=8,
            eval_every=32,
            task=ParityConfig(num_bits=d),
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
        task=ParityConfig(num_bits=8),
        axes=FrozenDict({"ridge": (0.003, 0.01, 0.03, 0.1)}),
    )
    return to_config_dict(
        Experiment(
            model=LinearConfig(),
            axes=FrozenDict({"seed": (0, 1, 2)}),
            runs=FrozenDict(runs),
            evaluate=EvaluateConfig(num_prompts=512, temperatures=(0.5, 1.0, 2.0)),
            population=PopulationConfig(vmap_width=8),
        )
    )


def analyse(workdir: Path) -> None:
    names = [f"d{d}" for d in SIZES]
    last = {n: load_metrics(workdir / n, "eval").isel(step=-1) for n in names}
    sgd = load_metrics(workdir / "sgd", "eval").isel(step=slice(1, None))
    run = read_json(workdir / "sgd" / "config.json")
    seen = sgd["step"] * run["run"]["stage"]["num_updates"]
    bounds = proposition_bounds(run, sgd["ridge"].values, seen.values)
    write_claims(workdir, claims(last, sgd, bounds))
    save_figure(figure(last, sgd, seen.values, bounds), workdir)


def proposition_bounds(
    run: dict, ridge: np.ndarray, seen: np.ndarray
) -> dict[str, np.ndarray]:
    """Bounds of Propositions 1-3 on the error of each head, by ridge and examples."""
    d, p = run["task"]["num_bits"], run["run"]["hypers"]["p_cot"]
    ridge, seen = ridge[:, None], seen[None]
    right, wrong = theory.bound_gate(p, ridge, seen, d, DELTA)
    long_seen = np.floor(p * seen)  # on average
    return {
        "first": theory.bound_first(p, ridge, seen, d, DELTA),
        "gate_right": right,
        "gate_wrong": wrong,
        "chain_error": theory.bound_chain(ridge, long_seen, d, d, DELTA),
    }


def claims(
    last: dict[str, xr.Dataset], sgd: xr.Dataset, bounds: dict[str, np.ndarray]
) -> list[Claim]:
    def worst(score: str) -> dict[str, float]:
        return {name: round(float(run[score].max()), 4) for name, run in last.items()}

    def is_calibrated(score: str) -> bool:
        return all(bool(run[score].max() <= 0.05) for run in last.values())

    greedy = {name: greedy_agreement(run) for name, run in last.items()}
    ratio = {
        name: (sgd[f"exact/{name}_max_error"] / bound[..., None, :]).max()
        for name, bound in bounds.items()
    }
    stats = theory.ridge_stats(0.25, 8, sgd["ridge"].values)
    at_end = sgd.isel(step=-1)
    gap = abs(at_end["exact/first"] - stats["A"][:, None])
    return [
        Claim(
            "T1-long",
            "for every input, P(full chain) is within epsilon of p_cot",
            "0",
            worst("exact/p_long_max_error"),
            "0.05, the largest over inputs, p_cot and seeds",
            is_calibrated("exact/p_long_max_error"),
        ),
        Claim(
            "T1-short",
            "for every input, P((parity, EOS)) is within epsilon of (1 - p_cot) / 2",
            "0",
            worst("exact/p_short_max_error"),
            "0.05, the largest over inputs, p_cot and seeds",
            is_calibrated("exact/p_short_max_error"),
        ),
        Claim(
            "T1-greedy",
            "greedy decoding is short for p_cot < 1/3 and the right chain above",
            "the share of inputs that follow the theorem is 1 for all clear members",
            greedy,
            f"exact where |mean margin| > {CLEAR:g} std over inputs",
            all(g["least share, clear"] == 1 for g in greedy.values()),
        ),
        Claim(
            "P1-P3",
            "every head's error stays below its bound (the paper's SGD, d = 8)",
            "measured error / bound <= 1",
            {name: round(float(value), 4) for name, value in ratio.items()},
            f"bounds at delta = {DELTA:g}; largest ratio over steps, ridge and seeds",
            all(bool(value <= 1) for value in ratio.values()),
        ),
        Claim(
            "ridge-optimum",
            "the paper's SGD converges to the ridge optimum: P(y_1 = x_1)",
            str(np.round(stats["A"], 4).tolist()),
            by_member(at_end["exact/first"]),
            "0.005",
            bool((gap <= 0.005).all()),
        ),
    ]


def greedy_agreement(run: xr.Dataset) -> dict[str, float]:
    """How many members have a clear margin, and how many inputs follow Theorem 1."""
    is_long = run["p_cot"] > 1 / 3
    share = xr.where(is_long, run["exact/greedy_right"], 1 - run["exact/greedy_long"])
    clear = abs(run["exact/margin_mean"]) > CLEAR * run["exact/margin_std"]
    return {
        "clear members": int(clear.sum()),
        "members": int(clear.size),
        "least share, clear": float(share.where(clear).min()),
        "least share, all": float(share.min()),
    }


def figure(
    last: dict[str, xr.Dataset],
    sgd: xr.Dataset,
    seen: np.ndarray,
    bounds: dict[str, np.ndarray],
) -> plt.Figure:
    figure, axes = plt.subplots(2, 3, figsize=(11.5, 6.4), layout="constrained")
    draw_calibration(axes[0, 0], last)
    draw_greedy(axes[0, 1], last)
    draw_error(axes[0, 2], last)
    draw_temperature(axes[1, 0], last)
    draw_bounds(axes[1, 1], 0, sgd, seen, bounds)
    draw_bounds(axes[1, 2], -1, sgd, seen, bounds)
    return figure


def points(ax: plt.Axes, run: xr.Dataset, score: str, color: str, label: str) -> None:
    """Every seed as a dot over p_cot, their median as a line."""
    values = run[score].transpose("p_cot", "seed")
    ax.plot(run["p_cot"], values, ".", color=color, ms=4, alpha=0.6)
    ax.plot(run["p_cot"], values.median("seed"), color=color, lw=1.2, label=label)


def by_size(last: dict[str, xr.Dataset]) -> list[tuple[str, xr.Dataset, str]]:
    return [(f"d = {n[1:]}", run, CYCLE[i]) for i, (n, run) in enumerate(last.items())]


def draw_calibration(ax: plt.Axes, last: dict[str, xr.Dataset]) -> None:
    for label, run, color in by_size(last):
        points(ax, run, "exact/p_long", color, label)
        points(ax, run, "exact/p_short", color, "")
    p_cot = np.array(P_COT)
    overlay(ax, p_cot, p_cot, "calibrated: p_cot")
    overlay(ax, p_cot, (1 - p_cot) / 2, "calibrated: (1 - p_cot) / 2")
    label_line(ax, 0.42, 0.5, "full chain", INK, ha="right")
    label_line(ax, 0.08, 0.5, "(parity, EOS)", INK)
    ax.set(xlabel="p_cot", ylabel="probability, mean over inputs", ylim=(0, 0.6))
    ax.set_title("Length calibration", loc="left")
    legend_below(ax, ncols=2)


def draw_greedy(ax: plt.Axes, last: dict[str, xr.Dataset]) -> None:
    for label, run, color in by_size(last):
        points(ax, run, "exact/greedy_right", color, label)
    overlay_threshold(ax)
    ax.set(
        xlabel="p_cot", ylabel="inputs answered by the right chain", xlim=(0.28, 0.4)
    )
    ax.set_title("Greedy decoding", loc="left")
    legend_below(ax, ncols=2)


def draw_error(ax: plt.Axes, last: dict[str, xr.Dataset]) -> None:
    for label, run, color in by_size(last):
        points(ax, run, "exact/p_long_max_error", color, label)
    ax.set(
        xlabel="p_cot", ylabel="max over inputs of |P(chain) - p_cot|", ylim=(0, None)
    )
    ax.set_title("Theorem 1's epsilon after 1,024,000 examples", loc="left")
    legend_below(ax, ncols=2)


def draw_temperature(ax: plt.Axes, last: dict[str, xr.Dataset]) -> None:
    taus = np.linspace(0.4, 2.2, 50)
    run = last["d16"]
    for color, p_cot in zip((BLUE, ACCENT, GREEN), (0.1, 0.25, 0.4), strict=True):
        here = run.sel(p_cot=p_cot)
        for tau in (0.5, 1.0, 2.0):
            y = here[f"t{tau:g}/p_long"]
            ax.plot([tau] * y.size, y, "o", ms=4, color=color, alpha=0.6)
        overlay_temperature(ax, p_cot, taus, "p_long", color)
        label_line(
            ax, taus[-1], float(theory.p_long(p_cot, taus[-1])), f"{p_cot:g}", color
        )
    ax.set(xlabel="sampling temperature", ylabel="P(long), 512 samples", ylim=(0, 0.6))
    ax.set_title("Temperature, d = 16 (by p_cot)", loc="left")
    legend_below(ax, 1)


def draw_bounds(
    ax: plt.Axes,
    index: int,
    sgd: xr.Dataset,
    seen: np.ndarray,
    bounds: dict[str, np.ndarray],
) -> None:
    """Measured error of each head and its bound, for one ridge."""
    here = sgd.isel(ridge=index)
    for color, (name, bound) in zip(CYCLE, bounds.items(), strict=False):
        values = here[f"exact/{name}_max_error"].transpose("step", "seed")
        ax.plot(seen, values, color=color, lw=0.7, alpha=0.5)
        ax.plot(seen, values.median("seed"), color=color, lw=2, label=name)
        ax.plot(seen, bound[index], color=color, ls="--", lw=1.2)
    ax.plot([], [], color=INK, ls="--", label=f"bound, probability {1 - DELTA:g}")
    ax.axhline(1, color=INK, lw=0.6)
    ax.set(xscale="log", yscale="log", xlabel="training examples")
    ax.set_ylabel("max over inputs of the error")
    ax.set_title(f"Paper's SGD, d = 8, ridge {float(here['ridge']):g}", loc="left")
    legend_below(ax, ncols=3)
