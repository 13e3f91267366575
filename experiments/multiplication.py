"""Number multiplication: next-token prediction, then GRPO, as for parity (section 5).

Command    parity-jax run --config=experiments/multiplication.py \
               --workdir=runs/multiplication
Device     2 CPU cores, about 8 minutes
Expected   3 x 3 digits, 25% long demonstrations: after next-token prediction sampled
           answers are long with probability p_cot, greedy ones are short and nearly
           always wrong; GRPO with the end-to-end reward makes them long and lifts exact
           matches by 20 points or more; next-token prediction on as many sequences does
           not. (GPT-2 of this size learned the last sum of its chain on one seed of two
           in 8000 steps; rotary positions need fewer.)
Figure     the paper's figure on multiplication, and where answers and chains are wrong
           (n = 3 and all sizes are ours; the paper has n = 4, 5, 7)

Paper scale (n in {4, 5, 7}, the paper's shares; GPT-2 small, 85M parameters: ours), one
n at a time, and with files of held-out pairs in the public format if there are any:

    parity-jax run --config=experiments/multiplication.py \
        --config.scale=paper --workdir=runs/multiplication_4 \
        --config.task.num_digits=4 --config.eval_file=4_by_4_valid.txt

It has not been run. Forecast for an 80 GB GPU, 12 members one after the other, by XLA's
analysis of a compiled step (memory_analysis, cost_analysis; on a CPU): next-token steps
need 19 GiB and 8.7 TFLOP at n = 4, 57 GiB and 24 TFLOP at n = 7; at 300 TFLOP/s that is
12 and 34 minutes a member, 2.4 and 6.8 hours in all. GRPO needs less of either.
"""

from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import choose
from matplotlib.axes import Axes

from parity_jax.analysis import Check, Claim, Results, last
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
from parity_jax.models import TransformerConfig, gpt2, mistral
from parity_jax.optim import OptimizerConfig
from parity_jax.population import PopulationConfig
from parity_jax.stages import PolicyGradientConfig, PretrainConfig, RolloutConfig
from parity_jax.tasks import MultiplicationConfig

JUMP = 0.2  # of exact matches, that RL has to add on every seed
MEASURED = ("greedy/accuracy", "greedy/p_long", "greedy/digits", "t1/accuracy_long")
PANELS = {
    "accuracy": "exact matches",
    "length_mean": "response length (tokens)",
    "digits": "right digits of the answer",
}


class Scale(NamedTuple):
    """What a scale sets."""

    num_digits: int
    model: TransformerConfig
    p_cot: tuple[float, ...]
    seeds: tuple[int, ...]
    batch_size: int
    learning_rate: float
    switch: int  # steps of next-token prediction before GRPO
    rl_learning_rate: float
    num_updates: int


SCALES = {
    "cpu": Scale(
        num_digits=3,
        model=mistral(depth=2, width=128),
        p_cot=(0.25,),
        seeds=(0, 1),
        batch_size=32,
        learning_rate=1e-3,
        switch=6000,
        rl_learning_rate=2e-4,
        num_updates=50,
    ),
    "paper": Scale(
        num_digits=4,
        model=gpt2(
            12, 768, num_heads=12, num_kv_heads=12, init_std=0.02, dtype="bfloat16"
        ),
        p_cot=(0.1, 0.25, 0.5, 1.0),
        seeds=(0, 1, 2),
        batch_size=256,
        learning_rate=3e-4,
        switch=25_000,
        rl_learning_rate=3e-5,
        num_updates=500,
    ),
}


def get_config(scale: str = "cpu") -> Experiment:
    size = choose(SCALES, scale)
    rollout = RolloutConfig(num_prompts=32, num_generations=8)
    grpo = RunConfig(
        stage=PolicyGradientConfig(
            rollout=rollout,
            loss_type="dapo",  # per token: 1 / |y| leaves the long answers no weight
        ),
        hypers=Hypers(learning_rate=size.rl_learning_rate),
        num_steps=size.num_updates,
        log_every=1,
        eval_every=size.num_updates // 10,
        parent="pretrain",
        parent_step=size.switch,
    )
    num_sequences = size.num_updates * rollout.num_responses
    pretrain = RunConfig(
        stage=PretrainConfig(size.batch_size, OptimizerConfig(decay_steps=size.switch)),
        hypers=Hypers(learning_rate=size.learning_rate),
        num_steps=size.switch + num_sequences // size.batch_size,  # and the control
        log_every=size.switch // 50,
        eval_every=size.switch // 10,
        checkpoint_every=size.switch // 5,
    )
    return Experiment(
        task=MultiplicationConfig(size.num_digits),
        model=size.model,
        axes=FrozenDict({"p_cot": size.p_cot, "seed": size.seeds}),
        runs=FrozenDict({"pretrain": pretrain, "grpo": grpo}),
        evaluate=EvaluateConfig(512, (1.0,)),
        population=PopulationConfig(vmap_width=1),  # by memory, see above
    )


def claims(results: Results) -> list[Claim]:
    """Calibration, plateau and jump, on the last evaluation of each stage."""
    switch = results.runs["grpo"].parent.step
    stages = {
        "before RL": last(results["pretrain"].sel(step=slice(switch))),
        "control": last(results["pretrain"]),
        "after RL": last(results["grpo"]),
    }
    before = stages["before RL"]
    seen = {f"{s} {name}": stages[s][name] for name in MEASURED for s in stages}
    # greedy decoding is short below 1/2; above it is long at once
    held = {k: v.where(v["p_cot"] < 0.5, drop=True) for k, v in seen.items()}
    control = held["control greedy/accuracy"]
    gain = held["after RL greedy/accuracy"] - control
    return [
        Claim.within("M1", before["t1/p_long"], before["p_cot"], 0.1),
        Claim.of(
            "M2",
            seen={k: v for k, v in seen.items() if not k.startswith("after")},
            long_before=Check.at_most(held["before RL greedy/p_long"], 0.1),
            long_control=Check.at_most(held["control greedy/p_long"], 0.1),
            accuracy=Check.within(control, held["before RL greedy/accuracy"], 0.05),
        ),
        Claim.of("M3", seen=seen, gain=Check.at_least(gain, JUMP)),
    ]


def figure(results: Results) -> plt.Figure:
    """Exact matches, length, digits and chain steps over sequences, at one p_cot."""
    switch = results.runs["grpo"].parent.step
    shown = float(results["grpo"]["p_cot"].sel(p_cot=0.25, method="nearest"))
    whole, grpo = (results[name].sel(p_cot=shown) for name in ("pretrain", "grpo"))
    stages = (whole.sel(step=slice(switch)), grpo)
    control = whole.sel(step=slice(switch, None))
    start, end = (float(grpo["sequences"][i]) / 1000 for i in (0, -1))
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 5.8), sharex=True)
    for ax, (score, ylabel) in zip(axes.flat, PANELS.items(), strict=False):
        for data in stages:
            draw(ax, data, f"t1/{score}", BLUE)
            draw(ax, data, f"greedy/{score}", ACCENT)
        draw(ax, control, f"greedy/{score}", GREY, ls=":")
        ax.set_ylabel(ylabel)
    draw_steps(axes[1, 1], stages)
    ax, accuracy = axes[0, 0], "greedy/accuracy"
    label_line(ax, end, end_of(grpo[accuracy]), "greedy", ACCENT)
    label_line(ax, end, end_of(whole[accuracy]), "greedy,\nno RL", GREY, va="bottom")
    label_line(ax, end, end_of(grpo["t1/accuracy"]), "sampled", BLUE, va="top")
    for ax in axes.flat:
        ax.axvline(start, color=INK, lw=0.8)
        if ax is not axes[0, 1]:
            ax.set_ylim(-0.03, 1.05)
    for ax in axes[1]:
        ax.set_xlabel("training sequences (thousands)")
    n = results.experiment.task.num_digits
    title = f"{n} x {n} digits, {shown:.0%} long demonstrations; GRPO from the line on"
    figure.suptitle(title, x=0.02, ha="left", fontsize=10)
    figure.tight_layout()
    return figure


def draw(ax: Axes, data: xr.Dataset, score: str, color: str, **look: str) -> None:
    """A score over thousands of sequences."""
    draw_members(ax, data[score], color, x=data["sequences"] / 1000, **look)


def draw_steps(ax: Axes, stages: tuple[xr.Dataset, ...]) -> None:
    """How often each chain step is right where all before are, sampled long answers."""
    head = "t1/steps/"
    names = [str(name).removeprefix(head) for name in stages[0] if head in str(name)]
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(names)))
    for name, color in zip(sorted(names, key=step_order), colors, strict=True):
        for data, label in zip(stages, (name, ""), strict=True):
            draw(ax, data, head + name, color, label=label)
    ax.set_ylabel("right chain steps,\ngiven those before")
    ax.legend(fontsize=7, ncols=2, frameon=False, loc="lower right")


def step_order(name: str) -> tuple[int, str]:
    """product_1, product_2, sum_2, .., answer."""
    kind, _, number = name.partition("_")
    return (int(number) if number else 99, kind)
