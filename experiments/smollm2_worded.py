"""Parity in words from the real weights of SmolLM2-135M, scored on the host (T1-T4).

Command    parity-jax run --config=experiments/smollm2_worded.py
               --workdir=runs/smollm2_worded
           (SMOLLM2 names the folder of the model, else .pretrained/smollm2, which
           `make test-pretrained` writes)
Device     one GPU (6 minutes on an H200 that others used too); not run on a CPU
Expected   fixed before anything was tuned: before GRPO at most 10% of the greedy
           answers are long, and they are at most 10 points better than short ones;
           P(long) at temperature 1 is within 0.05 of p_cot; GRPO adds 10 points or more
           and lengthens; p_cot = 0, fine-tuning alone and a random reward add
           at most 5.
Figure     ours: accuracy and length of every run

The answer stands behind ####, so that the kind shows in the first token: greedy
decoding goes long above p_cot = 1/2. An instruct model can reason already, hence the
controls. All sizes are ours.
"""

import matplotlib.pyplot as plt
from flax.core import FrozenDict
from lab_text import TextRuns, path_of, reinforced, text_claims, text_figure, text_runs

from parity_jax.analysis import Claim, Results
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment
from parity_jax.models.huggingface import HfFolder
from parity_jax.stages import RolloutConfig
from parity_jax.tasks import TextConfig
from parity_jax.tasks.text import TokenizerConfig, WordedSource, marked

SIZE = TextRuns(
    batch_size=16,
    sft_steps=200,
    num_prompts=8,
    num_generations=8,
    updates=15,
    sft_rate=1e-4,
    rl_rate=5e-6,
    eval_every=20,
)
COIN = RolloutConfig(
    SIZE.num_prompts, SIZE.num_generations, ("worded_parity:coin_reward",)
)


def get_config() -> Experiment:
    folder = path_of("SMOLLM2", ".pretrained/smollm2")
    task = TextConfig(
        WordedSource(num_bits=5, named=True, num_train=4096, num_test=64),
        TokenizerConfig(folder=folder),
        marked(),
        verifier="exact",
    )
    return Experiment(
        task=task,
        model=HfFolder(folder).model(task.make(), scan=True),
        axes=FrozenDict({"p_cot": (0.25, 0.0), "seed": (0,)}),
        runs=text_runs(SIZE, folder, {"random_reward": reinforced(SIZE, COIN)}),
        evaluate=EvaluateConfig(num_prompts=64, temperatures=(1.0,), batch_size=32),
    )


def claims(results: Results) -> list[Claim]:
    """T1 - T4 on the last evaluation of each stage; p_cot = 0 is a control as well."""
    return text_claims(results, 1 / 2, {"random_reward": "random_reward"})


def figure(results: Results) -> plt.Figure:
    """Both values of p_cot in every panel."""
    names = {"sft": "fine-tuning", "grpo": "GRPO", "random_reward": "random reward"}
    return text_figure(results, names)
