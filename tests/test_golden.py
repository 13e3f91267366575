"""Numbers of step 1, after the first update: no change of training goes unnoticed."""

import jax
import numpy as np
import pytest
from tiny import POLICY_GRADIENT, PRETRAIN, tiny_stage

from parity_jax.hypers import Hypers
from parity_jax.types import Data

GOLDEN = {
    "pretrain": {
        "grad_norm": 6.44153,
        "loss": 4.55187,
        "token_loss": 1.30053,
    },
    "policy_gradient": {
        "accuracy": 0.125,
        "advantage_abs": 0.432913,
        "clip_ratio/high_mean": 0.0,
        "clip_ratio/low_mean": 0.0,
        "clip_ratio/region_mean": 0.0,
        "completions/clipped_ratio": 0.4375,
        "completions/max_length": 5.0,
        "completions/mean_correct_length": 2.5,
        "completions/mean_length": 2.8125,
        "completions/mean_terminated_length": 1.11111,
        "completions/mean_wrong_length": 2.85714,
        "completions/min_length": 0.0,
        "effective_rollout_ratio": 1.0,
        "entropy": 1.28254,
        "frac_reward_zero_std": 0.5,
        "grad_norm": 0.990384,
        "loss": 0.0,
        "p_long": 0.625,
        "reward": 0.125,
        "reward_std": 0.216506,
        "rollouts": 16.0,
        "tokens": 54.0,
        "updates": 1.0,
    },
}


@pytest.mark.parametrize("kind", list(GOLDEN))
def test_step_1(kind):
    cfg = {cfg.kind: cfg for cfg in (PRETRAIN, POLICY_GRADIENT)}[kind]
    stage, hypers = tiny_stage(cfg), Hypers(p_cot=0.5, learning_rate=1e-2)
    step = jax.jit(stage.step)
    state = jax.jit(stage.init)(jax.random.key(0), hypers, None)
    state, _ = step(state, Data())
    _, metrics = step(state, Data())
    table = {name: float(mean.value()) for name, mean in metrics.items()}
    message = f"metrics of step 1 changed; if intended, update the table: {table}"
    golden = GOLDEN[kind]
    assert table.keys() == golden.keys(), message
    for name, value in golden.items():
        np.testing.assert_allclose(
            table[name], value, rtol=1e-3, atol=1e-6, err_msg=f"{name}: {message}"
        )
