"""The headline: parity of 50 bits, next-token prediction and then GRPO (C1, C2, C4, C5).

Command    make headline
           python -m experiments.main --config=experiments/headline.py \
               --workdir=runs/headline
Device     2 CPU cores: see README for the measured minutes; any GPU
Expected   before RL: greedy answers are 1 token long and right half of the time, sampled
           ones are long with probability p_cot; after RL: greedy answers are 50 tokens
           long and right; next-token prediction on as many sequences changes nothing.
Figure     the paper's first figure (its d=50, p_cot=0.25; batch and widths are ours)
"""

from pathlib import Path

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
    gpt2,
    to_config_dict,
)
from parity_jax.plots import ACCENT, GREY, INK, draw_members, save_figure
from parity_jax.results import Claim, by_member, load_metrics, read_json, write_claims
from parity_jax.theory import accuracy
from parity_jax.types import Hypers


def get_config() -> ConfigDict:
    p_cot = 0.25  # below 1/3: greedy decoding stays short
    pretrain = RunConfig(
        stage=PretrainConfig(batch_size=64),
        hypers=Hypers(p_cot=p_cot, learning_rate=1e-3),
        num_steps=800,
        log_every=10,
        eval_every=100,
    )
    grpo = RunConfig(
        stage=PolicyGradientConfig(
            rollout=RolloutConfig(num_prompts=64, num_generations=8)
        ),
        hypers=Hypers(p_cot=p_cot, learning_rate=2e-4),
        num_steps=30,
        log_every=1,
        eval_every=5,
        parent="pretrain",
    )
    control = RunConfig(  # next-token prediction on as many sequences as GRPO samples
        stage=pretrain.stage,
        hypers=pretrain.hypers,
        num_steps=30 * 64 * 8 // 64,
        log_every=10,
        eval_every=60,
        parent="pretrain",
    )
    return to_config_dict(
        Experiment(
            task=ParityConfig(num_bits=50),
            model=gpt2(depth=2, width=128),
            axes=FrozenDict({"seed": (0, 1)}),
            runs=FrozenDict({"pretrain": pretrain, "grpo": grpo, "control": control}),
            evaluate=EvaluateConfig(num_prompts=256),
        )
    )
