"""STaR maps the long share p to 2p / (1 + p): the mechanism (C7).

Command    parity-jax run --config=experiments/c7_star_map.py --workdir=runs/c7_star_map
Device     2 CPU cores, about 6 minutes
Expected   after every round the sampled long share is within 0.05 of 2p / (1 + p), p
           being the measured share before it, from p_cot = 0.05, 0.1 and 0.25
Figure     the paper's section 6: p_n = 2^n p / (1 + (2^n - 1) p)
"""

import matplotlib.pyplot as plt
import numpy as np
from flax.core import FrozenDict
from lab import SMALL

from parity_jax.analysis import Claim, Results, last
from parity_jax.analysis.overlays import overlay_star
from parity_jax.analysis.plots import CYCLE, draw_members, end_of, label_line
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.optim import OptimizerConfig
from parity_jax.stages import PretrainConfig, RolloutConfig, StarConfig
from parity_jax.tasks import ParityConfig


def get_config() -> Experiment:
    pretrain = RunConfig(
        stage=PretrainConfig(128, OptimizerConfig(decay_steps=500)),
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
        num_steps=5,  # p_cot = 0.05 is past the greedy threshold after 4
        log_every=1,
        eval_every=1,
        parent="pretrain",
    )
    return Experiment(
        task=ParityConfig(num_bits=16),
        model=SMALL,
        axes=FrozenDict({"p_cot": (0.05, 0.1, 0.25), "seed": (0, 1)}),
        runs=FrozenDict({"pretrain": pretrain, "star": star}),
        # A share of 0.4 measured on 8192 prompts has a standard error of 0.005.
        evaluate=EvaluateConfig(num_prompts=8192, temperatures=(1.0,)),
    )


def claims(results: Results) -> list[Claim]:
    """The map in every round, and where the rounds end."""
    p_long = results["star"]["t1/p_long"]
    before = p_long.shift(step=1)
    gap = abs(p_long - 2 * before / (1 + before))
    accuracy = last(results["star"])["greedy/accuracy"]
    return [
        Claim.at_most("C7", gap.max("step"), 0.05),
        Claim.at_least("C7-greedy", accuracy, 0.99),
    ]


def figure(results: Results) -> plt.Figure:
    """The long share over the rounds, and after a round over before it."""
    p_long = results["star"]["t1/p_long"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="tight")
    num_rounds = int(p_long["step"][-1])
    for p_cot, color in zip(p_long["p_cot"].values, CYCLE, strict=False):
        share = p_long.sel(p_cot=p_cot)
        draw_members(left, share, color, marker="o", ms=3)
        overlay_star(left, p_cot, num_rounds, color=color)
        label_line(left, num_rounds, end_of(share), f"p_cot = {p_cot:g}", color)
        before = share.shift(step=1).values.ravel()
        right.plot(before, share.values.ravel(), "o", ms=4, color=color, alpha=0.7)
    left.set(xlabel="STaR round", ylabel="P(long) at temperature 1", ylim=(0, 1))
    left.set_title("dashed: 2ⁿp / (1 + (2ⁿ - 1)p)", loc="left", fontsize=9)
    p = np.linspace(0, 1, 101)
    right.plot(p, 2 * p / (1 + p), "k--", lw=1)
    right.plot(p, p, color="0.8", lw=1)
    right.set(xlabel="P(long) before a round", ylabel="after it", xlim=(0, 1))
    title = "one dot per round and seed; dashed: 2p / (1 + p)"
    right.set_title(title, loc="left", fontsize=9)
    return figure
