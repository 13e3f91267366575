"""Blocks that are stacked and scanned, and attention in pieces: the same model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params

from parity_jax.config import ConfigError
from parity_jax.decode import sample
from parity_jax.models import (
    TransformerConfig,
    attention,
    gpt2,
    llama,
    qwen,
    response_logits,
)
from parity_jax.models import transformer as module
from parity_jax.tasks import ParityConfig
from parity_jax.types import Prompt

TASK = ParityConfig(6).make()
SIZES = dict(num_heads=4, num_kv_heads=2)
FAMILIES = {
    "gpt2": gpt2(3, 32),
    "llama": llama(3, 32, **SIZES, sliding_window=4),
    "qwen3": qwen(3, 32, **SIZES, qkv_bias=False, qk_norm=True),
}


def stacked(params):
    """Parameters of unrolled blocks as those of a scanned model."""
    blocks = [params[name] for name in sorted(params) if name.startswith("blocks_")]
    rest = {k: x for k, x in params.items() if not k.startswith("blocks_")}
    return rest | {"blocks": jax.tree.map(lambda *x: np.stack(x), *blocks)}


def a_batch(is_padded):
    """Prompts, some shorter than others, and responses."""
    prompt = TASK.sample_prompts(jax.random.key(1), 4)
    if is_padded:
        length_Bx1 = np.array([7, 3, 5, 2])[:, None]
        mask = np.arange(TASK.prompt_len)[None] >= TASK.prompt_len - length_Bx1
        prompt = Prompt(jnp.where(mask, prompt.token, 0), jnp.array(mask))
    shape = (4, 3, TASK.format.max_len)
    return prompt, jax.random.randint(jax.random.key(2), shape, 0, TASK.vocab_size)


def value_and_gradient(cfg, params, is_padded=False):
    """A sum over logits that mixes them, and its gradient."""
    model = cfg.make(TASK)
    prompt, token = a_batch(is_padded)

    def mixed(params):
        return jnp.sin(response_logits(model, params, prompt, token)).sum()

    return jax.jit(jax.value_and_grad(mixed))(params)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_scan_is_the_loop_that_it_replaces(name):
    """Values, gradients with and without remat, and sampled tokens."""
    cfg = FAMILIES[name]
    params = random_params(cfg.make(TASK))
    is_padded = name != "gpt2"
    value, gradient = value_and_gradient(cfg, params, is_padded)
    for remat in (False, True):
        scanned = dataclasses.replace(cfg, scan=True, remat=remat)
        found, found_gradient = value_and_gradient(scanned, stacked(params), is_padded)
        assert float(found) == pytest.approx(float(value), rel=1e-5)
        for a, b in zip(
            *map(jax.tree.leaves, (found_gradient, stacked(gradient))), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

    def drawn(cfg, params):
        prompt, _ = a_batch(is_padded)
        temperature_G = jnp.array([0.0, 1.0])
        return jax.jit(
            lambda p: sample(
                jax.random.key(3), cfg.make(TASK), p, prompt, temperature_G, TASK.format
            )
        )(params)

    one, other = drawn(cfg, params), drawn(scanned, stacked(params))
    np.testing.assert_array_equal(one.token, other.token)
    np.testing.assert_allclose(one.log_prob, other.log_prob, atol=1e-5)


@pytest.mark.parametrize("most", [1, 100, 500])  # queries of a piece: 1, some, many
def test_attention_in_pieces_is_attention(monkeypatch, most):
    """Also where the pieces do not divide the queries, and prompts are padded."""
    cfg = dataclasses.replace(FAMILIES["llama"], depth=2)
    params = random_params(cfg.make(TASK))
    value, gradient = value_and_gradient(cfg, params, is_padded=True)
    monkeypatch.setattr(attention, "MAX_SCORES", most)
    found, found_gradient = value_and_gradient(cfg, params, is_padded=True)
    assert float(found) == pytest.approx(float(value), rel=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (gradient, found_gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_program_of_a_scan_does_not_grow_with_depth():
    """In lines; that of the unrolled blocks does."""

    def num_lines(depth, scan):
        cfg = llama(depth, 32, **SIZES, scan=scan)
        model = cfg.make(TASK)
        params = jax.eval_shape(model.init, jax.random.key(0))
        prompt, token = a_batch(is_padded=False)
        loss = jax.grad(lambda p: response_logits(model, p, prompt, token).sum())
        return len(jax.jit(loss).lower(params).as_text().splitlines())

    assert num_lines(8, scan=True) == num_lines(2, scan=True)
    assert num_lines(4, scan=False) > 1.5 * num_lines(2, scan=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"remat": True}, "remat=True: must be false without scan=true"),
        ({"qkv_bias": True}, "qkv_bias=True: must be false with bias=true"),
        ({"rope_scaling": module.RopeScaling()}, "must be null with positions='learn"),
        ({"head_size": -1}, "head_size=-1: must be 0"),
        ({"vocab_size": -1}, "vocab_size=-1: must be 0"),
        ({"norm_eps": -1.0}, "norm_eps=-1.0: must be a finite number"),
        ({"positions": "rotary", "num_positions": 9}, "must be 0 with positions='rot"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**fields)
    with pytest.raises(ConfigError, match="high_freq_factor"):
        module.RopeScaling(high_freq_factor=1.0)


def test_sizes_of_ones_own_must_hold_the_task():
    for cfg, message in (
        (gpt2(1, 32, vocab_size=3), "model.vocab_size=3: must be 0 or at least 5"),
        (gpt2(1, 32, num_positions=8), "model.num_positions=8: must be 0 or at leas"),
    ):
        with pytest.raises(ConfigError, match=message):
            cfg.check(ParityConfig(6))
    wide = gpt2(1, 32, vocab_size=9, num_positions=40)
    params = jax.eval_shape(wide.make(TASK).init, jax.random.key(0))
    assert params["embed"]["embedding"].shape == (9, 32)
    assert params["position_embed"]["embedding"].shape == (40, 32)
