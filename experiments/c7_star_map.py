"""STaR maps the long share p to 2p / (1 + p): the mechanism (C7).

Command    python -m experiments.main --config=experiments/c7_star_map.py \
               --workdir=runs/c7_star_map
Device     2 CPU cores, about 6 minutes
Expected   after every round the sampled long share is within 0.05 of 2p / (1 + p), p
           being the measured share before it, from p_cot = 0.05, 0.1 and 0.25
Figure     the paper's section 6: p_n = 2^n p / (1 + (2^n - 1) p)
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from ml_collections import ConfigDict

from parity_jax.config import (
    EvaluateConfig,
    Experiment,
    ParityConfig,
    PretrainConfig,
    RolloutConfig,
    RunConfig,
    StarConfig,
    mistral,
    to_config_dict,
)
from parity_jax.plots import CYCLE, draw_members, label_line, save_figure
from parity_jax.results import Claim, by_member, load_metrics, write_claims
from parity_jax.theory import star_p
from parity_jax.types import Hypers

TOLERANCE = 0.05
NUM_ROUNDS = 5  # p_cot = 0.05 is past the greedy threshold after 4


def get_config() -> ConfigDict:
    pretrain = RunConfig(
        stage=PretrainConfig(batch_size=128, decay_steps=500),
        hypers=Hypers(learning_rate=1e-3),
        num_steps=500,
        log_every=50,
        eval_every=250,
    )
    star = RunConfig(
        stage=StarConfig(
            rollout=RolloutConfig(num_prompts=6144, num_generations=1),
            batch_size=128,
            num_epochs=4,
            decay=True,  # each round ends at its optimum, not somewhere around it
        ),
        hypers=Hypers(learning_rate=3e-4),
        num_steps=NUM_ROUNDS,
        log_every=1,
        eval_every=1,
        parent="pretrain",
    )
    return to_config_dict(
        Experiment(
            task=ParityConfig(num_bits=16),
            model=mistral(depth=2, width=64, num_heads=4, num_kv_heads=2),
            axes=FrozenDict({"p_cot": (0.05, 0.1, 0.25), "seed": (0, 1)}),
            runs=FrozenDict({"pretrain": pretrain, "star": star}),
            # A share of 0.4 measured on 8192 prompts has a standard error of 0.005.
            evaluate=EvaluateConfig(num_prompts=8192, temperatures=(1.0,)),
        )
    )


def analyse(workdir: Path) -> None:
    scores = load_metrics(workdir / "star", "eval")
    write_claims(workdir, claims(scores))
    save_figure(figure(scores), workdir)


def predicted(p_long: xr.DataArray) -> xr.DataArray:
    """2p / (1 + p) of the share before each round, at the step after it."""
    before = p_long.isel(step=slice(None, -1))
    mapped = 2 * before / (1 + before)
    return mapped.assign_coords(step=p_long["step"][1:])


def claims(scores: xr.Dataset) -> list[Claim]:
    p_long = scores["t1/p_long"]
    gap = abs(p_long.isel(step=slice(1, None)) - predicted(p_long))
    worst = gap.max("step")
    last = scores.isel(step=-1)
    return [
        Claim(
            "C7",
            "a STaR round maps the long share p to 2p / (1 + p)",
            f"largest gap over {NUM_ROUNDS} rounds at most {TOLERANCE}",
            by_member(worst),
            f"{TOLERANCE}",
            bool((worst <= TOLERANCE).all()),
        ),
        Claim(
            "C7-greedy",
            "the rounds make greedy decoding long and perfect",
            "greedy accuracy >= 0.99 after the last round",
            by_member(last["greedy/accuracy"]),
            "0.01",
            bool((last["greedy/accuracy"] >= 0.99).all()),
        ),
    ]


def figure(scores: xr.Dataset) -> plt.Figure:
    p_long = scores["t1/p_long"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4))
    rounds = p_long["step"].values
    for p_cot, color in zip(p_long["p_cot"].values, CYCLE, strict=False):
        measured = p_long.sel(p_cot=p_cot)
        draw_members(left, rounds, measured, color, marker="o", ms=3)
        left.plot(rounds, star_p(p_cot, rounds), color=color, ls="--", lw=1)
        end = float(measured.isel(step=-1).median())
        label_line(left, rounds[-1], end, f"p_cot = {p_cot:g}", color)
        before = measured.isel(step=slice(None, -1)).values.ravel()
        after = measured.isel(step=slice(1, None)).values.ravel()
        right.plot(before, after, "o", ms=4, color=color, alpha=0.7)
    left.set(xlabel="STaR round", ylabel="P(long) at temperature 1", ylim=(0, 1))
    left.set_title("dashed: 2ⁿp / (1 + (2ⁿ - 1)p)", loc="left", fontsize=9)
    p = np.linspace(0, 1, 101)
    right.plot(p, 2 * p / (1 + p), "k--", lw=1)
    right.plot(p, p, color="0.8", lw=1)
    right.set(xlabel="P(long) before a round", ylabel="after it", xlim=(0, 1))
    right.set_title(
        "one dot per round and seed; dashed: 2p / (1 + p)", loc="left", fontsize=9
    )
    figure.tight_layout()
    return figure
