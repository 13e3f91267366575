"""STaR, REINFORCE and GRPO with both rewards at three temperatures (C6).

Command    python -m experiments.main --config=experiments/c6_algorithms.py \
               --workdir=runs/c6_algorithms
Device     2 CPU cores, about 12 minutes
Expected   from one pre-trained checkpoint (greedy short and at chance) every algorithm
           with either reward makes greedy decoding long and right at temperature 1; the
           paper's exception is STaR with the end-to-end reward at high temperature
Figure     the paper's comparison of post-training algorithms
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import xarray as xr
from flax.core import FrozenDict
from ml_collections import ConfigDict

from parity_jax.config import (
    EvaluateConfig,
    Experiment,
    ParityConfig,
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    RunConfig,
    StageConfig,
    StarConfig,
    mistral,
    reinforce,
    to_config_dict,
)
from parity_jax.plots import CYCLE, draw_members, save_figure
from parity_jax.results import Claim, by_member, load_metrics, write_claims
from parity_jax.types import Hypers

ALGORITHMS = ("star", "reinforce", "grpo")
REWARDS = ("e2e", "cot")
TEMPERATURES = (0.75, 1.0, 1.5)
NUM_BITS = 16


def get_config() -> ConfigDict:
    pretrain = RunConfig(
        stage=PretrainConfig(batch_size=128, decay_steps=500),
        hypers=Hypers(p_cot=0.25, learning_rate=1e-3),
        num_steps=500,
        log_every=20,
        eval_every=100,
    )
    runs = {"pretrain": pretrain}
    for algorithm in ALGORITHMS:
        for reward in REWARDS:
            runs[f"{algorithm}_{reward}"] = post_training(algorithm, reward)
    return to_config_dict(
        Experiment(
            task=ParityConfig(num_bits=NUM_BITS),
            model=mistral(depth=2, width=64, num_heads=4, num_kv_heads=2),
            axes=FrozenDict({"seed": (0, 1, 2)}),
            runs=FrozenDict(runs),
            evaluate=EvaluateConfig(num_prompts=512, temperatures=(1.0,)),
        )
    )


def post_training(algorithm: str, reward: str) -> RunConfig:
    """40 updates of a policy gradient on 512 samples each, or 6 rounds of STaR."""
    rollout: dict[str, Any] = {"rewards": (reward,)}
    grouped = RolloutConfig(num_prompts=64, num_generations=8, **rollout)
    stages: dict[str, StageConfig] = {
        "star": StarConfig(
            rollout=RolloutConfig(num_prompts=3072, num_generations=1, **rollout),
            batch_size=128,
            num_epochs=2,
        ),
        "reinforce": reinforce(rollout=grouped),
        "grpo": PolicyGradientConfig(rollout=grouped, loss_type="dapo"),
    }
    is_star = algorithm == "star"
    return RunConfig(
        stage=stages[algorithm],
        hypers=Hypers(p_cot=0.25, learning_rate=2e-4),
        num_steps=7 if is_star else 40,
        log_every=1,
        eval_every=1 if is_star else 5,
        parent="pretrain",
        axes=FrozenDict({"temperature": TEMPERATURES}),
    )


def analyse(workdir: Path) -> None:
    names = [f"{a}_{r}" for a in ALGORITHMS for r in REWARDS]
    scores = {name: load_metrics(workdir / name, "eval") for name in names}
    write_claims(workdir, claims(scores))
    save_figure(figure(scores), workdir)


def claims(scores: dict[str, xr.Dataset]) -> list[Claim]:
    """Solved at temperature 1 by all; what happens at the other temperatures."""

    def final(name: str, temperature: float) -> xr.Dataset:
        return scores[name].isel(step=-1).sel(temperature=temperature, drop=True)

    def solved(data: xr.Dataset) -> bool:
        right = data["greedy/accuracy"] >= 0.99
        return bool((right & (data["greedy/length_median"] == NUM_BITS)).all())

    def measured(names: list[str], temperature: float) -> dict[str, Any]:
        return {
            name: {
                "accuracy": by_member(final(name, temperature)["greedy/accuracy"]),
                "length": by_member(final(name, temperature)["greedy/length_median"]),
            }
            for name in names
        }

    expected = f"greedy accuracy >= 0.99 and length {NUM_BITS} on every seed"
    others = [name for name in scores if name != "star_e2e"]
    high, low = max(TEMPERATURES), min(TEMPERATURES)
    return [
        Claim(
            "C6",
            "STaR, REINFORCE, GRPO with both rewards solve the task at temperature 1",
            expected,
            measured(list(scores), 1.0),
            "0.01",
            all(solved(final(name, 1.0)) for name in scores),
        ),
        Claim(
            "C6-low",
            f"so they do at temperature {low}",
            expected,
            measured(list(scores), low),
            "0.01",
            all(solved(final(name, low)) for name in scores),
        ),
        Claim(
            "C6-high",
            f"so they do at temperature {high}, but for STaR with the e2e reward",
            expected,
            measured(others, high),
            "0.01",
            all(solved(final(name, high)) for name in others),
        ),
        Claim(
            "C6-exception",
            f"STaR with the end-to-end reward fails at temperature {high}",
            "greedy accuracy < 0.99 on some seed",
            measured(["star_e2e"], high),
            "none",
            not solved(final("star_e2e", high)),
        ),
    ]


def figure(scores: dict[str, xr.Dataset]) -> plt.Figure:
    """Greedy accuracy (solid) and length over d (dotted); a row for each reward."""
    figure, axes = plt.subplots(2, 3, figsize=(9, 5), sharey=True, sharex="col")
    for row, reward in zip(axes, REWARDS, strict=True):
        for ax, algorithm in zip(row, ALGORITHMS, strict=True):
            data = scores[f"{algorithm}_{reward}"]
            for temperature, color in zip(TEMPERATURES, CYCLE, strict=False):
                member = data.sel(temperature=temperature)
                step = member["step"]
                label = f"{temperature:g}"
                draw_members(ax, step, member["greedy/accuracy"], color, label)
                length = member["greedy/length_mean"] / NUM_BITS
                draw_members(ax, step, length, color, ls=":")
            ax.set(title=f"{algorithm}, reward {reward}", ylim=(0, 1.05))
        row[0].set_ylabel("accuracy (solid)\nlength / d (dotted)")
    axes[0, 2].legend(title="temperature", fontsize=8, loc="lower right")
    for ax, unit in zip(axes[1], ("round", "update", "update"), strict=True):
        ax.set_xlabel(unit)
    figure.suptitle(f"Greedy decoding after post-training, parity of {NUM_BITS} bits")
    figure.tight_layout()
    return figure
