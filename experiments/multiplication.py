"""Number multiplication: next-token prediction, then GRPO, as for parity (section 5).

Command    python -m experiments.main --config=experiments/multiplication.py \
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

    python -m experiments.main --config=experiments/multiplication.py \
        --config.scale=paper --workdir=runs/multiplication_4 \
        --config.task.num_digits=4 --config.eval_file=4_by_4_valid.txt

It has not been run. Forecast for an 80 GB GPU, 12 members one after the other, by XLA's
analysis of a compiled step (memory_analysis, cost_analysis; on a CPU): next-token steps
need 19 GiB and 8.7 TFLOP at n = 4, 57 GiB and 24 TFLOP at n = 7; at 300 TFLOP/s that is
12 and 34 minutes a member, 2.4 and 6.8 hours in all. GRPO needs less of either.
"""

from pathlib import Path
from typing import NamedTuple

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
    MultiplicationConfig,
    PolicyGradientConfig,
    PopulationConfig,
    PretrainConfig,
    RolloutConfig,
    RunConfig,
    TransformerConfig,
    gpt2,
    mistral,
    to_config_dict,
)
from parity_jax.plots import (
    ACCENT,
    BLUE,
    GREY,
    INK,
    draw_members,
    label_line,
    save_figure,
)
from parity_jax.results import Claim, by_member, load_metrics, read_json, write_claims
from parity_jax.types import Hypers

NUM_PROMPTS, NUM_GENERATIONS = 32, 8  # of a step of GRPO
JUMP = 0.2  # of exact matches, that RL has to add on every seed


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
            12,
            768,
            num_heads=12,
            num_kv_heads=12,
            init_std=0.02,
            dtype="bfloat16",
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


def get_config(scale: str = "cpu") -> ConfigDict:
    size = choose(SCALES, scale)
    grpo = RunConfig(
        stage=PolicyGradientConfig(
            rollout=RolloutConfig(NUM_PROMPTS, NUM_GENERATIONS),
            loss_type="dapo",  # per token: 1 / |y| leaves the long answers no weight
        ),
        hypers=Hypers(learning_rate=size.rl_learning_rate),
        num_steps=size.num_updates,
        log_every=1,
        eval_every=size.num_updates // 10,
        parent="pretrain",
        parent_step=size.switch,
    )
    num_sequences = size.num_updates * NUM_PROMPTS * NUM_GENERATIONS
    pretrain = RunConfig(
        stage=PretrainConfig(batch_size=size.batch_size, decay_steps=size.switch),
        hypers=Hypers(learning_rate=size.learning_rate),
        num_steps=size.switch + num_sequences // size.batch_size,  # and the control
        log_every=size.switch // 50,
        eval_every=size.switch // 10,
        checkpoint_every=size.switch // 5,
    )
    return to_config_dict(
        Experiment(
            task=MultiplicationConfig(size.num_digits),
            model=size.model,
            axes=FrozenDict({"p_cot": size.p_cot, "seed": size.seeds}),
            runs=FrozenDict({"pretrain": pretrain, "grpo": grpo}),
            evaluate=EvaluateConfig(512, (1.0,)),
            population=PopulationConfig(vmap_width=1),  # by memory, see above
        )
    )


class Results(NamedTuple):
    """Evaluations by stage over `sequences`, in thousands from the very first one."""

    num_digits: int
    pretrain: xr.Dataset
    control: xr.Dataset  # next-token prediction that goes on beside GRPO
    grpo: xr.Dataset


def load(workdir: Path) -> Results:
    config = read_json(workdir / "config.json")
    runs = config["runs"]
    batch_size = runs["pretrain"]["stage"]["batch_size"]
    rollout = runs["grpo"]["stage"]["rollout"]
    switch = runs["grpo"]["parent_step"]
    samples = rollout["num_prompts"] * rollout["num_generations"]
    next_token = load_metrics(workdir / "pretrain", "eval")
    grpo = load_metrics(workdir / "grpo", "eval")
    sequences = next_token["step"] * batch_size / 1000
    next_token = next_token.assign_coords(sequences=sequences)
    start = switch * batch_size / 1000
    return Results(
        config["task"]["num_digits"],
        next_token.sel(step=slice(0, switch)),
        next_token.sel(step=slice(switch, None)),
        grpo.assign_coords(sequences=start + grpo["step"] * samples / 1000),
    )


def analyse(workdir: Path) -> None:
    results = load(workdir)
    write_claims(workdir, claims(results))
    save_figure(figure(results), workdir)


def claims(results: Results) -> list[Claim]:
    """Calibration, plateau and jump, on the last evaluation of each stage."""
    before = results.pretrain.isel(step=-1, drop=True)
    control = results.control.isel(step=-1, drop=True)
    after = results.grpo.isel(step=-1, drop=True)
    gap = abs(before["t1/p_long"] - before["p_cot"])
    drift = abs(control["greedy/accuracy"] - before["greedy/accuracy"])
    below = before["p_cot"] < 0.5  # greedy decoding is short; above it is long at once
    short = (before["greedy/p_long"] <= 0.1) & (control["greedy/p_long"] <= 0.1)
    jump = after["greedy/accuracy"] - control["greedy/accuracy"]
    stages = (("before RL", before), ("control", control), ("after RL", after))
    names = ("greedy/accuracy", "greedy/p_long", "greedy/digits", "t1/accuracy_long")
    measured = {
        f"{stage} {name}": by_member(data[name])
        for name in names
        for stage, data in stages
    }
    return [
        Claim(
            "M1",
            "after next-token prediction P(long) at temperature 1 is p_cot",
            "P(long) = p_cot",
            by_member(before["t1/p_long"]),
            "0.1",
            bool((gap <= 0.1).all()),
        ),
        Claim(
            "M2",
            "below p_cot = 1/2 next-token prediction alone stays short under greedy "
            "decoding and gains nothing from as many further sequences as RL uses",
            "P(long) <= 0.1 under greedy decoding, exact matches within 0.05",
            {k: v for k, v in measured.items() if not k.startswith("after")},
            "0.1 and 0.05",
            bool((short & (drift <= 0.05)).where(below, True).all()),
        ),
        Claim(
            "M3",
            "below p_cot = 1/2 GRPO adds 20 points or more of greedy exact matches to "
            "the control",
            f"at least {JUMP} on every seed",
            {"gain": by_member(jump)} | measured,
            "none",
            bool((jump >= JUMP).where(below, True).all()),
        ),
    ]


def figure(results: Results) -> plt.Figure:
    """Exact matches, length, digits and chain steps over sequences, at one p_cot."""
    shown = float(results.grpo["p_cot"].sel(p_cot=0.25, method="nearest"))
    pretrain, control, grpo = (data.sel(p_cot=shown, drop=True) for data in results[1:])
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 5.8), sharex=True)
    panels = (
        ("accuracy", "exact matches"),
        ("length_mean", "response length (tokens)"),
        ("digits", "right digits of the answer"),
    )
    for ax, (score, label) in zip(axes.flat, panels, strict=False):
        for data in (pretrain, grpo):
            draw_members(ax, data["sequences"], data[f"t1/{score}"], BLUE)
            draw_members(ax, data["sequences"], data[f"greedy/{score}"], ACCENT)
        rest = control[f"greedy/{score}"]
        draw_members(ax, control["sequences"], rest, GREY, ls=":")
        ax.set_ylabel(label)
    for ax in (axes[0, 0], axes[1, 0], axes[1, 1]):
        ax.set_ylim(-0.03, 1.05)
    draw_steps(axes[1, 1], [pretrain, grpo])
    end = float(grpo["sequences"][-1])
    last = [float(x["greedy/accuracy"][..., -1].median()) for x in (grpo, control)]
    label_line(axes[0, 0], end, last[0], "greedy", ACCENT)
    label_line(axes[0, 0], end, last[1], "greedy,\nno RL", GREY, va="bottom")
    right = float(grpo["t1/accuracy"][..., -1].median())
    label_line(axes[0, 0], end, right, "sampled", BLUE, va="top")
    for ax in axes.flat:
        ax.axvline(float(grpo["sequences"][0]), color=INK, lw=0.8)
    for ax in axes[1]:
        ax.set_xlabel("training sequences (thousands)")
    n = results.num_digits
    title = f"{n} x {n} digits, {shown:.0%} long demonstrations; GRPO from the line on"
    figure.suptitle(title, x=0.02, ha="left", fontsize=10)
    figure.tight_layout()
    return figure


def draw_steps(ax: Axes, stages: list[xr.Dataset]) -> None:
    """How often each chain step is right where all before are, sampled long answers."""
    names = [str(name) for name in stages[0] if str(name).startswith("t1/steps/")]
    names.sort(key=lambda name: step_order(name.removeprefix("t1/steps/")))
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(names)))
    for name, color in zip(names, colors, strict=True):
        for data in stages:
            label = name.removeprefix("t1/steps/") if data is stages[0] else ""
            draw_members(ax, data["sequences"], data[name], color, label)
    ax.set_ylabel("right chain steps,\ngiven those before")
    ax.legend(fontsize=7, ncols=2, frameon=False, loc="lower right")


def step_order(name: str) -> tuple[int, str]:
    """product_1, product_2, sum_2, .., answer."""
    kind, _, number = name.partition("_")
    return (int(number) if number else 99, kind)
