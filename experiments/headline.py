"""The headline: parity of 50 bits, next-token prediction, then GRPO (C1, C2, C4, C5).

Command    make headline
           (experiments.main with this file and --workdir=runs/headline; also takes
           --config.scale=paper)
Device     2 CPU cores: see README for the measured minutes; any GPU
Expected   before RL: greedy answers are 1 token long and right half of the time,
           sampled ones are long with probability p_cot; after RL: greedy answers are
           50 tokens long and right; next-token prediction on as many sequences changes
           nothing.
Figure     the paper's first figure (its d=50, p_cot=0.25; batch and widths are ours)
"""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import xarray as xr
from flax.core import FrozenDict
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
from parity_jax.theory import accuracy
from parity_jax.types import Hypers


class Scale(NamedTuple):
    """What a scale sets; d, model and p_cot are the paper's in both."""

    batch_size: int
    switch: int  # steps of next-token prediction before GRPO
    num_prompts: int  # of an update
    seeds: tuple[int, ...]


SCALES = {"cpu": Scale(64, 600, 32, (0, 1)), "paper": Scale(256, 2000, 64, (0, 1, 2))}


def get_config(scale: str = "cpu") -> ConfigDict:
    size = choose(SCALES, scale)
    p_cot = 0.25  # below 1/3: greedy decoding stays short
    rollout = RolloutConfig(num_prompts=size.num_prompts, num_generations=8)
    grpo = RunConfig(
        stage=PolicyGradientConfig(
            rollout=rollout,
            loss_type="dapo",  # per token: 1 / |y| leaves the long answers no weight
        ),
        hypers=Hypers(p_cot=p_cot, learning_rate=1e-4),
        num_steps=25,
        log_every=1,
        eval_every=5,
        parent="pretrain",
        parent_step=size.switch,
    )
    num_sequences = grpo.num_steps * size.num_prompts * rollout.num_generations
    pretrain = RunConfig(
        stage=PretrainConfig(batch_size=size.batch_size, decay_steps=size.switch),
        hypers=Hypers(p_cot=p_cot, learning_rate=1e-3),
        # the control goes on beside GRPO
        num_steps=size.switch + num_sequences // size.batch_size,
        log_every=10,
        eval_every=100,
        checkpoint_every=100,
    )
    return to_config_dict(
        Experiment(
            task=ParityConfig(num_bits=50),
            model=mistral(depth=2, width=128),
            axes=FrozenDict({"seed": size.seeds}),
            runs=FrozenDict({"pretrain": pretrain, "grpo": grpo}),
            evaluate=EvaluateConfig(num_prompts=256),
        )
    )


def analyse(workdir: Path) -> None:
    write_claims(workdir, claims(workdir))
    save_figure(figure(workdir), workdir)


def claims(workdir: Path) -> list[Claim]:
    """C1, C2, C4 and C5 on the last evaluation of each stage, for every seed."""
    d, p_cot, switch = read_setting(workdir)
    next_token = load_metrics(workdir / "pretrain", "eval")
    before, control = next_token.sel(step=switch), next_token.isel(step=-1)
    after = load_metrics(workdir / "grpo", "eval")
    p_long, sampled = before["t1/p_long"], before["t1/accuracy"]
    expected_accuracy = float(accuracy(p_cot))
    at_chance = [abs(run["greedy/accuracy"] - 0.5) <= 0.1 for run in (before, control)]
    short = [run["greedy/length_median"] == 1 for run in (before, control)]
    last = after.isel(step=-1)
    solved = (last["greedy/accuracy"] >= 0.99) & (last["greedy/length_median"] == d)
    return [
        Claim(
            "C1",
            "after pre-training P(long) at temperature 1 is p_cot",
            f"{p_cot}",
            by_member(p_long),
            "0.1",
            bool((abs(p_long - p_cot) <= 0.1).all()),
        ),
        Claim(
            "C2",
            "accuracy at temperature 1 is (1 + p_cot) / 2",
            f"{expected_accuracy}",
            by_member(sampled),
            "0.1",
            bool((abs(sampled - expected_accuracy) <= 0.1).all()),
        ),
        Claim(
            "C4",
            "next-token prediction alone stays short and at chance under greedy "
            "decoding, also on as many further sequences as RL uses",
            "accuracy 0.5, length 1",
            {
                f"{name} {score}": by_member(run[f"greedy/{score}"])
                for name, run in (("before RL", before), ("control", control))
                for score in ("accuracy", "length_median")
            },
            "accuracy 0.1, length exact",
            bool(all(x.all() for x in at_chance + short)),
        ),
        Claim(
            "C5",
            "GRPO makes greedy decoding perfect and long within 25 updates",
            f"accuracy >= 0.99, length {d}",
            {
                "accuracy": by_member(last["greedy/accuracy"]),
                "length_median": by_member(last["greedy/length_median"]),
                "first update with accuracy >= 0.99": by_member(first_solved(after)),
            },
            "accuracy >= 0.99, length exact",
            bool(solved.all()),
        ),
    ]


def read_setting(workdir: Path) -> tuple[int, float, int]:
    """d, p_cot and the step from which GRPO starts, of a run of this experiment."""
    config = read_json(workdir / "config.json")
    runs = config["runs"]
    p_cot = runs["pretrain"]["hypers"]["p_cot"]
    return config["task"]["num_bits"], p_cot, runs["grpo"]["parent_step"]


def first_solved(scores: xr.Dataset) -> xr.DataArray:
    """First evaluated step with greedy accuracy >= 0.99; NaN if there is none."""
    solved = scores["greedy/accuracy"] >= 0.99
    return scores["step"].where(solved).min("step")


def figure(workdir: Path) -> plt.Figure:
    d, p_cot, switch_step = read_setting(workdir)
    config = read_json(workdir / "config.json")["runs"]
    batch_size = config["pretrain"]["stage"]["batch_size"]
    rollout = config["grpo"]["stage"]["rollout"]
    next_token = load_metrics(workdir / "pretrain", "eval")
    grpo = load_metrics(workdir / "grpo", "eval")
    samples = rollout["num_prompts"] * rollout["num_generations"]
    switch = switch_step * batch_size / 1000  # thousands of sequences
    pretrain = next_token.sel(step=slice(0, switch_step))
    control = next_token.sel(step=slice(switch_step, None))
    stages = (
        (pretrain, pretrain["step"] * batch_size / 1000),
        (grpo, switch + grpo["step"] * samples / 1000),
    )
    end = float(stages[1][1][-1])
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5.2), sharex=True)
    for ax, greedy, sampled in (
        (top, "greedy/accuracy", "t1/accuracy"),
        (bottom, "greedy/length_median", "t1/length_mean"),
    ):
        for data, sequences in stages:
            draw_members(ax, sequences, data[sampled], BLUE)
            draw_members(ax, sequences, data[greedy], ACCENT)
        sequences = control["step"] * batch_size / 1000
        draw_members(ax, sequences, control[greedy], GREY, ls=":")
        ax.axvline(switch, color=INK, lw=0.8)
        label_line(ax, end, float(grpo[greedy][..., -1].median()), "greedy", ACCENT)
        final = float(control[greedy][..., -1].median())
        label_line(ax, end, final, "greedy,\nno RL", GREY, va="bottom")
    top.axhline(accuracy(p_cot), color=BLUE, ls="--", lw=1)
    above: dict[str, Any] = {"va": "bottom", "xytext": (4, 2)}
    theory = "theory (1 + p_cot) / 2"
    label_line(top, 0, accuracy(p_cot), theory, BLUE, **above)
    theory = "theory 1 + (d - 1) p_cot"
    label_line(bottom, 0.2 * switch, 1 + (d - 1) * p_cot, theory, BLUE, **above)
    bottom.axhline(1 + (d - 1) * p_cot, color=BLUE, ls="--", lw=1)
    before_switch = switch * 0.97
    label_line(top, before_switch, 0.95, "next-token prediction", INK, ha="right")
    label_line(top, switch, 0.3, "GRPO", INK)
    label_line(
        bottom, before_switch, 0.5 * d, "sampled at\ntemperature 1", BLUE, ha="right"
    )
    top.set(ylabel="accuracy", ylim=(0.2, 1.03))
    bottom.set(
        ylabel="response length (tokens)", xlabel="training sequences (thousands)"
    )
    top.set_title(f"Parity of {d} bits, {p_cot:.0%} long demonstrations", loc="left")
    return figure
