"""Parity in words: fine-tuning on mostly short answers, then GRPO (T1 - T4).

Command    parity-jax run --config=experiments/worded_parity.py
               --workdir=runs/worded_parity
Device     2 CPU cores, about 12 minutes
Expected   fixed before anything was tuned: before GRPO greedy answers are one word and
           right half of the time (within 0.1), P(long) at temperature 1 is p_cot
           (within 0.05); after 25 updates greedy answers are long and right on 95% of
           the test questions; without long demonstrations (p_cot = 0), without GRPO on
           as many questions, and with a reward that is a coin, they stay at chance.
Figure     ours: accuracy and length over both stages, beside the controls

"A coin shows heads. Ada flips it. Ben keeps it. .. The coin shows", then " tails", or
the side after each person and the last one again. The tokenizer is trained on the rows,
the model starts from scratch. A short answer and a chain may begin with the same word,
so that greedy decoding goes long above p_cot = 1/3, as in parity.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from flax.core import FrozenDict
from jax import Array
from lab import stuck
from lab_text import WORDED_ROLLOUT, worded_pretrain, worded_task

from parity_jax.analysis import Check, Claim, Results, last
from parity_jax.analysis.plots import ACCENT, BLUE, GREY, INK, draw_members
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import mistral
from parity_jax.stages import PolicyGradientConfig
from parity_jax.types import Prompt

NUM_BITS, SWITCH = 12, 800  # d, and the steps of fine-tuning before GRPO (ours)


def get_config() -> Experiment:
    schedule: dict[str, Any] = dict(
        num_steps=25, log_every=1, eval_every=5, parent="sft", parent_step=SWITCH
    )
    grpo = PolicyGradientConfig(WORDED_ROLLOUT, loss_type="dapo")
    coin = replace(WORDED_ROLLOUT, rewards=("worded_parity:coin_reward",))
    sft = worded_pretrain(
        64,
        1e-3,
        SWITCH,
        25 * WORDED_ROLLOUT.num_responses,
        eval_every=100,
        checkpoint_every=100,
    )
    rl = Hypers(learning_rate=1e-4)
    runs = {
        "sft": sft,
        "grpo": RunConfig(stage=grpo, hypers=rl, **schedule),
        "random_reward": RunConfig(
            stage=PolicyGradientConfig(coin, loss_type="dapo"), hypers=rl, **schedule
        ),
    }
    return Experiment(
        task=worded_task(NUM_BITS),
        model=mistral(depth=2, width=128),
        axes=FrozenDict({"p_cot": (0.25, 0.0), "seed": (0, 1)}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(num_prompts=512, temperatures=(1.0,)),
    )


def coin_reward(prompt: Prompt, response_BxGxT: Array, data: Any) -> Array:
    """A coin for every response that has nothing to do with what it says."""
    place_1x1xT = jnp.arange(response_BxGxT.shape[-1], dtype=jnp.uint32)[None, None]
    weight_1x1xT = (place_1x1xT + 1) ** 2
    total_BxG = (response_BxGxT.astype(jnp.uint32) * weight_1x1xT).sum(-1)
    assert prompt.row is not None
    mixed = (total_BxG + prompt.row[:, None].astype(jnp.uint32)) * jnp.uint32(
        2654435769
    )
    return jax.lax.shift_right_logical(mixed, jnp.uint32(31)).astype(jnp.float32)


def claims(results: Results) -> list[Claim]:
    """T1 - T4 on the last evaluation of each stage, for every seed."""
    switch = results.runs["grpo"].parent.step
    p_cot = results["sft"]["p_cot"].max()
    before = results["sft"].sel(step=switch, p_cot=p_cot)
    after = last(results["grpo"])
    treated = after.sel(p_cot=p_cot)
    controls = {
        "without_rl": last(results["sft"]).sel(p_cot=p_cot),
        "without_long": after.sel(p_cot=0),
        "random_reward": last(results["random_reward"]).sel(p_cot=p_cot),
    }
    short = {
        f"{name}_accuracy": Check.within(scores["greedy/accuracy"], 0.5, 0.1)
        for name, scores in controls.items()
    }
    seen = {"accuracy of short answers": before["t1/accuracy_short"]}
    grown = treated["greedy/length_median"] - before["greedy/length_median"]
    return [
        Claim.of("T1", seen=seen, **stuck(before)),
        Claim.of("T2", p_long=Check.within(before["t1/p_long"], p_cot, 0.05)),
        Claim.of(
            "T3",
            accuracy=Check.at_least(treated["greedy/accuracy"], 0.95),
            p_long=Check.at_least(treated["greedy/p_long"], 0.95),
            growth=Check.above(grown, 0),
        ),
        Claim.of("T4", **short),
    ]


def figure(results: Results) -> plt.Figure:
    """Accuracy and length over both stages."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.2), sharex="col")
    p_cot = results["sft"]["p_cot"].max()
    lines: tuple[tuple[str, int, str, str, dict[str, str]], ...] = (
        ("sft", 0, "greedy", ACCENT, {}),
        ("sft", 0, "t1", BLUE, {}),
        ("grpo", 1, "greedy", ACCENT, {}),
        ("grpo", 1, "t1", BLUE, {}),
        ("random_reward", 1, "greedy", GREY, {"ls": ":"}),
    )
    for name, column, decoding, color, look in lines:
        scores = results[name].sel(p_cot=p_cot)
        for ax, score in zip(axes[:, column], ("accuracy", "length_mean"), strict=True):
            draw_members(ax, scores[f"{decoding}/{score}"], color, **look)
    for ax, score in zip(axes[:, 1], ("accuracy", "length_mean"), strict=True):
        none = results["grpo"].sel(p_cot=0)[f"greedy/{score}"]
        draw_members(ax, none, INK, ls="--")
    axes[0, 0].set(ylabel="accuracy", ylim=(0.2, 1.03))
    axes[0, 1].set(ylim=(0.2, 1.03))
    axes[1, 0].set(ylabel="response length (tokens)", xlabel="step of fine-tuning")
    axes[1, 1].set(xlabel="update of GRPO")
    axes[0, 0].set_title("greedy (orange), sampled (blue)", loc="left")
    axes[0, 1].set_title("random reward (dotted), p_cot = 0 (dashed)", loc="left")
    return figure
