"""Is the greedy threshold 1/3 a property of the data or of the architecture? (Q1)

Command    parity-jax run --config=experiments/q1_architectures.py \
               --workdir=runs/q1_architectures [--config.scale=paper]
Device     2 CPU cores, 27 minutes beside other work; paper scale: one GPU
Expected   of the data: the linear model, transformers of 1 to 8 blocks and widths 32 to
           256, with hardly any MLP and with little else, of three families, and a
           recurrence without attention all cross at 1/3; where the second step of the
           chain is not learned (error rate eps_2) at 1 / (1 + 2 (1 - eps_2))
Figure     beyond the paper (open question 1 of its reviews); all sizes are ours
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, choose, finish, gate_crossing, linear_pretrain
from matplotlib.axes import Axes

from parity_jax import theory
from parity_jax.analysis import Answer, Check, Claim, Results, last, mean_interval
from parity_jax.analysis.plots import ACCENT, BLUE, CYCLE, INK
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import (
    LinearConfig,
    ModelConfig,
    RecurrentConfig,
    gpt2,
    llama,
    mistral,
)
from parity_jax.optim import OptimizerConfig
from parity_jax.stages import PretrainConfig
from parity_jax.tasks import ParityConfig

LOW, _, HIGH = P_COT = (0.28, 0.34, 0.42)
LEARNED = 0.1  # an eps_2 up to which the second step counts as learned


class Scale(NamedTuple):
    """What a scale sets; the defaults are the CPU's."""

    models: Mapping[str, ModelConfig]
    num_bits: int = 10  # the parity is not learned within the budget (C9)
    batch_size: int = 64
    num_steps: int = 500
    seeds: tuple[int, ...] = (0, 1, 2, 3)


HEADS = {"num_heads": 4, "num_kv_heads": 2}  # of size 16 at width 64, as in SMALL
CPU_MODELS: Mapping[str, ModelConfig] = FrozenDict(
    mistral_1x64=replace(SMALL, depth=1),
    mistral_2x64=SMALL,
    mistral_4x64=replace(SMALL, depth=4),
    mistral_8x64=replace(SMALL, depth=8),
    mistral_2x32=mistral(2, 32, num_heads=2, num_kv_heads=1),
    mistral_2x128=mistral(2, 128),
    mistral_1x256=mistral(1, 256),
    attention_2x64=replace(SMALL, mlp_width=1),
    mlp_1x64=replace(SMALL, depth=1, mlp_width=1024),
    gpt2_2x64=gpt2(2, 64, num_heads=4, num_kv_heads=4),
    llama_2x64=llama(2, 64, **HEADS),
    recurrent_2x64=RecurrentConfig(2, 64),
)
PAPER_MODELS: Mapping[str, ModelConfig] = FrozenDict(
    mistral_2x128=mistral(2, 128),
    mistral_8x128=mistral(8, 128),
    mistral_2x256=mistral(2, 256),
    attention_2x128=mistral(2, 128, mlp_width=1),
    mlp_1x128=mistral(1, 128, mlp_width=4096),
    gpt2_2x128=gpt2(2, 128),
    llama_2x128=llama(2, 128),
    recurrent_2x256=RecurrentConfig(2, 256),
)
PAPER = Scale(PAPER_MODELS, num_bits=25, batch_size=256, num_steps=10_000)
SCALES = {"cpu": Scale(CPU_MODELS), "paper": PAPER}


def get_config(scale: str = "cpu") -> Experiment:
    size = choose(SCALES, scale)
    # a gate without noise at the end
    optimizer = OptimizerConfig(decay_steps=size.num_steps, final_lr_ratio=0.02)
    pretrain = RunConfig(
        stage=PretrainConfig(size.batch_size, optimizer),
        hypers=Hypers(learning_rate=1e-3),
        num_steps=size.num_steps,
        log_every=size.num_steps // 5,
        eval_every=size.num_steps,
    )
    linear = replace(linear_pretrain(24), model=LinearConfig())
    runs = {"linear": linear}
    runs |= {name: replace(pretrain, model=m) for name, m in size.models.items()}
    return Experiment(
        task=ParityConfig(num_bits=size.num_bits),
        model=next(iter(size.models.values())),
        axes=FrozenDict({"p_cot": P_COT, "seed": size.seeds}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(1024, (1.0,), num_samples=4),
    )


class Found(NamedTuple):
    """What an architecture shows: by seed, its mean, and what eps_2 predicts."""

    crossing: xr.DataArray  # p_cot at which EOS and the next token are as likely
    mean: float
    interval: tuple[float, float]
    eps_2: float
    predicted: float


def found_by(end: xr.Dataset) -> Found:
    """The greedy threshold of an architecture."""
    crossing = gate_crossing(end, end["t1/eps_2"])
    eps_2 = float(end["t1/eps_2"].mean(skipna=False))
    predicted = np.nan
    if not np.isnan(eps_2):  # a step that is not learned is a coin, give or take
        predicted = float(theory.greedy_threshold(0.0, min(eps_2, 0.5)))
    interval = mean_interval(crossing.values)
    return Found(
        crossing, float(crossing.mean(skipna=False)), interval, eps_2, predicted
    )


def all_found(results: Results) -> dict[str, Found]:
    """By architecture."""
    return {name: found_by(last(results[name])) for name in results.runs}


def claims(results: Results) -> list[Claim]:
    """Every architecture at its prediction; those that learn step 2 at 1/3."""
    found = all_found(results)
    learned = [name for name, each in found.items() if not each.eps_2 > LEARNED]
    names = {"architectures": len(found), "step 2 learned": len(learned)}
    ends = {name: last(results[name])["greedy/p_long"] for name in learned}
    long = {name: each.mean("seed", skipna=False) for name, each in ends.items()}
    at = {
        name: Check.within(each.mean, each.predicted, 0.03)
        for name, each in found.items()
    }
    third = [found[name].mean for name in learned]
    low = [float(each.sel(p_cot=LOW)) for each in long.values()]
    high = [float(each.sel(p_cot=HIGH)) for each in long.values()]
    return [
        Claim.of(
            "Q1",
            seen={
                "95% interval": {n: [*each.interval] for n, each in found.items()},
                "eps_2": {n: each.eps_2 for n, each in found.items()},
            },
            **at,
        ),
        Claim.of("Q1-third", seen=names, crossing=Check.within(third, 1 / 3, 0.02)),
        Claim.of(
            "Q1-greedy",
            short=Check.at_most(low, 0.2),
            long=Check.at_least(high, 0.8),
        ),
    ]


def answer(results: Results) -> Answer:
    """How many architectures cross where."""
    found = all_found(results)
    near = [n for n, each in found.items() if abs(each.mean - 1 / 3) <= 0.02]
    gap = np.max([abs(each.mean - each.predicted) for each in found.values()])
    rest = [
        f"{n} at {each.mean:.2f} (eps_2 {each.eps_2:.2f} predicts {each.predicted:.2f})"
        for n, each in found.items()
        if n not in near
    ]
    others = f"; not so {', '.join(rest[:3])}" if rest else ""
    return Answer(
        "Is the threshold 1/3 a property of the data or of the architecture?",
        f"{len(near)} of {len(found)} architectures cross within 0.02 of 1/3, and all "
        f"within {gap:.2f} of what their error at step 2 predicts{others}.",
    )


def figure(results: Results) -> plt.Figure:
    """A row for each architecture; greedy decoding over p_cot."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 5), layout="constrained", width_ratios=(1.4, 1)
    )
    draw_crossings(left, all_found(results))
    for i, name in enumerate(results.runs):
        long = last(results[name])["greedy/p_long"]
        color, marker = CYCLE[i % len(CYCLE)], "os^"[i // len(CYCLE)]
        mean = long.mean("seed")
        right.plot(long["p_cot"], mean, color=color, marker=marker, label=name, ms=4)
        right.plot(long["p_cot"], long.transpose("p_cot", "seed"), ".", color=color)
    right.axvline(1 / 3, color=INK, ls="--", lw=1.3)
    finish(right, "Greedy decoding", "p_cot", "share of long answers", ncols=3)
    d = results.experiment.task.num_bits
    figure.suptitle(f"The greedy threshold of {len(results.runs)} models, d = {d}")
    return figure


def draw_crossings(ax: Axes, found: dict[str, Found]) -> None:
    """Every seed, the interval of the mean, and the prediction of eps_2 dashed."""
    for i, each in enumerate(found.values()):
        ax.plot(each.crossing, [i] * each.crossing.size, "o", color=BLUE, alpha=0.6)
        ax.plot(each.interval, [i, i], color=BLUE, lw=2)
        ax.plot([each.predicted] * 2, [i - 0.4, i + 0.4], "--", color=ACCENT)
        ax.text(0.5, i, f"eps_2 = {each.eps_2:.3f}", va="center", fontsize=8)
    ax.axvline(1 / 3, color=INK, ls="--", lw=1.3, label="theory (1/3: step 2 learned)")
    ax.plot([], [], "--", color=ACCENT, label="theory (1 / (1 + 2 (1 - eps_2)))")
    ax.plot([], [], "o-", color=BLUE, label="seeds, 95% interval of their mean")
    ax.set_yticks(range(len(found)), list(found))
    ax.invert_yaxis()
    title = "Where greedy decoding turns long"
    finish(ax, title, "p_cot", "", xlim=(0.22, 0.56))
