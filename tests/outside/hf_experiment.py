"""Both stages from the weights of a Hugging Face folder, which the command names.

It shows that they run, in a minute; 4 steps on 16 prompts improve nothing.

parity-jax run --config=tests/outside/hf_experiment.py:FOLDER --workdir=runs/from_hf
"""

import matplotlib.pyplot as plt
from flax.core import FrozenDict

from parity_jax.analysis import Check, Claim
from parity_jax.analysis.plots import BLUE, draw_members
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models.huggingface import HfFolder
from parity_jax.stages import PolicyGradientConfig, PretrainConfig, RolloutConfig
from parity_jax.tasks import ParityConfig


def get_config(folder):
    task = ParityConfig(8)
    schedule = {"log_every": 1, "eval_every": 10, "hypers": Hypers(learning_rate=1e-4)}
    runs = {
        "sft": RunConfig(
            **schedule,
            num_steps=20,
            stage=PretrainConfig(batch_size=16),
            parent=folder,
        ),
        "grpo": RunConfig(
            **schedule,
            num_steps=4,
            stage=PolicyGradientConfig(RolloutConfig(num_prompts=8, num_generations=4)),
            parent="sft",
        ),
    }
    return Experiment(
        task=task,
        model=HfFolder(folder).model(task.make(), scan=True),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(16, (1.0,)),
    )


def claims(results):
    ended = results["sft"]["t1/ended"]
    change = ended.isel(step=-1) - ended.isel(step=0)
    text = "fine-tuning teaches where an answer ends"
    return [Claim.of("sft", text, change=Check.above(change, 0))]


def figure(results):
    figure, ax = plt.subplots()
    draw_members(ax, results["sft"]["t1/ended"], BLUE)
    ax.set(xlabel="step", ylabel="answers that end")
    return figure
