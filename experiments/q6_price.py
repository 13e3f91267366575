"""At which price of length does RL stop lengthening answers? (Q6)

Command    parity-jax run --config=experiments/q6_price.py --workdir=runs/q6_price
Device     2 CPU cores, 14 minutes beside other work
Expected   GRPO, Dr. GRPO, RLOO and REINFORCE turn where the theory of two logits says:
           an additive price alpha |y| / d at alpha_c = d / (2 (d - 1)), a
           multiplicative one at d / (2d - 1), whatever is divided by; a tiny price
           already slows GRPO, whose std sees only the ranks of nearly equal rewards;
           with leap-2 chains in the mixture the prices from d / (2 (d - 1)) to
           d / (2 (d/2 - 1)) buy the shortest right answers
Figure     beyond the paper (open question 6 of its reviews); all sizes are ours

The linear model turns at alpha_c by `linear_policy_gradient.py`. Here the same numbers
are held against a transformer with Adam.
"""

from dataclasses import replace
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, critical_price, finish, p_long_growth
from matplotlib.axes import Axes
from scipy.special import expit

from parity_jax import theory
from parity_jax.analysis import Answer, Check, Claim, Results, last
from parity_jax.analysis.overlays import overlay
from parity_jax.analysis.plots import CYCLE, INK, dots, label_line
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.objectives import LengthPrice
from parity_jax.optim import OptimizerConfig
from parity_jax.stages import (
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    dr_grpo,
    reinforce,
    rloo,
)
from parity_jax.tasks import ParityConfig

NUM_BITS, LEAP, P_COT, NUM_UPDATES = 10, 2, 0.25, 30
PRICES = (0.0, 0.3, 0.45, 0.5, 0.55, 0.6, 0.65, 0.8)
TINY_PRICES = (0.0, 0.01, 0.1)
TINY_GROUP, STD_EPS = 4, 1e-4  # responses to a prompt, where tiny prices are studied
LEAP_PRICES = (0.0, 0.3, 0.7, 0.9, 1.1, 1.6)
PENALTY: dict[LengthPrice, Literal["add", "mult"]] = {
    "additive": "add",
    "multiplicative": "mult",
}
ROLLOUT = RolloutConfig(num_prompts=32, num_generations=8)
ALGORITHMS = {
    "grpo": ("GRPO", PolicyGradientConfig(rollout=ROLLOUT, loss_type="dapo")),
    "dr_grpo": ("Dr. GRPO", dr_grpo(rollout=ROLLOUT)),
    "rloo": ("RLOO", rloo(rollout=ROLLOUT)),
    "reinforce": ("REINFORCE", reinforce(rollout=ROLLOUT)),
}


def get_config() -> Experiment:
    pretrain = RunConfig(
        stage=PretrainConfig(64, OptimizerConfig(decay_steps=800)),
        hypers=Hypers(p_cot=P_COT, learning_rate=1e-3),
        num_steps=800,
        log_every=50,
        eval_every=400,
    )
    priced = RunConfig(
        hypers=Hypers(p_cot=P_COT, learning_rate=1e-4),
        num_steps=NUM_UPDATES,
        log_every=NUM_UPDATES,
        eval_every=NUM_UPDATES,
        parent="pretrain",
        axes=FrozenDict({"length_price": PRICES}),
    )
    runs = {"pretrain": pretrain}
    for form in PENALTY:
        rollout = replace(ROLLOUT, length_price_form=form)
        for name, (_, stage) in ALGORITHMS.items():
            stage = replace(stage, rollout=rollout)
            runs[f"{name}_{form}"] = replace(priced, stage=stage)
    # plain SGD: Adam would divide the size of the drive away
    sgd = PolicyGradientConfig(
        rollout=RolloutConfig(num_prompts=256, num_generations=TINY_GROUP),
        loss_type="dapo",
        std_eps=STD_EPS,
        optimizer=OptimizerConfig("sgd"),
    )
    runs["tiny"] = replace(
        priced,
        stage=sgd,
        hypers=Hypers(p_cot=P_COT, learning_rate=0.01),  # 0.1 jumps to an end at once
        num_steps=12,
        eval_every=12,
        log_every=12,
        axes=FrozenDict({"length_price": TINY_PRICES}),
    )
    task = ParityConfig(NUM_BITS, leap=LEAP)
    deep = replace(SMALL, depth=4)  # 2 blocks may miss the steps of a leap
    mixed = Hypers(p_cot=0.2, p_leap=0.2, learning_rate=1e-3)
    runs["pretrain_leap"] = replace(
        pretrain,
        stage=PretrainConfig(128, OptimizerConfig(decay_steps=1600)),
        hypers=mixed,
        num_steps=1600,
        task=task,
        model=deep,
    )
    runs["leap"] = replace(
        priced,
        stage=dr_grpo(rollout=ROLLOUT),
        hypers=replace(mixed, learning_rate=2e-4),
        num_steps=60,
        eval_every=20,
        parent="pretrain_leap",
        axes=FrozenDict({"length_price": LEAP_PRICES}),
        task=task,
        model=deep,
    )
    return Experiment(
        task=ParityConfig(NUM_BITS),
        model=SMALL,
        axes=FrozenDict({"seed": (0, 1, 2)}),
        runs=FrozenDict(runs),
        # P(long) of 4096 samples has a standard error of 0.007
        evaluate=EvaluateConfig(1024, (1.0,), num_samples=4),
    )


def turning_point(results: Results, form: LengthPrice) -> float:
    """The price at which the theory says that answers stop lengthening."""
    d = results.experiment.task.num_bits
    return float(theory.alpha_critical(d, PENALTY[form]))


def with_measured_rates(results: Results, form: LengthPrice) -> xr.DataArray:
    """The same from how often long and short samples are right before RL, by seed."""
    d, before = results.experiment.task.num_bits, last(results["pretrain"])
    rates = [before[f"t1/accuracy_{kind}"] for kind in ("long", "short")]
    predicted = xr.apply_ufunc(
        lambda f_long, f_short: theory.alpha_critical(
            d, PENALTY[form], f_long, f_short
        ),
        *(rate.fillna(0) for rate in rates),
    )
    return predicted.where(rates[0].notnull() & rates[1].notnull())


def leap_window(results: Results) -> tuple[float, float]:
    """The prices at which full chains shrink while leap chains grow, in theory."""
    task = results.runs["leap"].task
    d, num_tokens = task.num_bits, -(-task.num_bits // task.leap)
    long_lens = (d, num_tokens)
    low, high = (float(theory.alpha_critical(d, long_len=n)) for n in long_lens)
    return low, high


def tiny_drive(num_bits: int, price: float) -> float:
    """Expected growth of P(long) per update of GRPO, before the learning rate."""
    u, v = np.log((1 + P_COT) / (1 - P_COT)), np.log(2 * P_COT / (1 - P_COT))
    update = theory.pg_expected_update(
        u, v, num_bits, TINY_GROUP, adv="grpo", norm="token", eps=STD_EPS, alpha=price
    )
    A, C = expit(u), expit(v)
    return float(update @ [A * C * (1 - A), A * C * (1 - C)])


def slowed(results: Results) -> tuple[xr.DataArray, xr.DataArray]:
    """Growth of P(long) under tiny prices over that without; measured, in theory."""
    growth, num_bits = p_long_growth(results["tiny"]), results.experiment.task.num_bits
    drives = [tiny_drive(num_bits, p) for p in growth["length_price"].values.tolist()]
    drive = xr.DataArray(drives, {"length_price": growth["length_price"]})
    free = growth.sel(length_price=0.0).mean("seed", skipna=False)
    return growth / free, drive / drive.sel(length_price=0.0)


def claims(results: Results) -> list[Claim]:
    """Turning points of every algorithm; tiny prices; leap chains."""
    found = []
    for id, form in zip(("Q6", "Q6-multiplicative"), PENALTY, strict=True):
        seen = {"theory at the rates before RL": with_measured_rates(results, form)}
        checks = {}
        for name in ALGORITHMS:
            crossing = critical_price(results[f"{name}_{form}"])
            seen[f"{name}, of each seed"] = crossing
            mean = crossing.mean(skipna=False)
            checks[name] = Check.within(mean, turning_point(results, form), 0.04)
        found.append(Claim.of(id, seen=seen, **checks))
    measured, predicted = slowed(results)
    priced = {"length_price": slice(1, None)}
    ratio = measured.mean("seed", skipna=False).isel(priced)
    end, (low, high) = last(results["leap"]), leap_window(results)
    price, task = end["length_price"], results.runs["leap"].task
    inside = end.sel(length_price=(price > low) & (price < high))
    above = end.sel(length_price=price > high)
    length = -(-task.num_bits // task.leap)
    return [
        *found,
        Claim.of(
            "Q6-tiny",
            seen={"of each seed": measured},
            ratio=Check.within(ratio, predicted.isel(priced), 0.15),
        ),
        Claim.of(
            "Q6-leap",
            seen={"prices": [low, high], "mean length": end["greedy/length_mean"]},
            accuracy=Check.at_least(inside["greedy/accuracy"], 0.95),
            length=Check.equal(inside["greedy/length_median"], length),
            above=Check.equal(above["greedy/length_median"], 1),
        ),
    ]


def answer(results: Results) -> Answer:
    """At which prices all objectives turn."""
    near = []
    for form in PENALTY:
        means = [
            float(critical_price(results[f"{k}_{form}"]).mean(skipna=False))
            for k in ALGORITHMS
        ]
        low, high = np.min(means), np.max(means)  # NaN if one never turns
        where = turning_point(results, form)
        near.append(f"{form} {low:.2f} to {high:.2f} (theory {where:.2f})")
    end = last(results["leap"])
    is_short = end["greedy/length_median"] < results.runs["leap"].task.num_bits
    both = (is_short & (end["greedy/accuracy"] >= 0.95)).sum("seed")
    prices = [
        f"{float(num['length_price']):g} ({int(num)} of {end.sizes['seed']} seeds)"
        for num in both
        if num
    ]
    return Answer(
        "At which price of length does RL stop lengthening answers?",
        f"Four objectives turn at prices of a full chain of {' and '.join(near)}; with "
        f"leap chains to choose, {', '.join(prices) or 'no price'} buys shorter "
        "answers that are right.",
    )


def figure(results: Results) -> plt.Figure:
    """Growth over the price of both forms, tiny prices, and with leap chains."""
    figure, axes = plt.subplots(1, 4, figsize=(15.5, 3.9), layout="constrained")
    for ax, form in zip(axes, PENALTY, strict=False):
        draw_growth(ax, results, form)
    draw_tiny(axes[2], results)
    draw_leap(axes[3], results)
    d = results.experiment.task.num_bits
    figure.suptitle(f"RL under a price of length, parity of {d} bits, p_cot = {P_COT}")
    return figure


def draw_growth(ax: Axes, results: Results, form: LengthPrice) -> None:
    """Change of P(long) over the price, every algorithm and seed."""
    for color, (name, (label, _)) in zip(CYCLE, ALGORITHMS.items(), strict=False):
        growth = p_long_growth(results[f"{name}_{form}"])
        price = growth["length_price"]
        dots(ax, price, growth, color)
        ax.plot(price, growth.median("seed"), color=color, label=label)
    where = turning_point(results, form)
    name = "d / (2(d - 1))" if form == "additive" else "d / (2d - 1)"
    overlay(ax, [where] * 2, [-0.3, 0.75], f"{name} = {where:.3f}")
    ax.axhline(0, color=INK, lw=0.6)
    label_line(ax, 0, 0.04, "lengthens", INK)
    label_line(ax, 0, -0.04, "shortens", INK)
    ylabel = f"change of P(long) in {NUM_UPDATES} updates"
    finish(ax, f"Price {form}", "price of a full chain", ylabel, ncols=2)


def draw_tiny(ax: Axes, results: Results) -> None:
    """Growth of P(long) relative to no price, against the expected update's."""
    measured, predicted = slowed(results)
    x = np.arange(measured.sizes["length_price"])
    dots(ax, x, measured, CYCLE[0], ms=5)
    overlay(ax, x, predicted, "expected update of two logits")
    ax.set_xticks(x, [f"{p:g}" for p in measured["length_price"].values])
    title, ylabel = (
        f"GRPO, G = {TINY_GROUP}, plain SGD",
        "growth over that without price",
    )
    finish(ax, title, "price of a full chain", ylabel, ylim=(0, 1.4))


def draw_leap(ax: Axes, results: Results) -> None:
    """Greedy length and accuracy over the price with leap chains in the mixture."""
    end = last(results["leap"])
    price, num_bits = end["length_price"], results.runs["leap"].task.num_bits
    looks: dict[str, Any] = {"accuracy": {}, "length_mean": {"marker": "s", "ls": ":"}}
    for color, (score, look) in zip(CYCLE, looks.items(), strict=False):
        scale = num_bits if score == "length_mean" else 1
        values = end[f"greedy/{score}"] / scale
        dots(ax, price, values, color, ms=5, **{**look, "ls": ""})
        label = "mean length / d" if scale > 1 else "accuracy"
        ax.plot(price, values.median("seed"), color=color, label=label)
    low, high = leap_window(results)
    for where in (low, high):
        overlay(ax, [where] * 2, [0, 1.05], "full, leap-2 chain turns")
    title = "Leap-2 chains in the mixture, Dr. GRPO"
    finish(ax, title, "price of a full chain", "greedy decoding", num=3, ylim=(0, 1.08))
