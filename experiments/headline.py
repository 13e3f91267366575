"""The headline: parity of 50 bits, next-token prediction, then GRPO (C1, C2, C4, C5).

Command    make headline
           (parity-jax run --config=experiments/headline.py --workdir=runs/headline;
           also takes --config.scale=paper)
Device     2 CPU cores: see README for the measured minutes; paper scale: 2 minutes
           on an H100 that others used
Expected   before RL: greedy answers are 1 token long and right half of the time,
           sampled ones are long with probability p_cot; after RL: greedy answers are
           50 tokens long and right; next-token prediction on as many sequences changes
           nothing.
Seen       with 25 updates in place of 50, which were enough for the draws of older
           versions, seed=0 ends at 0.984; it is at 0.99 or more from update 35 on
Figure     the paper's first figure (its d=50, p_cot=0.25; batch and widths are ours)
"""

from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import choose, solved, stuck

from parity_jax.analysis import Claim, Results, first_step, last
from parity_jax.analysis.plots import (
    ACCENT,
    BLUE,
    GREY,
    INK,
    draw_members,
    end_of,
    label_line,
)
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import mistral
from parity_jax.optim import OptimizerConfig
from parity_jax.stages import PolicyGradientConfig, PretrainConfig, RolloutConfig
from parity_jax.tasks import ParityConfig
from parity_jax.theory import accuracy


class Scale(NamedTuple):
    """What a scale sets; d, model and p_cot are the paper's in both."""

    batch_size: int
    switch: int  # steps of next-token prediction before GRPO
    num_updates: int  # of GRPO
    num_prompts: int  # of an update
    seeds: tuple[int, ...]


MAX_UPDATES = 50  # of GRPO, within which C5 says that all is solved
SCALES = {
    "cpu": Scale(64, 600, num_updates=50, num_prompts=32, seeds=(0, 1)),
    "paper": Scale(256, 2000, num_updates=25, num_prompts=64, seeds=(0, 1, 2)),
}


def get_config(scale: str = "cpu") -> Experiment:
    size = choose(SCALES, scale)
    p_cot = 0.25  # below 1/3: greedy decoding stays short
    rollout = RolloutConfig(num_prompts=size.num_prompts, num_generations=8)
    grpo = RunConfig(
        stage=PolicyGradientConfig(
            rollout=rollout,
            loss_type="dapo",  # per token: 1 / |y| leaves the long answers no weight
        ),
        hypers=Hypers(p_cot=p_cot, learning_rate=1e-4),
        num_steps=size.num_updates,
        log_every=1,
        eval_every=5,
        parent="pretrain",
        parent_step=size.switch,
    )
    num_sequences = grpo.num_steps * rollout.num_responses
    pretrain = RunConfig(
        stage=PretrainConfig(size.batch_size, OptimizerConfig(decay_steps=size.switch)),
        hypers=Hypers(p_cot=p_cot, learning_rate=1e-3),
        # the control goes on beside GRPO
        num_steps=size.switch + num_sequences // size.batch_size,
        log_every=10,
        eval_every=100,
        checkpoint_every=100,
    )
    return Experiment(
        task=ParityConfig(num_bits=50),
        model=mistral(depth=2, width=128),
        axes=FrozenDict({"seed": size.seeds}),
        runs=FrozenDict({"pretrain": pretrain, "grpo": grpo}),
        evaluate=EvaluateConfig(num_prompts=256),
    )


def claims(results: Results) -> list[Claim]:
    """C1, C2, C4 and C5 on the last evaluation of each stage, for every seed."""
    num_bits = results.experiment.task.num_bits
    p_cot = results.number("pretrain", "p_cot")
    before = results["pretrain"].sel(step=results.runs["grpo"].parent.step)
    control, after = last(results["pretrain"]), results["grpo"]
    ideal = xr.apply_ufunc(accuracy, p_cot)  # keeps the axis, if it is one
    first = first_step(after["greedy/accuracy"] >= 0.99)
    return [
        Claim.within("C1", before["t1/p_long"], p_cot, 0.1),
        Claim.within("C2", before["t1/accuracy"], ideal, 0.1),
        Claim.of("C4", **stuck(before, "before RL, "), **stuck(control, "control, ")),
        Claim.of(
            "C5",
            seen={"first update with accuracy >= 0.99": first},
            **solved(last(after.sel(step=after["step"] <= MAX_UPDATES)), num_bits),
        ),
    ]


def figure(results: Results) -> plt.Figure:
    """Accuracy and length over the training sequences of both stages."""
    d, switch_step = results.experiment.task.num_bits, results.runs["grpo"].parent.step
    shares = np.ravel(results.number("pretrain", "p_cot")).tolist()
    pretrain = results["pretrain"].sel(step=slice(0, switch_step))
    control = results["pretrain"].sel(step=slice(switch_step, None))
    grpo = results["grpo"]
    switch, end = (float(grpo["sequences"][i]) / 1000 for i in (0, -1))
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5.2), sharex=True)
    for ax, greedy, sampled in (
        (top, "greedy/accuracy", "t1/accuracy"),
        (bottom, "greedy/length_median", "t1/length_mean"),
    ):
        for data in (pretrain, grpo):
            thousands = data["sequences"] / 1000
            draw_members(ax, data[sampled], BLUE, x=thousands)
            draw_members(ax, data[greedy], ACCENT, x=thousands)
        thousands = control["sequences"] / 1000
        draw_members(ax, control[greedy], GREY, x=thousands, ls=":")
        ax.axvline(switch, color=INK, lw=0.8)
        label_line(ax, end, end_of(grpo[greedy]), "greedy", ACCENT)
        va = "top" if ax is top else "bottom"  # beside the theory's line
        label_line(ax, end, end_of(control[greedy]), "greedy,\nno RL", GREY, va=va)
    above: dict[str, Any] = {"va": "bottom", "xytext": (4, 2)}
    for p_cot in shares:
        top.axhline(accuracy(p_cot), color=BLUE, ls="--", lw=1)
        label_line(top, 0, accuracy(p_cot), "theory (1 + p_cot) / 2", BLUE, **above)
        length = 1 + (d - 1) * p_cot
        bottom.axhline(length, color=BLUE, ls="--", lw=1)
        theory = "theory 1 + (d - 1) p_cot"
        label_line(bottom, 0.2 * switch, length, theory, BLUE, **above)
    before_switch = switch * 0.97
    label_line(top, before_switch, 0.95, "next-token prediction", INK, ha="right")
    label_line(top, switch, 0.3, "GRPO", INK)
    text = "sampled at\ntemperature 1"
    label_line(bottom, before_switch, 0.5 * d, text, BLUE, ha="right")
    top.set(ylabel="accuracy", ylim=(0.2, 1.03))
    bottom.set(ylabel="response length (tokens)")
    bottom.set(xlabel="training sequences (thousands)")
    long = ", ".join(f"{p_cot:.0%}" for p_cot in shares)
    top.set_title(f"Parity of {d} bits, {long} long demonstrations", loc="left")
    return figure
