"""Responses run as far as they reach: same gradient as running all to the end."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny_gpt2

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
    rng, shape = np.random.default_rng(1), (BATCH, GROUP, LENGTH)
    length_BxGx1 = np.resize(lengths, (BATCH, GROUP, 1))
    place = np.arange(LENGTH)[None, None]
    bit = rng.integers(PLUS, MINUS + 1, shape)
    token = np.where(place < length_BxGx1 - 1, bit, EOS)
    mask = place < length_BxGx1
    old, reference = rng.uniform(-2, -1, (2, *shape)).astype(np.float32)
    advantage = rng.normal(size=shape[:2]).astype(np.float32)
    return np.where(mask, token, PAD), mask, old, reference, advantage


def plain_gradient(loss, model, params, prompt, target):
    """Every response run to its full length."""

    def whole(params):
        logits = response_logits(model, params, prompt, target.token)
        return loss(token_scores(tempered(logits, TEMPERATURE), target.token), target)

    (value, metrics), grads = jax.value_and_grad(whole, has_aux=True)(params)
    return grads, value, metrics


@pytest.mark.parametrize("kind", ["transformer", "few at once", "linear"])
def test_equals_the_plain_path(kind):
    """Loss, gradient and metrics, with blocks that the long responses do not fill."""
    task = ParityConfig(4).make()
    model, cases = {
        "transformer": (tiny_gpt2(), (NONE_LONG, SOME_LONG, ALL_LONG)),
        "few at once": (tiny_gpt2(gradient_rows=9), (SOME_LONG,)),
        "linear": (LinearConfig(), (LINEAR,)),  # it stops after bit 1 or d
    }[kind]
    model = model.make(task)
    params = random_params(model)
    # A ratio of whole responses: the hardest loss to take apart.
    loss = partial(policy_loss, hypers=HYPERS, level="sequence", kl_estimator="k3")
    prompt = task.sample_prompts(jax.random.key(3), BATCH)
    plain = jax.jit(partial(plain_gradient, loss, model))
    compact = partial(response_gradient, loss, model)
    compact = jax.jit(partial(compact, short_len=2, temperature=TEMPERATURE))
    block_size = model.gradient_rows or gradient_rows(BATCH * GROUP, LENGTH)
    for lengths in cases:
        token, mask, old, reference, advantage = responses(lengths)
        num_long = int((mask.sum(-1) > 2).sum())
        assert num_long == 0 or (num_long > block_size and num_long % block_size)
        target = policy_target(token, mask, old, reference, advantage, 20.0, "grpo")
        found = jax.device_get(compact(params, prompt, target))
        expected = plain(params, prompt, target)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert max(np.abs(x).max() for x in jax.tree.leaves(found[0])) > 0.01


def test_blocks_hold_every_chosen_row_once():
    values = np.arange(10.0, dtype=np.float32).reshape(5, 2)

    @jax.jit
    def changed(is_chosen_N):
        blocks = blocks_of(is_chosen_N, 2)
        doubled = replaced = jnp.array(values)
        for row_R in blocks.row:
            taken = take_rows(jnp.array(values), row_R)
            doubled = add_rows(doubled, row_R, taken)
            replaced = set_rows(replaced, row_R, -taken)
        return blocks, doubled, replaced

    for chosen in ([], [2], [0, 3, 4], [0, 1, 2, 3, 4]):
        is_chosen_N = np.isin(np.arange(5), chosen)
        blocks, doubled, replaced = jax.device_get(changed(is_chosen_N))
        assert blocks.num == -(-len(chosen) // 2)
        rows = blocks.row[: blocks.num].ravel()
        assert [n for n in rows if n < 5] == chosen
        np.testing.assert_array_equal(doubled[is_chosen_N], 2 * values[is_chosen_N])
        np.testing.assert_array_equal(replaced[is_chosen_N], -values[is_chosen_N])
        for tree in (doubled, replaced):
            np.testing.assert_array_equal(tree[~is_chosen_N], values[~is_chosen_N])
