"""Prompts of several lengths in one batch: each is what it would be alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny_gpt2, tiny_mistral

from parity_jax.decode import sample
from parity_jax.gradient import response_gradient
from parity_jax.models import response_logits
from parity_jax.models.transformer import make_transformer
from parity_jax.objectives import Target, next_token_loss
from parity_jax.responses import left_padded
from parity_jax.types import Prompt, ResponseFormat

VOCAB, GROUP, TEMPERATURE = 5, 3, 1.3
FORMAT = ResponseFormat(pad_id=0, end_ids=(1,), max_len=4, short_len=2)
PROMPTS = (np.array([4, 2]), np.array([3, 4, 2, 4, 3]))
BATCH = len(PROMPTS)


def model_and_params(cfg):
    model = make_transformer(cfg.resolved(), VOCAB, 9)
    return model, random_params(model)


def responses():
    """Tokens and their mask, BxGxT: some go on behind the short length."""
    shape = (BATCH, GROUP, FORMAT.max_len)
    token = np.random.default_rng(1).integers(2, VOCAB, shape)
    length_BxGx1 = np.array([[1, 4, 2], [3, 2, 4]])[..., None]
    return token, np.arange(FORMAT.max_len)[None, None] < length_BxGx1


def test_a_padded_prompt_is_what_it_would_be_alone():
    """Logits, samples, scores of tokens and the gradient of its responses."""
    model, params = model_and_params(tiny_mistral())
    token, mask = responses()
    target = Target(token, mask & np.array([True, False])[:, None, None])  # row 0 only
    temperature_G = jnp.array([0.0, 1.0, TEMPERATURE])
    loss = partial(next_token_loss, num_sequences=1)

    @jax.jit
    def everything(prompt):
        """Row 0 of every batch draws with the same numbers, whatever its prompt is."""
        key, short_len = jax.random.key(2), FORMAT.short_len
        logits = response_logits(model, params, prompt, token)
        response = sample(key, model, params, prompt, temperature_G, FORMAT)
        gradient = response_gradient(
            loss, model, params, prompt, target, short_len, TEMPERATURE
        )
        return jax.tree.map(lambda x: x[0], (logits, response)), gradient

    padded = left_padded(list(PROMPTS), FORMAT)
    assert padded.mask.sum(1).tolist() == [len(prompt) for prompt in PROMPTS]
    found = everything(padded)
    expected = everything(Prompt(jnp.array([PROMPTS[0]] * BATCH)))
    found, expected = jax.device_get((found, expected))
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    grads, value, _ = found[1]
    assert value > 1
    assert max(np.abs(x).max() for x in jax.tree.leaves(grads)) > 0.1


def test_padding_is_out_of_every_window():
    """In all layers, whatever token it is; a mask of no padding is no mask."""
    model, params = model_and_params(tiny_mistral(depth=2, sliding_window=3))
    logits = jax.jit(
        partial(response_logits, model, params, token_BxGxT=responses()[0])
    )
    padded = left_padded(list(PROMPTS), FORMAT)
    found = logits(padded)
    alone = logits(Prompt(jnp.array([PROMPTS[0]] * BATCH)))
    np.testing.assert_allclose(found[0], alone[0], rtol=1e-5, atol=1e-5)
    whole = Prompt(jnp.array([PROMPTS[1]] * BATCH))
    masked = logits(whole._replace(mask=jnp.ones(whole.token.shape, bool)))
    np.testing.assert_allclose(masked, logits(whole), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[1], masked[1], rtol=1e-6, atol=1e-6)
    other = padded._replace(token=jnp.where(padded.mask, padded.token, 3))
    np.testing.assert_array_equal(found, logits(other))
    unmasked = logits(Prompt(padded.token))
    assert np.abs(unmasked[0] - found[0]).max() > 1e-3  # the mask is what does it


def test_learned_positions_refuse_padded_prompts():
    model, params = model_and_params(tiny_gpt2())
    padded = left_padded(list(PROMPTS), FORMAT)
    with pytest.raises(ValueError, match="prompts are not of one length"):
        model.prompt_pass(params, padded)
