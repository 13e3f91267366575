"""An experiment of one's own, on a task, an algorithm and a reward of one's own."""

import matplotlib.pyplot as plt
from flax.core import FrozenDict
from toy_stage import ImitateConfig
from toy_task import CopyConfig

from parity_jax.analysis import Check, Claim, last
from parity_jax.analysis.plots import BLUE, draw_members
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import gpt2
from parity_jax.stages import PolicyGradientConfig, RolloutConfig


def pays_length(prompt, response_BxGxT, data):
    """A reward: 1 for every response of four tokens or more with its end."""
    return (response_BxGxT[..., 3] != 0).astype(float)


def get_config():
    rollout = RolloutConfig(
        num_prompts=8,
        num_generations=4,
        rewards=("e2e", "toy_experiment:pays_length"),
        reward_weights=(0.5, 0.5),
    )
    schedule = {"log_every": 20, "eval_every": 100}
    runs = {
        "imitate": RunConfig(
            **schedule,
            num_steps=300,
            stage=ImitateConfig(),
            hypers=Hypers(learning_rate=1e-2),
        ),
        "grpo": RunConfig(
            **schedule,
            num_steps=4,
            stage=PolicyGradientConfig(rollout),
            parent="imitate",
        ),
    }
    return Experiment(
        task=CopyConfig(3),
        model=gpt2(1, 16, num_heads=2, num_kv_heads=2),
        axes=FrozenDict({"seed": (0, 1)}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(32, (1.0,)),
    )


def claims(results):
    p_long = last(results["imitate"])["t1/p_long"]
    text = "imitation of worked solutions makes answers long"
    return [Claim.of("toy", text, p_long=Check.at_least(p_long, 0.9))]


def figure(results):
    figure, ax = plt.subplots()
    draw_members(ax, results["imitate"]["t1/p_long"], BLUE)
    ax.set(xlabel="step", ylabel="P(long)")
    return figure
