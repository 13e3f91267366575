"""Next-token prediction alone does not get there, in any architecture (C4).

Command    python -m experiments.main --config=experiments/c4_next_token_alone.py \
               --workdir=runs/c4_next_token_alone [--config.scale=paper]
Device     2 CPU cores, about 7 minutes; paper scale: one GPU
Expected   at p_cot = 0.25 greedy decoding stays short and at chance to the end of
           next-token prediction in every architecture, while GRPO from an early
           checkpoint of the same run makes it long and right with a fraction of the
           sequences; at small d next-token prediction learns the short parity itself
Figure     the paper's long runs at d = 50 (1e7 sequences) over depth and width; small d
           is ours
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import xarray as xr
from flax.core import FrozenDict
from ml_collections import ConfigDict

from experiments.lab import choose, is_solved, is_stuck
from parity_jax.config import (
    EvaluateConfig,
    Experiment,
    ParityConfig,
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    RunConfig,
    TransformerConfig,
    gpt2,
    mistral,
    to_config_dict,
)
from parity_jax.plots import ACCENT, BLUE, GREY, draw_members, label_line, save_figure
from parity_jax.results import Claim, by_member, load_metrics, read_json, write_claims
from parity_jax.types import Hypers

ROLLOUT = RolloutConfig(num_prompts=32, num_generations=8)
NUM_UPDATES = 30
SMALL = "small_d"  # the run whose short parity can be learned


class Scale(NamedTuple):
    """What a scale sets."""

    num_bits: int
    small_bits: int
    models: dict[str, TransformerConfig]
    batch_size: int
    num_steps: int  # of next-token prediction alone
    switch: int  # step from which GRPO starts
    seeds: tuple[int, ...]


def narrow(family: Any, depth: int) -> TransformerConfig:
    """Width 64 in heads of 16."""
    kv_heads = 2 if family is mistral else 4
    return family(depth, 64, num_heads=4, num_kv_heads=kv_heads)


SCALES = {
    "cpu": Scale(
        num_bits=16,
        small_bits=6,
        models={
            "mistral_2x64": narrow(mistral, 2),
            "mistral_4x64": narrow(mistral, 4),
            "mistral_2x128": mistral(2, 128),
            "gpt2_2x64": narrow(gpt2, 2),
        },
        batch_size=64,
        num_steps=1200,
        switch=480,
        seeds=(0, 1),
    ),
    "paper": Scale(
        num_bits=50,
        small_bits=8,
        models={
            f"{name}_{depth}x{width}": family(depth, width)
            for name, family in (("mistral", mistral), ("gpt2", gpt2))
            for depth, width in ((2, 128), (4, 128), (8, 128), (2, 256), (8, 256))
        },
        batch_size=256,
        num_steps=40_000,
        switch=1000,
        seeds=(0, 1, 2),
    ),
}


def get_config(scale: str = "cpu") -> ConfigDict:
    size = choose(SCALES, scale)
    pretrain = RunConfig(
        stage=PretrainConfig(
            batch_size=size.batch_size, decay_steps=size.num_steps, final_lr_ratio=0.02
        ),
        hypers=Hypers(p_cot=0.25, learning_rate=1e-3),
        num_steps=size.num_steps,
        log_every=size.switch // 6,
        eval_every=size.switch // 3,
        checkpoint_every=size.switch,
    )
    runs = {}
    for name, model in size.models.items():
        runs[name] = replace(pretrain, model=model)
        runs[f"{name}_grpo"] = RunConfig(
            stage=PolicyGradientConfig(rollout=ROLLOUT, loss_type="dapo"),
            hypers=Hypers(p_cot=0.25, learning_rate=2e-4),
            num_steps=NUM_UPDATES,
            log_every=5,
            eval_every=5,
            parent=name,
            parent_step=size.switch,
            model=model,
        )
    runs[SMALL] = replace(pretrain, task=ParityConfig(num_bits=size.small_bits))
    return to_config_dict(
        Experiment(
            task=ParityConfig(num_bits=size.num_bits),
            model=next(iter(size.models.values())),
            axes=FrozenDict({"seed": size.seeds}),
            runs=FrozenDict(runs),
            evaluate=EvaluateConfig(256, (1.0,)),
        )
    )


def analyse(workdir: Path) -> None:
    config = read_json(workdir / "config.json")
    runs = [n for n in config["runs"] if n != SMALL and not n.endswith("_grpo")]
    alone = {name: load_metrics(workdir / name, "eval") for name in runs}
    grpo = {name: load_metrics(workdir / f"{name}_grpo", "eval") for name in runs}
    small = load_metrics(workdir / SMALL, "eval")
    write_claims(workdir, claims(config, alone, grpo, small))
    save_figure(figure(config, alone, grpo, small), workdir)


def claims(
    config: dict[str, Any],
    alone: dict[str, xr.Dataset],
    grpo: dict[str, xr.Dataset],
    small: xr.Dataset,
) -> list[Claim]:
    num_bits = config["task"]["num_bits"]
    small_bits = config["runs"][SMALL]["task"]["num_bits"]
    ends = {name: data.isel(step=-1) for name, data in alone.items()}
    after = {name: data.isel(step=-1) for name, data in grpo.items()}
    sequences, rl_sequences = sequences_used(config, alone)
    final = small.isel(step=-1)
    return [
        Claim(
            "C4",
            f"next-token prediction alone ({sequences:.3g} sequences, d = {num_bits}) "
            "stays short and at chance under greedy decoding, in every architecture",
            "accuracy 0.5, length 1 on every seed",
            {n: by_member(end["greedy/accuracy"]) for n, end in ends.items()},
            "accuracy 0.1, length exact",
            all(bool(is_stuck(end).all()) for end in ends.values()),
        ),
        Claim(
            "C4-grpo",
            f"GRPO from an early checkpoint ({rl_sequences:.3g} sequences in all) "
            "makes greedy decoding long and perfect, in every architecture",
            f"accuracy >= 0.99, length {num_bits} on every seed",
            {n: by_member(end["greedy/accuracy"]) for n, end in after.items()},
            "accuracy 0.01, length exact",
            all(bool(is_solved(end, num_bits).all()) for end in after.values()),
        ),
        Claim(
            "C4-small",
            f"at d = {small_bits} next-token prediction alone learns the short parity",
            "greedy accuracy >= 0.99, short samples right, length 1",
            {
                "greedy accuracy": by_member(final["greedy/accuracy"]),
                "short samples right": by_member(final["t1/accuracy_short"]),
                "length": by_member(final["greedy/length_median"]),
            },
            "accuracy 0.01, length exact",
            bool(
                (final["greedy/accuracy"] >= 0.99).all()
                and (final["greedy/length_median"] == 1).all()
            ),
        ),
    ]


def sequences_used(
    config: dict[str, Any], alone: dict[str, xr.Dataset]
) -> tuple[float, float]:
    """Training sequences of a member, next-token prediction alone and with GRPO."""
    name = next(iter(alone))
    run, grpo = config["runs"][name], config["runs"][f"{name}_grpo"]
    batch_size, rollout = run["stage"]["batch_size"], grpo["stage"]["rollout"]
    samples = rollout["num_prompts"] * rollout["num_generations"]
    before = grpo["parent_step"] * batch_size
    return run["num_steps"] * batch_size, before + grpo["num_steps"] * samples


def figure(
    config: dict[str, Any],
    alone: dict[str, xr.Dataset],
    grpo: dict[str, xr.Dataset],
    small: xr.Dataset,
) -> plt.Figure:
    """A panel for each architecture, and one for small d."""
    num_bits = config["task"]["num_bits"]
    num_panels = len(alone) + 1
    figure, axes = plt.subplots(
        1, num_panels, figsize=(2.6 * num_panels, 3.2), sharey=True
    )
    for ax, (name, data) in zip(axes, alone.items(), strict=False):
        run, rl_run = config["runs"][name], config["runs"][f"{name}_grpo"]
        rollout = rl_run["stage"]["rollout"]
        samples = rollout["num_prompts"] * rollout["num_generations"]
        batch_size = run["stage"]["batch_size"]
        start = rl_run["parent_step"] * batch_size
        after = grpo[name]
        draw_run(ax, data, data["step"] * batch_size / 1000, num_bits, GREY)
        x = (start + after["step"] * samples) / 1000
        draw_run(ax, after, x, num_bits, ACCENT)
        label_line(ax, float(x[-1]), 0.93, "GRPO", ACCENT)
        ax.set_title(f"{name}, d = {num_bits}", loc="left", fontsize=9)
    run = config["runs"][SMALL]
    small_bits = run["task"]["num_bits"]
    x = small["step"] * run["stage"]["batch_size"] / 1000
    draw_run(axes[-1], small, x, small_bits, GREY)
    draw_members(axes[-1], x, small["t1/accuracy_short"], BLUE)
    label_line(axes[-1], float(x[-1]) / 3, 0.9, "short samples", BLUE)
    axes[-1].set_title(f"d = {small_bits}", loc="left", fontsize=9)
    for ax in axes:
        ax.set(xlabel="sequences (thousands)", ylim=(0, 1.05))
    axes[0].set_ylabel("greedy accuracy (solid)\nmean length / d (dotted)")
    figure.suptitle("Next-token prediction alone (grey), p_cot = 0.25")
    figure.tight_layout()
    return figure


def draw_run(
    ax: plt.Axes, data: xr.Dataset, x: xr.DataArray, num_bits: int, color: str
) -> None:
    draw_members(ax, x, data["greedy/accuracy"], color)
    draw_members(ax, x, data["greedy/length_mean"] / num_bits, color, ls=":")
