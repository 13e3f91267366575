"""Responses run as far as they reach: the gradient of running all to the end."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_gpt2, tiny_mistral

from parity_jax import gradient
from parity_jax.config import LinearConfig, ParityConfig, PolicyGradientConfig
from parity_jax.gradient import response_gradient
from parity_jax.models import make_model, response_logits
from parity_jax.objectives import policy_loss, policy_target
from parity_jax.rows import add_rows, blocks_of, set_rows, take_rows
from parity_jax.tasks import make_task
from parity_jax.types import Hypers

TASK = make_task(ParityConfig(4))
BATCH, GROUP, LENGTH = 4, 3, TASK.response_len
HYPERS = Hypers(entropy_coef=0.1, beta=0.3, epsilon=0.05, temperature=1.3)
CONFIGS = {
    "token": PolicyGradientConfig(loss_type="dapo", kl_estimator="k3"),
    "sequence": PolicyGradientConfig(importance_sampling_level="sequence"),
}
MODELS = {"gpt2": tiny_gpt2(), "mistral": tiny_mistral(), "linear": LinearConfig()}


def responses(lengths):
    """A target whose responses have these many tokens."""
    k_token, k_old, k_advantage = jax.random.split(jax.random.key(1), 3)
    shape = (BATCH, GROUP, LENGTH)
    length_BxG = jnp.array(lengths).reshape(BATCH, GROUP)
    mask = jnp.arange(LENGTH) < length_BxG[..., None]
    token = jnp.where(mask, jax.random.randint(k_token, shape, 1, 5), 0)
    old, reference = jax.random.uniform(k_old, (2, *shape), minval=-2, maxval=-1)
    advantage = jax.random.normal(k_advantage, shape[:2])
    return token, mask, old, reference, advantage


def plain_gradient(loss, model, params, prompt_BxL, target):
    """Every response run to its full length."""

    def whole(params):
        return loss(response_logits(model, params, prompt_BxL, target.token), target)

    (value, metrics), grads = jax.value_and_grad(whole, has_aux=True)(params)
    return grads, value, metrics


@pytest.mark.parametrize(
    "lengths", [[1, 2, 2] * 4, [5, 2, 1, 0, 3, 2, 5, 4, 5, 2, 2, 1]]
)
@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_plain_path(monkeypatch, kind, cfg, lengths):
    """Loss, gradient and metrics, with blocks that the long responses do not fill."""
    monkeypatch.setattr(gradient, "gradient_rows", lambda num_rows, num_tokens: 5)
    model = make_model(MODELS[kind], TASK)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(
        lambda x: 0.3 * jax.random.normal(jax.random.key(2), x.shape), shapes
    )
    prompt = TASK.sample_prompts(jax.random.key(3), BATCH)
    token, mask, old, reference, advantage = responses(lengths)
    if cfg.kl_estimator == "none":
        reference = None
    target = policy_target(token, mask, old, reference, advantage, 20.0, cfg.loss_type)
    loss = partial(policy_loss, hypers=HYPERS, cfg=cfg)
    arguments = (params, prompt, target)
    expected = jax.jit(partial(plain_gradient, loss, model))(*arguments)
    found = jax.jit(partial(response_gradient, loss, model, short_len=2))(*arguments)
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
