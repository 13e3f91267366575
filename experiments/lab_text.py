"""What the experiments on text share: worded parity; runs, claims T1 - T4, figure."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import xarray as xr
from flax.core import FrozenDict
from matplotlib.axes import Axes

from parity_jax.analysis import Check, Claim, Results, last
from parity_jax.analysis.plots import ACCENT, BLUE, draw_members, legend_below
from parity_jax.experiment import RunConfig
from parity_jax.hypers import Hypers
from parity_jax.optim import OptimizerConfig
from parity_jax.stages import PolicyGradientConfig, PretrainConfig, RolloutConfig
from parity_jax.tasks import TextConfig
from parity_jax.tasks.text import TokenizerConfig, WordedSource, unmarked
from parity_jax.tasks.text.worded import Wording

WORDED_ROLLOUT = RolloutConfig(num_prompts=32, num_generations=8)


def worded_task(
    num_bits: int,
    wording: Wording = "coin",
    distractors: int = 0,
    num_test: int = 512,
    vocab_size: int = 512,
) -> TextConfig:
    """Parity in words whose kind of answer does not show in the first word.

    Every step of a solution names its person; the tokenizer is trained on the rows.
    """
    source = WordedSource(
        num_bits, wording, distractors, named=True, num_train=60_000, num_test=num_test
    )
    return TextConfig(source, TokenizerConfig(vocab_size=vocab_size), unmarked())


def worded_pretrain(
    batch_size: int, learning_rate: float, switch: int, num_sequences: int, **rest: Any
) -> RunConfig:
    """Next-token prediction from scratch to RL at step `switch`; then the control.

    num_sequences   of the control: it goes on beside RL
    rest            fields of RunConfig
    """
    return RunConfig(
        stage=PretrainConfig(batch_size, OptimizerConfig(decay_steps=switch)),
        hypers=Hypers(learning_rate=learning_rate),
        num_steps=switch + num_sequences // batch_size,
        log_every=20,
        **rest,
    )


class TextRuns(NamedTuple):
    """Sizes of fine-tuning and of GRPO on text; all of them ours."""

    batch_size: int  # demonstrations of a step
    sft_steps: int
    num_prompts: int  # questions of an update
    num_generations: int
    updates: int
    sft_rate: float = 1e-5
    rl_rate: float = 1e-6
    eval_every: int = 50  # steps of fine-tuning
    warmup: int = 10


def text_runs(
    size: TextRuns, folder: str, extra: Mapping[str, RunConfig] | None = None
) -> FrozenDict[str, RunConfig]:
    """Fine-tuning from the weights of a folder, GRPO from it, and its control.

    The control is fine-tuning that goes on, on as many questions as GRPO answers.
    """
    rollout = RolloutConfig(size.num_prompts, size.num_generations)
    more = size.updates * rollout.num_responses // size.batch_size
    sft = RunConfig(
        stage=PretrainConfig(size.batch_size, clipped(size.warmup)),
        hypers=Hypers(learning_rate=size.sft_rate),
        num_steps=size.sft_steps + max(more, 1),
        log_every=1,
        eval_every=size.eval_every,
        checkpoint_steps=(size.sft_steps,),
        parent=folder,
    )
    grpo = reinforced(size, rollout)
    runs = {"sft": sft, "grpo": grpo} | dict(extra or {})
    return FrozenDict(runs)


def reinforced(size: TextRuns, rollout: RolloutConfig) -> RunConfig:
    """GRPO from the fine-tuned model."""
    return RunConfig(
        stage=PolicyGradientConfig(rollout, loss_type="dapo", optimizer=clipped(0)),
        hypers=Hypers(learning_rate=size.rl_rate),
        num_steps=size.updates,
        log_every=1,
        eval_every=5,
        parent="sft",
        parent_step=size.sft_steps,
    )


def clipped(warmup: int) -> OptimizerConfig:
    """AdamW with warm-up and gradients of norm 1 at most."""
    return OptimizerConfig(warmup_steps=warmup, max_grad_norm=1.0)


def text_claims(
    results: Results, threshold: float, controls: Mapping[str, str]
) -> list[Claim]:
    """T1 - T4 for every member whose p_cot is below the greedy threshold.

    controls   a name for each further run that must not do what GRPO does
    """
    runs, words = results.runs, {"without_rl": "fine-tuning on as many questions"}
    switch = runs["grpo"].parent.step
    before = treated_only(results["sft"].sel(step=switch), threshold)
    after = treated_only(last(results["grpo"]), threshold)
    alone = treated_only(last(results["sft"]), threshold)
    is_axis = "p_cot" in before.dims
    p_cot = before["p_cot"] if is_axis else results.number("sft", "p_cot")
    gain = after["greedy/accuracy"] - before["greedy/accuracy"]
    short = before["t1/accuracy_short"]
    rest = {"without_rl": alone["greedy/accuracy"] - before["greedy/accuracy"]}
    words |= {name: name.replace("_", " ") for name in controls}
    for name, run in controls.items():
        scores = treated_only(last(results[run]), threshold)
        rest[name] = scores["greedy/accuracy"] - before["greedy/accuracy"]
    if is_axis and 0 in results["sft"]["p_cot"]:
        without = (last(results["grpo"]), results["sft"].sel(step=switch))
        then, start = (scores["greedy/accuracy"].sel(p_cot=0) for scores in without)
        rest["without_long"] = then - start
        words["without_long"] = "p_cot = 0"
    longer = after["greedy/length_mean"] - before["greedy/length_mean"]
    return [
        Claim.of(
            "T1",
            seen={"accuracy": before["greedy/accuracy"], "of short answers": short},
            p_long=Check.at_most(before["greedy/p_long"], 0.1),
            above_short=Check.at_most(before["greedy/accuracy"] - short, 0.1),
        ),
        Claim.of("T2", p_long=Check.within(before["t1/p_long"], p_cot, 0.05)),
        Claim.of("T3", gain=Check.at_least(gain, 0.1), longer=Check.above(longer, 0)),
        Claim.of(
            "T4",
            f"what lifts it no more than 0.05: {', '.join(words.values())}",
            **{k: Check.at_most(v, 0.05) for k, v in rest.items()},
        ),
    ]


def treated_only(scores: xr.Dataset, threshold: float) -> xr.Dataset:
    """The members with long demonstrations, below the threshold."""
    if "p_cot" not in scores.dims:
        return scores
    is_chosen = (scores["p_cot"] > 0) & (scores["p_cot"] < threshold)
    return scores.sel(p_cot=scores["p_cot"][is_chosen])


def text_figure(results: Results, names: Mapping[str, str]) -> plt.Figure:
    """Accuracy and mean length over the steps of every run; names gives its title."""
    size = (3.6 * len(names), 5.6)
    figure, axes = plt.subplots(2, len(names), figsize=size, layout="constrained")
    for column, (run, title) in enumerate(names.items()):
        for ax, score in zip(axes[:, column], ("accuracy", "length_mean"), strict=True):
            draw_decodings(ax, results[run], score)
        axes[0, column].set_title(title, loc="left")
        axes[0, column].set(ylim=(-0.03, 1.03))
        axes[1, column].set(xlabel="step")
    axes[0, 0].set(ylabel="accuracy")
    axes[1, 0].set(ylabel="response length (tokens)")
    legend_below(axes[1, 0])
    return figure


def draw_decodings(ax: Axes, run: xr.Dataset, score: str) -> None:
    """Greedy (orange) and sampled (blue), solid at the largest p_cot, else dotted."""
    shares = run["p_cot"].values if "p_cot" in run.dims else [None]
    for p_cot, look in zip(sorted(shares, reverse=True), ("-", ":"), strict=False):
        scores = run if p_cot is None else run.sel(p_cot=p_cot)
        at = "" if p_cot is None else f", p_cot = {p_cot:g}"
        draw_members(ax, scores[f"t1/{score}"], BLUE, f"sampled{at}", ls=look)
        draw_members(ax, scores[f"greedy/{score}"], ACCENT, f"greedy{at}", ls=look)


def path_of(variable: str, default: str) -> str:
    """The path that an environment variable names, or the default one."""
    return os.environ.get(variable, default)
