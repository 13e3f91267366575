"""STaR maps the long share p to 2p / (1 + p): the mechanism (C7).

Command    parity-jax run --config=experiments/c7_star_map.py --workdir=runs/c7_star_map
Device     2 CPU cores, about 6 minutes
Expected   after every round the sampled long share is within 0.05 of 2p / (1 + p), p
           being the measured share before it, from p_cot = 0.05, 0.1 and 0.25
Figure     the paper's section 6: p_n = 2^n p / (1 + (2^n - 1) p)
"""

import matplotlib.pyplot as plt
from flax.core import FrozenDict
from lab import SMALL, draw_star_map, star_gap

from parity_jax.analysis import Claim, Results, last
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
    gap = star_gap(results["star"]["t1/p_long"])
    accuracy = last(results["star"])["greedy/accuracy"]
    return [
        Claim.at_most("C7", gap, 0.05),
        Claim.at_least("C7-greedy", accuracy, 0.99),
    ]


def figure(results: Results) -> plt.Figure:
    """The long share over the rounds, and after a round over before it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="tight")
    draw_star_map(left, right, results["star"]["t1/p_long"])
    return figure
