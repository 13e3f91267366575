"""Next-token prediction alone does not get there, in any architecture (C4).

Command    parity-jax run --config=experiments/c4_next_token_alone.py \
               --workdir=runs/c4_next_token_alone [--config.scale=paper]
           (--config.scale=long: 1e7 sequences of one architecture at d = 20)
Device     2 CPU cores, about 7 minutes; scale long: 10 minutes on an H200 that others
           used; paper scale: one GPU
Expected   at p_cot = 0.25 greedy decoding stays short and at chance to the end of
           next-token prediction in every architecture, while GRPO from an early
           checkpoint of the same run makes it long and right with a fraction of the
           sequences; at small d next-token prediction learns the short parity itself
Figure     the paper's long runs at d = 50 (1e7 sequences) over depth and width; small d
           is ours
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import matplotlib.pyplot as plt
from flax.core import FrozenDict
from lab import SMALL, choose, draw_greedy, solved, stuck

from parity_jax.analysis import Check, Claim, Results, last
from parity_jax.analysis.plots import ACCENT, BLUE, GREY, draw_members, label_line
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import TransformerConfig, gpt2, mistral
from parity_jax.optim import OptimizerConfig
from parity_jax.stages import PolicyGradientConfig, PretrainConfig, RolloutConfig
from parity_jax.tasks import ParityConfig

FEW_BITS = "small_d"  # the run whose short parity can be learned


class Scale(NamedTuple):
    """What a scale sets; the defaults are the CPU's."""

    num_bits: int = 16
    small_bits: int = 6  # 0: no such run
    models: Mapping[str, TransformerConfig] = FrozenDict(
        mistral_2x64=SMALL,
        mistral_4x64=replace(SMALL, depth=4),
        mistral_2x128=mistral(2, 128),
        gpt2_2x64=gpt2(2, 64, num_heads=4, num_kv_heads=4),
    )
    batch_size: int = 64
    num_steps: int = 1200  # of next-token prediction alone
    switch: int = 480  # step from which GRPO starts
    eval_every: int = 160
    seeds: tuple[int, ...] = (0, 1)


PAPER = Scale(
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
    eval_every=1000,
    seeds=(0, 1, 2),
)
LONG = Scale(
    num_bits=20,
    small_bits=0,
    models={"mistral_2x64": SMALL},
    batch_size=256,
    num_steps=40_000,  # the paper's 1e7 sequences
    switch=400,
    eval_every=200,
)
SCALES = {"cpu": Scale(), "long": LONG, "paper": PAPER}


def get_config(scale: str = "cpu") -> Experiment:
    size = choose(SCALES, scale)
    optimizer = OptimizerConfig(decay_steps=size.num_steps, final_lr_ratio=0.02)
    pretrain = RunConfig(
        stage=PretrainConfig(size.batch_size, optimizer),
        hypers=Hypers(p_cot=0.25, learning_rate=1e-3),
        num_steps=size.num_steps,
        log_every=size.eval_every // 2,
        eval_every=size.eval_every,
        checkpoint_every=size.num_steps // 10,
        checkpoint_steps=(size.switch,),
    )
    rollout = RolloutConfig(num_prompts=32, num_generations=8)
    grpo = RunConfig(
        stage=PolicyGradientConfig(rollout=rollout, loss_type="dapo"),
        hypers=Hypers(p_cot=0.25, learning_rate=2e-4),
        num_steps=30,
        log_every=5,
        eval_every=5,
    )
    runs = {}
    for name, model in size.models.items():
        runs[name] = replace(pretrain, model=model)
        runs[f"{name}_grpo"] = replace(
            grpo, model=model, parent=name, parent_step=size.switch
        )
    if size.small_bits:
        runs[FEW_BITS] = replace(pretrain, task=ParityConfig(num_bits=size.small_bits))
    return Experiment(
        task=ParityConfig(num_bits=size.num_bits),
        model=next(iter(size.models.values())),
        axes=FrozenDict({"seed": size.seeds}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(256, (1.0,)),
    )


def architectures(results: Results) -> list[str]:
    """The runs of next-token prediction from which GRPO starts."""
    return [name for name in results.runs if f"{name}_grpo" in results.runs]


def claims(results: Results) -> list[Claim]:
    """C4 in every architecture, and where next-token prediction alone is enough."""
    num_bits = results.experiment.task.num_bits
    alone: dict[str, Check] = {}
    grpo: dict[str, Check] = {}
    for name in architectures(results):  # each on as many sequences
        before, after = results[name], results[f"{name}_grpo"]
        alone |= stuck(last(before), f"{name} ")
        grpo |= solved(last(after), num_bits, f"{name} ")
    found = [
        Claim.of("C4", seen={"sequences": before["sequences"][-1]}, **alone),
        Claim.of("C4-grpo", seen={"sequences": after["sequences"][-1]}, **grpo),
    ]
    if FEW_BITS in results.runs:
        small, d = last(results[FEW_BITS]), results.runs[FEW_BITS].task.num_bits
        seen = {"d": d, "short samples right": small["t1/accuracy_short"]}
        found.append(Claim.of("C4-small", seen=seen, **solved(small, length=1)))
    return found


def figure(results: Results) -> plt.Figure:
    """A panel for each architecture, and one for small d, over ln(sequences)."""
    panels = [name for name in results.runs if not name.endswith("_grpo")]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(2.6 + 2.6 * len(panels), 3.2),
        sharey=True,
        squeeze=False,
    )
    for ax, name in zip(axes[0], panels, strict=True):
        alone, num_bits = results[name], results.runs[name].task.num_bits
        draw_greedy(ax, alone["sequences"], alone, num_bits, GREY)
        start = float(alone["sequences"][1])
        if name == FEW_BITS:
            draw_members(ax, alone["t1/accuracy_short"], BLUE, x=alone["sequences"])
            label_line(ax, start, 0.9, "short samples", BLUE)
        else:
            grpo = results[f"{name}_grpo"]
            draw_greedy(ax, grpo["sequences"], grpo, num_bits, ACCENT)
            label_line(ax, float(grpo["sequences"][-1]), 0.93, "GRPO", ACCENT)
        ax.set_title(f"{name}, d = {num_bits}", loc="left", fontsize=9)
        ax.set(xlabel="training sequences", xscale="log", ylim=(0, 1.05))
        ax.set_xlim(left=start / 2)
    axes[0, 0].set_ylabel("greedy accuracy (solid)\nmean length / d (dotted)")
    figure.suptitle("Next-token prediction alone (grey), p_cot = 0.25")
    figure.tight_layout()
    return figure
