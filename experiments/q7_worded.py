"""Do the paper's claims hold where the task is told in words? (Q7)

Command    parity-jax run --config=experiments/q7_worded.py --workdir=runs/q7_worded
Device     2 CPU cores, 26 minutes beside other work
Expected   fixed before anything was tuned, and the same as on bits: after next-token
           prediction P(long) at temperature 1 is p_cot, accuracy (1 + p_cot) / 2, an
           answer ends after a right first word with probability (1 - p_cot) /
           (1 + p_cot), and greedy decoding turns from one word and chance to the whole
           story at p_cot = 1/3; as many further sequences change nothing, while GRPO
           and STaR make it long and right; a STaR round maps the long share p to
           2p / (1 + p); short answers are right half of the time, without long
           demonstrations (p_cot = 0) as well: they are not learnable in this budget
Figure     beyond the paper (open question 7 of its reviews); all sizes are ours

Coins that are flipped, lamps that are switched, votes that are overturned; in each row
other people, one of whom does nothing to it ("Eva sees it."). The long answer tells the
state after every person who acts or declines to, and leaves this one out. It begins
with the same word as the short one half of the time, as in parity.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, draw_star_map, finish, gate_crossing, star_gap, stuck
from lab_text import WORDED_ROLLOUT, worded_pretrain, worded_task
from matplotlib.axes import Axes

from parity_jax import theory
from parity_jax.analysis import Answer, Check, Claim, Results, first_step, last
from parity_jax.analysis.overlays import overlay, overlay_threshold
from parity_jax.analysis.plots import (
    ACCENT,
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    dots,
    draw_members,
    label_line,
)
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.stages import PolicyGradientConfig, RolloutConfig, StarConfig

NUM_BITS, DISTRACTORS = 8, 1  # people who matter, and who do not
BATCH_SIZE, SWITCH = 32, 2400  # demonstrations of a step, steps before RL
UPDATES, ROUNDS = 30, 4  # of GRPO, of STaR
STAR = RolloutConfig(num_prompts=3072, num_generations=1)
P_COT, RARE = (0.0, 0.2, 0.25, 0.4), (0.2, 0.25)  # RARE: those of RL
SOLVED = 0.95  # greedy accuracy and share of long answers
THIRD = float(theory.greedy_threshold(0.0))
ALGORITHMS = {"grpo": "GRPO", "star": "STaR"}


def get_config() -> Experiment:
    num_sequences = max(
        UPDATES * WORDED_ROLLOUT.num_responses, ROUNDS * STAR.num_responses
    )
    pretrain = worded_pretrain(
        BATCH_SIZE,
        3e-3,
        SWITCH,
        num_sequences,
        eval_every=SWITCH // 4,
        checkpoint_steps=(SWITCH,),
        axes=FrozenDict({"p_cot": P_COT}),
    )
    grpo = RunConfig(
        stage=PolicyGradientConfig(WORDED_ROLLOUT, loss_type="dapo"),
        hypers=Hypers(learning_rate=2e-4),
        num_steps=UPDATES,
        log_every=5,
        eval_every=5,
        parent="pretrain",
        parent_step=SWITCH,
        axes=FrozenDict({"p_cot": RARE}),
    )
    star = StarConfig(rollout=STAR, batch_size=64, num_epochs=2, decay=True)
    rounds = replace(
        grpo,
        stage=star,
        hypers=Hypers(learning_rate=3e-4),
        num_steps=ROUNDS,
        log_every=1,
        eval_every=1,
    )
    return Experiment(
        # more tokens than there are words, so that each of them is one
        task=worded_task(NUM_BITS, "mixed", DISTRACTORS, 1024, vocab_size=640),
        model=SMALL,
        axes=FrozenDict({"seed": (0, 1)}),
        runs=FrozenDict({"pretrain": pretrain, "grpo": grpo, "star": rounds}),
        # a share of 0.4 of 4096 samples has a standard error of 0.008
        evaluate=EvaluateConfig(1024, (1.0,), num_samples=4),
    )


def pretrained(results: Results) -> xr.Dataset:
    """The evaluation from which RL starts."""
    step = results.runs["grpo"].parent.step
    return results["pretrain"].sel(step=step, drop=True)


def crossings(results: Results) -> xr.DataArray:
    """p_cot at which the gate after a right first word is open, for every seed."""
    before = pretrained(results)
    inside = (before["p_cot"] > 0) & (before["p_cot"] < 1)
    return gate_crossing(before.sel(p_cot=inside), score="t1/short_begun")


def long_and_right(scores: xr.Dataset, prefix: str = "") -> dict[str, Check]:
    """Greedy answers are long and right on nearly all test questions."""
    return {
        f"{prefix}{name}": Check.at_least(scores[f"greedy/{name}"], SOLVED)
        for name in ("accuracy", "p_long")
    }


def first_solved(results: Results, run: str) -> xr.DataArray:
    """The first update or round after which greedy answers are right."""
    return first_step(results[run]["greedy/accuracy"] >= SOLVED)


def claims(results: Results) -> list[Claim]:
    """C1 - C5 and C7 in words for every seed; whether short answers are learnable."""
    before, control = pretrained(results), last(results["pretrain"])
    p = before["p_cot"]
    mixed = before.sel(p_cot=(p > 0) & (p < 1))
    share = mixed["p_cot"]
    gate = (1 - share) / (1 + share)
    low, high = before.sel(p_cot=p < THIRD), before.sel(p_cot=p > THIRD)
    crossing = crossings(results)
    short = control["t1/accuracy_short"].sel(p_cot=p < 1)
    solved: dict[str, Check] = {}
    seen = {}
    for run in ALGORITHMS:
        solved |= long_and_right(last(results[run]), f"{run} ")
        seen[f"{run}, first at {SOLVED}"] = first_solved(results, run)
    return [
        Claim.of("Q7", seen=seen, **solved),
        Claim.within("Q7-C1", before["t1/p_long"], p, 0.05),
        Claim.within("Q7-C1-gate", mixed["t1/short_begun"], gate, 0.05),
        Claim.within("Q7-C2", before["t1/accuracy"], (1 + p) / 2, 0.05),
        Claim.of(
            "Q7-C3",
            seen={"of each seed": crossing},
            crossing=Check.within(crossing.mean(skipna=False), THIRD, 0.04),
        ),
        Claim.of("Q7-C3-below", **stuck(low)),
        Claim.of("Q7-C3-above", **long_and_right(high)),
        Claim.of("Q7-C4", **stuck(control.sel(p_cot=p < THIRD))),
        Claim.at_most("Q7-C7", star_gap(results["star"]["t1/p_long"]), 0.05),
        Claim.within("Q7-short", short, 0.5, 0.05),
    ]


def answer(results: Results) -> Answer:
    """Where the gate turns, and what RL makes of it."""
    before, rare = pretrained(results), [f"{p:g}" for p in RARE]
    accuracy = before["greedy/accuracy"].sel(p_cot=list(RARE)).values
    ends = [
        f"{float(last(results[run])['greedy/accuracy'].min(skipna=False)):.2f} or more "
        f"after {int(results[run]['step'][-1])} {unit} of {ALGORITHMS[run]}"
        for run, unit in (("grpo", "updates"), ("star", "rounds"))
    ]
    gap = float(star_gap(results["star"]["t1/p_long"]).max(skipna=False))
    turns = float(crossings(results).mean(skipna=False))
    return Answer(
        "Do the claims hold where the task is told in words?",
        f"The gate turns at p_cot = {turns:.3f} (theory 1/3); "
        f"at {' and '.join(rare)} greedy accuracy is {float(accuracy.min()):.2f} "
        f"to {float(accuracy.max()):.2f} before RL, {' and '.join(ends)}; STaR's map "
        f"is met within {gap:.2f}.",
    )


def figure(results: Results) -> plt.Figure:
    """Over p_cot before RL; RL beside its control, and the map of STaR."""
    figure, (top, bottom) = plt.subplots(2, 4, figsize=(15, 7), layout="tight")
    draw_mixture(top, pretrained(results))
    draw_training(bottom[0], results, "accuracy", "greedy accuracy")
    draw_training(bottom[1], results, "length_mean", "greedy length (tokens)")
    draw_star_map(bottom[2], bottom[3], results["star"]["t1/p_long"])
    source = results.experiment.task.source
    matter, idle = source.num_bits, source.distractors
    figure.suptitle(f"Worded parity: {matter} people who matter, {idle} who do not")
    return figure


def draw_mixture(row: list[Axes], before: xr.Dataset) -> None:
    """Over p_cot: P(long), accuracy by mode, the gate, greedy decoding."""
    p, curve = before["p_cot"].values, np.linspace(0.01, 0.99, 99)
    long, right, gate, greedy = row
    dots(long, p, before["t1/p_long"], BLUE)
    overlay(long, curve, theory.p_long(curve), "calibrated")
    for name, color in (("", BLUE), ("_long", GREEN), ("_short", ACCENT)):
        dots(right, p, before[f"t1/accuracy{name}"], color)
        at = float(before[f"t1/accuracy{name}"].sel(p_cot=0.4).mean())
        label_line(right, 0.4, at, name[1:] or "all", color, xytext=(8, 0))
    overlay(right, curve, theory.accuracy(curve), "calibrated, exact chain")
    dots(gate, p, before["t1/short_begun"], BLUE)
    overlay(gate, curve, (1 - curve) / (1 + curve), "calibrated")
    dots(greedy, p, before["greedy/accuracy"], ACCENT)
    dots(greedy, p, before["greedy/p_long"], GREY, marker="s")
    overlay_threshold(greedy)
    label_line(greedy, 0.0, 0.86, "accuracy; share of long (squares)", GREY)
    for ax, title, ylabel in (
        (long, "Calibration", "P(long) at temperature 1"),
        (right, "Accuracy by mode", "accuracy at temperature 1"),
        (gate, "The gate", "share that ends after a right first word"),
        (greedy, "The threshold", "greedy decoding"),
    ):
        finish(ax, title, "p_cot", ylabel, ylim=(-0.03, 1.06))


def draw_training(ax: Axes, results: Results, score: str, ylabel: str) -> None:
    """A greedy score over the sequences of both stages; the control dotted."""
    switch = results.runs["grpo"].parent.step
    for color, p_cot in zip(CYCLE, RARE, strict=False):
        alone = results["pretrain"].sel(p_cot=p_cot)
        before, after = (
            alone.sel(step=steps) for steps in (slice(0, switch), slice(switch, None))
        )
        grpo = results["grpo"].sel(p_cot=p_cot)
        for scores, label, ls in (
            (before, "", "-"),
            (grpo, f"p_cot = {p_cot:g}, GRPO", "-"),
            (after, "without", ":"),
        ):
            thousands = scores["sequences"] / 1000
            values = scores[f"greedy/{score}"]
            draw_members(ax, values, color, label, thousands, ls=ls)
    xlabel = "training sequences (thousands)"
    finish(ax, "Next-token prediction, then GRPO", xlabel, ylabel, ncols=2)
