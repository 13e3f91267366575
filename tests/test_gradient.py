"""Responses run as far as they reach: same gradient as running all to the end."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_gpt2

from parity_jax.blocks import add_rows, blocks_of, gradient_rows, set_rows, take_rows
from parity_jax.gradient import response_gradient
from parity_jax.hypers import Hypers
from parity_jax.models import LinearConfig, response_logits
from parity_jax.objectives import policy_loss, policy_target
from parity_jax.policy import tempered, token_scores
from parity_jax.tasks import ParityConfig
from parity_jax.tasks.parity import EOS, MINUS, PAD, PLUS

BATCH, GROUP, LENGTH, TEMPERATURE = 4, 21, 5, 1.3
HYPERS = Hypers(entropy_coef=0.1, beta=0.3, epsilon=0.05)

# Lengths of responses, over and over.
NONE_LONG, ALL_LONG, LINEAR = [2, 2, 1], [LENGTH], [5, 2, 5]
SOME_LONG = [5, 2, 1, 0, 3, 2, 5, 4, 5, 3, 4, 5]


def responses(lengths):
    """Bits and an EOS at the end: responses that have these many tokens."""
    k_token, k_old, k_advantage = jax.random.split(jax.random.key(1), 3)
    shape = (BATCH, GROUP, LENGTH)
    length_BxGx1 = jnp.resize(jnp.array(lengths), (BATCH, GROUP, 1))
    place = jnp.arange(LENGTH)[None, None]
    bit = jax.random.randint(k_token, shape, PLUS, MINUS + 1)
    token = jnp.where(place < length_BxGx1 - 1, bit, EOS)
    mask = place < length_BxGx1
    old, reference = jax.random.uniform(k_old, (2, *shape), minval=-2, maxval=-1)
    advantage = jax.random.normal(k_advantage, shape[:2])
    return jnp.where(mask, token, PAD), mask, old, reference, advantage


def plain_gradient(loss, model, params, prompt, target):
    """Every response run to its full length."""

    def whole(params):
        logits = response_logits(model, params, prompt, target.token)
        return loss(token_scores(tempered(logits, TEMPERATURE), target.token), target)

    (value, metrics), grads = jax.value_and_grad(whole, has_aux=True)(params)
    return grads, value, metrics


@pytest.mark.parametrize("case", ["token", "sequence", "linear"])
def test_equals_the_plain_path(case):
    """Loss, gradient and metrics, with blocks that the long responses do not fill."""
    task = ParityConfig(4).make()
    model, level, kl_estimator, loss_type, cases = {
        "token": (tiny_gpt2(), "token", "k3", "dapo", (NONE_LONG, SOME_LONG, ALL_LONG)),
        "sequence": (tiny_gpt2(), "sequence", "none", "grpo", (SOME_LONG,)),
        "linear": (LinearConfig(), "token", "k3", "dapo", (LINEAR,)),  # bit 1 or d
    }[case]
    model = model.make(task)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(
        lambda x: 0.3 * jax.random.normal(jax.random.key(2), x.shape), shapes
    )
    prompt = task.sample_prompts(jax.random.key(3), BATCH)
    loss = partial(policy_loss, hypers=HYPERS, level=level, kl_estimator=kl_estimator)
    plain = jax.jit(partial(plain_gradient, loss, model))
    compact = partial(
        response_gradient, loss, model, short_len=2, temperature=TEMPERATURE
    )
    compact = jax.jit(compact)
    block_size = gradient_rows(BATCH * GROUP, LENGTH)
    for lengths in cases:
        token, mask, old, reference, advantage = responses(lengths)
        num_long = int((mask.sum(-1) > 2).sum())
        assert num_long == 0 or (num_long > block_size and num_long % block_size)
        reference = None if kl_estimator == "none" else reference
        target = policy_target(token, mask, old, reference, advantage, 20.0, loss_type)
        found = compact(params, prompt, target)
        expected = plain(params, prompt, target)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert max(jnp.abs(x).max() for x in jax.tree.leaves(found[0])) > 0.01


def test_blocks_hold_every_chosen_row_once():
    for chosen in ([], [2], [0, 3, 4], [0, 1, 2, 3, 4]):
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
