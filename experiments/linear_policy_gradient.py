"""Policy gradient on the linear model: updates to greedy long, and the price of length.

Command    python -m experiments.main --config=experiments/linear_policy_gradient.py \
               --workdir=runs/linear_policy_gradient
Device     2 CPU cores, about 5 minutes
Expected   plain SGD on each objective needs as many updates until greedy decoding is
           long as the reduced two-logit model (`theory.pg_num_updates`, mv = 2: bias
           and weight of the gate move alike); REINFORCE without baseline but with
           1/|y| shortens answers; answers lengthen only while a full chain costs less
           than alpha_c = d / (2 (d - 1)).
Figure     beyond the paper, whose objectives these are (learning rates are ours)
"""

from pathlib import Path
from typing import Any, NamedTuple

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
    PolicyGradientConfig,
    PopulationConfig,
    RolloutConfig,
    RunConfig,
    SgdConfig,
    to_config_dict,
)
from parity_jax.overlays import overlay
from parity_jax.plots import (
    ACCENT,
    BLUE,
    CYCLE,
    INK,
    label_line,
    legend_below,
    save_figure,
)
from parity_jax.results import Claim, load_metrics, write_claims
from parity_jax.types import Hypers

NUM_BITS, GROUP, STD_EPS = 16, 8, 1e-4
P_COT = (0.1, 0.25)
PRICES = (0.0, 0.3, 0.45, 0.5, 0.56, 0.6, 0.7)
MAX_UPDATES = 75
PRICED = 60  # updates under a price of length


class Estimator(NamedTuple):
    """An objective, a learning rate that takes about 45 updates, and its theory."""

    label: str
    learning_rate: float  # of the sum over tokens divided as `theory` says
    objective: dict[str, Any]  # fields of PolicyGradientConfig
    theory: dict[str, Any]  # of theory.pg_num_updates


PLAIN: dict[str, Any] = dict(baseline="none", scale_rewards="none")
BATCH: dict[str, Any] = dict(baseline="batch", scale_rewards="none")
DR: dict[str, Any] = dict(baseline="group", scale_rewards="none")
STD: dict[str, Any] = dict(baseline="group", scale_rewards="group")
GRPO: dict[str, Any] = dict(adv="grpo", eps=STD_EPS)
ESTIMATORS = {
    "reinforce": Estimator(
        "REINFORCE", 0.3, PLAIN | dict(loss_type="reinforce"), dict(norm="const")
    ),
    "reinforce_seq": Estimator(
        "REINFORCE, mean baseline, 1/|y|",
        2.0,
        BATCH | dict(loss_type="grpo"),
        dict(norm="seq", baseline="mean"),
    ),
    "reinforce_seq_plain": Estimator(
        "REINFORCE, no baseline, 1/|y|",
        2.0,
        PLAIN | dict(loss_type="grpo"),
        dict(norm="seq"),
    ),
    "grpo": Estimator(
        "GRPO (1/|y|)", 1.0, STD | dict(loss_type="grpo"), GRPO | dict(norm="seq")
    ),
    "grpo_const": Estimator(
        "GRPO, no length norm.",
        0.15,
        STD | dict(loss_type="reinforce"),
        GRPO | dict(norm="const"),
    ),
    "grpo_token": Estimator(
        "GRPO, token-level",
        0.7,
        STD | dict(loss_type="bnpo"),
        GRPO | dict(norm="token"),
    ),
    "dr_grpo": Estimator(  # its loss divides by the T = d + 1 tokens of a response
        "Dr. GRPO", 0.3, DR | dict(loss_type="dr_grpo"), dict(adv="dr", norm="const")
    ),
    "dr_grpo_seq": Estimator(
        "Dr. GRPO with 1/|y|",
        2.0,
        DR | dict(loss_type="grpo"),
        dict(adv="dr", norm="seq"),
    ),
}


def get_config() -> ConfigDict:
    pretrain = RunConfig(
        stage=LinearPretrainConfig(
            SgdConfig(64, max_step_size=0.2, max_chain_step_size=2.0, average_power=3),
            num_updates=500,
        ),
        hypers=Hypers(ridge=1e-5),
        num_steps=32,
        log_every=32,
        eval_every=32,
        axes=FrozenDict({"p_cot": P_COT}),
    )
    runs = {"pretrain": pretrain}
    for name, estimator in ESTIMATORS.items():
        runs[name] = gradient_run(
            estimator, 256, MAX_UPDATES, 1, {"p_cot": P_COT}, estimator.learning_rate
        )
    for name, scale in (("dr_grpo", 3.0), ("grpo_const", 3.0)):
        axes = {"p_cot": (0.25,), "length_price": PRICES}
        rate = scale * ESTIMATORS[name].learning_rate
        runs[f"price_{name}"] = gradient_run(
            ESTIMATORS[name], 256, PRICED, PRICED, axes, rate
        )
    return to_config_dict(
        Experiment(
            task=ParityConfig(num_bits=NUM_BITS),
            model=LinearConfig(),
            axes=FrozenDict({"seed": (0, 1, 2)}),
            runs=FrozenDict(runs),
            evaluate=EvaluateConfig(num_prompts=512, temperatures=(1.0,)),
            population=PopulationConfig(vmap_width=4),
        )
    )


def gradient_run(
    estimator: Estimator,
    num_prompts: int,
    num_steps: int,
    eval_every: int,
    axes: dict[str, tuple[float, ...]],
    learning_rate: float,
) -> RunConfig:
    fields = estimator.objective
    per_token = NUM_BITS + 1 if fields["loss_type"] == "dr_grpo" else 1
    stage = PolicyGradientConfig(
        rollout=RolloutConfig(num_prompts=num_prompts, num_generations=GROUP),
        optimizer="sgd",
        std_eps=STD_EPS,
        **fields,
    )
    return RunConfig(
        stage=stage,
        hypers=Hypers(learning_rate=learning_rate * per_token),
        num_steps=num_steps,
        log_every=eval_every,
        eval_every=eval_every,
        parent="pretrain",
        axes=FrozenDict(axes),
    )


def analyse(workdir: Path) -> None:
    runs = {name: load_metrics(workdir / name, "eval") for name in ESTIMATORS}
    prices = {
        name: load_metrics(workdir / f"price_{name}", "eval")
        for name in ("dr_grpo", "grpo_const")
    }
    write_claims(workdir, claims(runs, prices))
    save_figure(figure(runs, prices), workdir)


def updates_to_long(run: xr.Dataset) -> xr.DataArray:
    """First update after which greedy decoding is long on most inputs, or NaN."""
    is_long = run["greedy/p_long"] > 0.5
    return run["step"].where(is_long).min("step")


def predicted_updates(estimator: Estimator, p_cot: float) -> int | None:
    return theory.pg_num_updates(
        p_cot,
        estimator.learning_rate,
        NUM_BITS,
        mv=2.0,
        max_updates=MAX_UPDATES,
        G=GROUP,
        **estimator.theory,
    )


def length_drive(run: xr.Dataset) -> xr.DataArray:
    """Growth of P(long) at temperature 1 over the run, by length_price and seed."""
    p_long = run["t1/p_long"].isel(p_cot=0)
    return p_long.isel(step=-1) - p_long.isel(step=0)


def critical_price(run: xr.Dataset) -> list[float]:
    """For each seed the price at which P(long) starts to shrink, interpolated."""
    drive = length_drive(run).transpose("seed", "length_price").values
    prices = run["length_price"].values
    found = []
    for row in drive:
        i = int(np.argmax(row < 0))  # the first price that shortens
        share = row[i - 1] / (row[i - 1] - row[i])
        found.append(float(prices[i - 1] + share * (prices[i] - prices[i - 1])))
    return found


def claims(runs: dict[str, xr.Dataset], prices: dict[str, xr.Dataset]) -> list[Claim]:
    expected, measured, agrees = {}, {}, []
    for name, estimator in ESTIMATORS.items():
        for p in P_COT:
            label, target = f"{name}, p_cot={p:g}", predicted_updates(estimator, p)
            found = updates_to_long(runs[name].sel(p_cot=p)).values
            expected[label] = target
            measured[label] = [None if np.isnan(n) else int(n) for n in found]
            if target is None:
                agrees.append(bool(np.isnan(found).all()))
            else:
                tolerance = max(2, 0.1 * target)
                agrees.append(bool((abs(found - target) <= tolerance).all()))
    alpha_c = float(theory.alpha_critical(NUM_BITS))
    found_prices = {name: critical_price(run) for name, run in prices.items()}
    flat = [price for values in found_prices.values() for price in values]
    shrink = length_drive_of(runs["reinforce_seq_plain"])
    return [
        Claim(
            "PG-updates",
            "updates until greedy decoding is long follow the reduced model",
            str(expected),
            measured,
            "2 updates or 10%, whichever is more, for every seed",
            all(agrees),
        ),
        Claim(
            "PG-shortens",
            "REINFORCE without baseline but with 1/|y| shortens answers (d > 3)",
            "P(long) falls",
            {
                f"p_cot={p:g}": shrink.sel(p_cot=p).values.round(4).tolist()
                for p in P_COT
            },
            "every seed",
            bool((shrink < 0).all()),
        ),
        Claim(
            "PG-price",
            "answers lengthen iff the price of a full chain is below d / (2 (d - 1))",
            f"{alpha_c:.4f}",
            {k: np.round(v, 3).tolist() for k, v in found_prices.items()},
            "0.03, every seed",
            bool((abs(np.array(flat) - alpha_c) <= 0.03).all()),
        ),
    ]


def length_drive_of(run: xr.Dataset) -> xr.DataArray:
    return run["t1/p_long"].isel(step=-1) - run["t1/p_long"].isel(step=0)


def figure(runs: dict[str, xr.Dataset], prices: dict[str, xr.Dataset]) -> plt.Figure:
    figure, axes = plt.subplots(
        1, 3, figsize=(12, 3.8), layout="constrained", width_ratios=(1.3, 1, 1)
    )
    draw_updates(axes[0], runs)
    draw_growth(axes[1], runs)
    draw_prices(axes[2], prices)
    return figure


def draw_updates(ax: plt.Axes, runs: dict[str, xr.Dataset]) -> None:
    for i, (name, estimator) in enumerate(ESTIMATORS.items()):
        for color, p in zip((BLUE, ACCENT), P_COT, strict=True):
            found = updates_to_long(runs[name].sel(p_cot=p)).values
            target = predicted_updates(estimator, p)
            ax.plot(found, [i] * len(found), "o", color=color, ms=5, alpha=0.6)
            if target is not None:
                ax.plot([target] * 2, [i - 0.35, i + 0.35], "--", color=color, lw=1.4)
        if np.isnan(updates_to_long(runs[name])).all():
            ax.text(1, i, "never: it shortens", va="center", fontsize=8, color=INK)
    for color, p in zip((BLUE, ACCENT), P_COT, strict=True):
        ax.plot([], [], "o", color=color, label=f"p_cot = {p:g}")
    ax.plot([], [], "--", color=INK, label="theory (expected updates, exact chain)")
    legend_below(ax)
    ax.set_yticks(range(len(ESTIMATORS)), [e.label for e in ESTIMATORS.values()])
    ax.invert_yaxis()
    ax.set(xlabel="updates until greedy decoding is long", xlim=(0, MAX_UPDATES))
    ax.set_title(f"Updates to greedy long, d = {NUM_BITS}", loc="left")


def draw_growth(ax: plt.Axes, runs: dict[str, xr.Dataset]) -> None:
    shown = ("reinforce", "grpo", "dr_grpo", "reinforce_seq_plain")
    for color, name in zip(CYCLE, shown, strict=False):
        p_long = runs[name]["t1/p_long"].sel(p_cot=0.25).transpose("step", "seed")
        ax.plot(p_long["step"], p_long, color=color, lw=0.7, alpha=0.6)
        label = ESTIMATORS[name].label
        ax.plot(p_long["step"], p_long.median("seed"), color=color, lw=2, label=label)
    legend_below(ax, ncols=2)
    ax.set(xlabel="update", ylabel="P(long) at temperature 1", ylim=(0, 1))
    ax.set_title("Growth from p_cot = 0.25", loc="left")


def draw_prices(ax: plt.Axes, prices: dict[str, xr.Dataset]) -> None:
    for color, (name, run) in zip(CYCLE, prices.items(), strict=False):
        drive = length_drive(run).transpose("length_price", "seed")
        ax.plot(run["length_price"], drive, "o", color=color, ms=4, alpha=0.6)
        label = ESTIMATORS[name].label
        ax.plot(run["length_price"], drive.median("seed"), color=color, label=label)
    alpha_c = float(theory.alpha_critical(NUM_BITS))
    overlay(ax, [alpha_c] * 2, [-0.3, 0.6], "d / (2 (d - 1)): right chains")
    ax.axhline(0, color=INK, lw=0.6)
    label_line(ax, 0, 0.03, "lengthens", INK)
    label_line(ax, 0, -0.03, "shortens", INK)
    legend_below(ax)
    ax.set(
        xlabel="price of a full chain (alpha)",
        ylabel=f"change of P(long), {PRICED} updates",
    )
    ax.set_title("Price of length, p_cot = 0.25", loc="left")
