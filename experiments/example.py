"""A first experiment: copy this file, change it, run it.

Command    .venv/bin/parity-jax run --config=experiments/example.py \\
               --workdir=runs/example
Device     2 CPU cores, under a minute
Expected   after next-token prediction P(long) is p_cot and greedy answers are short;
           20 updates of GRPO on a reward of one's own make them whole right chains.
Figure     none of the paper: greedy length of 8 bits through both stages

`get_config` says what is trained: a task, a model, axes (every value of them is a
member, all members are one program) and runs, of which one may start from another.
Every field can be overridden when it is run: --config.task.num_bits=10. `claims` holds
what was measured against what was expected, `figure` draws it, and both are rehearsed
before anything is trained. A reward is a function of prompts and responses; it is named
by its module, which is this file's name. results["grpo"] is an xarray dataset over
(seed, step); the reference of the documentation lists its scores.
"""

import jax
import matplotlib.pyplot as plt
from flax.core import FrozenDict

from parity_jax.analysis import Answer, Check, Claim, Results, last
from parity_jax.analysis.plots import ACCENT, draw_members
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import gpt2
from parity_jax.stages import PolicyGradientConfig, PretrainConfig, RolloutConfig
from parity_jax.tasks import ParityConfig
from parity_jax.types import Prompt


def right_steps(prompt: Prompt, response_BxGxT: jax.Array, data: object) -> jax.Array:
    """The share of the full chain's tokens that a response has in their place, BxG."""
    num_bits = prompt.token.shape[1] - 1  # a separator ends the prompt
    chain_BxT = ParityConfig(num_bits).make().solution(prompt).worked[:, 0]
    return (response_BxGxT == chain_BxT[:, None]).mean(-1)


def get_config() -> Experiment:
    rollout = RolloutConfig(num_prompts=32, rewards=(f"{__name__}:right_steps",))
    pretrain = RunConfig(
        num_steps=300, stage=PretrainConfig(128), hypers=Hypers(learning_rate=2e-3)
    )
    grpo = RunConfig(
        num_steps=20,
        eval_every=5,
        stage=PolicyGradientConfig(rollout),
        parent="pretrain",
    )
    return Experiment(
        task=ParityConfig(num_bits=8),
        model=gpt2(depth=2, width=64),
        axes=FrozenDict({"p_cot": (0.25,), "seed": (0, 1)}),
        runs=FrozenDict({"pretrain": pretrain, "grpo": grpo}),
        evaluate=EvaluateConfig(num_prompts=256, temperatures=(1.0,)),
    )


def claims(results: Results) -> list[Claim]:
    before, after = last(results["pretrain"]), last(results["grpo"])
    solved = Check.at_least(after["greedy/accuracy"], 0.95)
    return [
        Claim.within("C1", before["t1/p_long"], before["p_cot"], tolerance=0.1),
        Claim.of("C5", "GRPO makes greedy decoding right", accuracy=solved),
    ]


def answer(results: Results) -> Answer:
    accuracy = float(last(results["grpo"])["greedy/accuracy"].min(skipna=False))
    question = "Is a reward for every right step enough?"
    return Answer(question, f"On it GRPO makes {accuracy:.1%} of greedy answers right.")


def figure(results: Results) -> plt.Figure:
    figure, ax = plt.subplots(figsize=(5, 3))
    for name in results:
        lengths = results[name]["greedy/length_mean"]
        draw_members(ax, lengths, ACCENT, x=results[name]["sequences"])
    ax.set(xlabel="training sequences", ylabel="tokens of a greedy answer")
    return figure
