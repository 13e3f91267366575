"""STaR, REINFORCE and GRPO with both rewards at three temperatures (C6).

Command    parity-jax run --config=experiments/c6_algorithms.py \
               --workdir=runs/c6_algorithms
Device     2 CPU cores, 21 minutes beside other work
Expected   from one pre-trained checkpoint (greedy short and at chance) every algorithm
           with either reward makes greedy decoding long and right at temperature 1; the
           paper's exception is STaR with the end-to-end reward at high temperature
Figure     the paper's comparison of post-training algorithms
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, draw_greedy, solved

from parity_jax.analysis import Check, Claim, Results, is_solved, last
from parity_jax.analysis.plots import CYCLE
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.optim import OptimizerConfig
from parity_jax.stages import (
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    StarConfig,
    reinforce,
)
from parity_jax.tasks import ParityConfig

LOW, ONE, HIGH = TEMPERATURES = (0.75, 1.0, 1.5)


def get_config() -> Experiment:
    pretrain = RunConfig(
        stage=PretrainConfig(128, OptimizerConfig(decay_steps=500)),
        hypers=Hypers(p_cot=0.25, learning_rate=1e-3),
        num_steps=500,
        log_every=20,
        eval_every=100,
    )
    runs = post_training("e2e") | post_training("cot")
    return Experiment(
        task=ParityConfig(num_bits=16),
        model=SMALL,
        axes=FrozenDict({"seed": (0, 1, 2)}),
        runs=FrozenDict({"pretrain": pretrain} | runs),
        evaluate=EvaluateConfig(num_prompts=512, temperatures=(1.0,)),
    )


def post_training(reward: str) -> dict[str, RunConfig]:
    """7 rounds of STaR, or 40 updates of a policy gradient on 512 samples each."""
    grouped = RolloutConfig(num_prompts=64, num_generations=8, rewards=(reward,))
    single = replace(grouped, num_prompts=3072, num_generations=1)
    updates = RunConfig(
        stage=PolicyGradientConfig(rollout=grouped, loss_type="dapo"),
        hypers=Hypers(p_cot=0.25, learning_rate=2e-4),
        num_steps=40,
        log_every=1,
        eval_every=5,
        parent="pretrain",
        axes=FrozenDict({"temperature": TEMPERATURES}),
    )
    star = StarConfig(rollout=single, batch_size=128, num_epochs=2)
    return {
        f"star_{reward}": replace(updates, stage=star, num_steps=7, eval_every=1),
        f"reinforce_{reward}": replace(updates, stage=reinforce(rollout=grouped)),
        f"grpo_{reward}": updates,
    }


def claims(results: Results) -> list[Claim]:
    """Solved at temperature 1 by all; what happens at the other temperatures."""
    num_bits = results.experiment.task.num_bits

    def final(name: str, temperature: float) -> xr.Dataset:
        return last(results[name]).sel(temperature=[temperature])

    def all_solved(names: list[str], temperature: float) -> dict[str, Check]:
        checks: dict[str, Check] = {}
        for name in names:
            checks |= solved(final(name, temperature), num_bits, f"{name} ")
        return checks

    names = [name for name in results if name != "pretrain"]
    others = [name for name in names if name != "star_e2e"]
    exception = final("star_e2e", HIGH)
    seen = {f: exception[f"greedy/{f}"] for f in ("accuracy", "length_median")}
    is_there = seen["accuracy"].notnull() & seen["length_median"].notnull()
    failed = ~is_solved(exception, num_bits) & is_there
    return [
        Claim.of("C6", **all_solved(names, ONE)),
        Claim.of("C6-low", **all_solved(names, LOW)),
        Claim.of("C6-high", **all_solved(others, HIGH)),
        Claim.of("C6-exception", seen=seen, num_failed=Check.at_least(failed.sum(), 1)),
    ]


def figure(results: Results) -> plt.Figure:
    """Greedy accuracy (solid) and length over d (dotted); a row for each reward."""
    num_bits = results.experiment.task.num_bits
    figure, axes = plt.subplots(
        2, 3, figsize=(9, 5), sharey=True, sharex="col", layout="tight"
    )
    for row, reward in zip(axes, ("e2e", "cot"), strict=True):
        for ax, algorithm in zip(row, ("star", "reinforce", "grpo"), strict=True):
            scores = results[f"{algorithm}_{reward}"]
            for temperature, color in zip(TEMPERATURES, CYCLE, strict=False):
                at, label = scores.sel(temperature=temperature), f"{temperature:g}"
                draw_greedy(ax, at["step"], at, num_bits, color, label)
            ax.set(title=f"{algorithm}, reward {reward}", ylim=(0, 1.05))
        row[0].set_ylabel("accuracy (solid)\nlength / d (dotted)")
    axes[0, 2].legend(title="temperature", fontsize=8, loc="lower right")
    for ax, unit in zip(axes[1], ("round", "update", "update"), strict=True):
        ax.set_xlabel(unit)
    figure.suptitle(f"Greedy decoding after post-training, parity of {num_bits} bits")
    return figure
