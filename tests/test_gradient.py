"""Responses run as far as they reach: same gradient as running all to the end."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_gpt2

from parity_jax import gradient
from parity_jax.config import LinearConfig, ParityConfig, PolicyGradientConfig
from parity_jax.gradient import response_gradient
from parity_jax.models import make_model, response_logits
from parity_jax.objectives import policy_loss, policy_target
from parity_jax.rows import add_rows, blocks_of, set_rows, take_rows
from parity_jax.tasks import make_task
from parity_jax.tasks.parity import MINUS, PLUS
from parity_jax.types import EOS, PAD, Hypers

TASK = make_task(ParityConfig(4))
BATCH, GROUP, LENGTH = 4, 3, TASK.response_len
HYPERS = Hypers(entropy_coef=0.1, beta=0.3, epsilon=0.05, temperature=1.3)
CONFIGS = {
    "token": PolicyGradientConfig(loss_type="dapo", kl_estimator="k3"),
    "sequence": PolicyGradientConfig(importance_sampling_level="sequence"),
}


def responses(lengths):
    """Bits and an EOS at the end: responses that have these many tokens."""
    k_token, k_old, k_advantage = jax.random.split(jax.random.key(1), 3)
    shape = (BATCH, GROUP, LENGTH)
    length_BxGx1 = jnp.array(lengths).reshape(BATCH, GROUP, 1)
    place = jnp.arange(LENGTH)[None, None]
    bit = jax.random.randint(k_token, shape, PLUS, MINUS + 1)
    token = jnp.where(place < length_BxGx1 - 1, bit, EOS)
    mask = place < length_BxGx1
    old, reference = jax.random.uniform(k_old, (2, *shape), minval=-2, maxval=-1)
    advantage = jax.random.normal(k_advantage, shape[:2])
    return jnp.where(mask, token, PAD), mask, old, reference, advantage


def plain_gradient(loss, model, params, prompt_BxL, target):
    """Every response run to its full length."""

    def whole(params):
        return loss(response_logits(model, params, prompt_BxL, target.token), target)

    (value, metrics), grads = jax.value_and_grad(whole, has_aux=True)(params)
    return grads, value, metrics


NONE_LONG, ALL_LONG = [2, 2, 1] * 4, [LENGTH] * 12
SOME_LONG, LINEAR = [5, 2, 1, 0, 3, 2, 5, 4, 5, 2, 2, 1], [5, 2, 2] * 4


@pytest.mark.parametrize(
    ("model", "cfg", "cases"),
    [
        (tiny_gpt2(), "token", (NONE_LONG, SOME_LONG, ALL_LONG)),
        (tiny_gpt2(), "sequence", (SOME_LONG,)),
        (LinearConfig(), "token", (LINEAR,)),  # it stops after bit 1 or d
    ],
    ids=["token", "sequence", "linear"],
)
def test_equals_the_plain_path(monkeypatch, model, cfg, cases):
    """Loss, gradient and metrics, with blocks that the long responses do not fill."""
    monkeypatch.setattr(gradient, "gradient_rows", lambda num_rows, num_tokens: 5)
    cfg, model = CONFIGS[cfg], make_model(model, TASK)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(
        lambda x: 0.3 * jax.random.normal(jax.random.key(2), x.shape), shapes
    )
    prompt = TASK.sample_prompts(jax.random.key(3), BATCH)
    loss = partial(policy_loss, hypers=HYPERS, cfg=cfg)
    plain = jax.jit(partial(plain_gradient, loss, model))
    compact = jax.jit(partial(response_gradient, loss, model, short_len=2))
    for lengths in cases:
        token, mask, old, reference, advantage = responses(lengths)
        reference = None if cfg.kl_estimator == "none" else reference
        constants = (token, mask, old, reference, advantage)
        target = policy_target(*constants, 20.0, cfg.loss_type)
        found = compact(params, prompt, target)
        expected = plain(params, prompt, target)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert max(jnp.abs(x).max() for x in jax.tree.leaves(found[0])) > 0.01


@pytest.mark.parametrize("chosen", [[], [2], [0, 3, 4], [0, 1, 2, 3, 4]])
def test_blocks_hold_every_chosen_row_once(chosen):
    is_chosen_N = jnp.zeros(5, bool).at[jnp.array(chosen, int)].set(True)
    blocks = blocks_of(is_chosen_N, 2)
    assert blocks.num == -(-len(chosen) // 2)
    rows = np.asarray(blocks.row[: int(blocks.num)]).ravel()
    assert [n for n in rows if n < 5] == chosen
    values = jnp.arange(10.0).reshape(5, 2)
    doubled, replaced = values, values
    for row_R in blocks.row:
        taken = take_rows(values, row_R)
        doubled = add_rows(doubled, row_R, taken)
        replaced = set_rows(replaced, row_R, -taken)
    factor = np.where(is_chosen_N, 2, 1)[:, None]
    np.testing.assert_array_equal(doubled, values * factor)
    np.testing.assert_array_equal(replaced, values * np.where(factor == 2, -1, 1))
