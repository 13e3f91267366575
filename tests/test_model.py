"""The transformer: causality, its three passes, precision, windows, sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny_gpt2, tiny_mistral

from parity_jax.config import ConfigError
from parity_jax.models import gpt2, mistral, response_logits
from parity_jax.models.attention import rotary
from parity_jax.models.kernels import dot_rows
from parity_jax.models.model import run_prompt
from parity_jax.models.transformer import Transformer, make_transformer
from parity_jax.types import Prompt

VOCAB, PROMPT, RESPONSE = 5, 5, 4
LENGTH = PROMPT + RESPONSE
BATCH, GROUP = 2, 5  # rows as many as positions and one
NAMES = ("gpt2", "mistral", "mistral_window", "gpt2_plain_window", "mistral_tied")


def config(name, **overrides):
    make, options = {
        "gpt2": (tiny_gpt2, {"depth": 2}),
        "mistral": (tiny_mistral, {"depth": 2}),
        "mistral_window": (tiny_mistral, {"depth": 2, "sliding_window": 3}),
        "gpt2_plain_window": (
            tiny_gpt2,
            {"tie_embedding": False, "bias": False, "sliding_window": 2},
        ),
        "mistral_tied": (tiny_mistral, {"tie_embedding": True, "num_kv_heads": 1}),
    }[name]
    return make(**options | overrides).resolved()


class Subject:
    """A model with random parameters and tokens."""

    def __init__(self, cfg):
        self.cfg = cfg
        self.module = Transformer(cfg, VOCAB, LENGTH)
        self.model = make_transformer(cfg, VOCAB, LENGTH)
        self.params = random_params(self.model)
        rng = np.random.default_rng(1)
        token_BxGxL = rng.integers(0, VOCAB, (BATCH, GROUP, LENGTH))
        token_BxGxL[:, 1:, :PROMPT] = token_BxGxL[:, :1, :PROMPT]  # they share it
        self.token_NxL = token_BxGxL.reshape(-1, LENGTH)
        self.prompt = Prompt(token_BxGxL[:, 0, :PROMPT])
        self.response_BxGxT = jnp.array(token_BxGxL[..., PROMPT:])
        self.full = jax.jit(lambda params, x: self.module.apply({"params": params}, x))

    def full_logits(self):
        """Logits that predict the response tokens, and those after the last, BxGx.xV"""
        flat = np.asarray(self.full(self.params, self.token_NxL))
        return flat.reshape(BATCH, GROUP, LENGTH, VOCAB)[:, :, PROMPT - 1 :]


@functools.cache
def subject_of(name):
    return Subject(config(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_position_sees_exactly_what_it_may(name):
    """Itself and earlier ones, as far as the windows of all layers reach.

    Another token at position s changes the logits at t, or not one bit of them.
    """
    subject = subject_of(name)
    reach = subject.cfg.depth * (subject.cfg.sliding_window - 1) + 1
    reach = reach if subject.cfg.sliding_window else LENGTH
    token_SxL = np.repeat(subject.token_NxL[:1], LENGTH + 1, 0)
    place = np.arange(LENGTH)
    token_SxL[place, place] = (token_SxL[place, place] + 1) % VOCAB
    logits_SxLxV = np.asarray(subject.full(subject.params, token_SxL))
    change_SxT = np.abs(logits_SxLxV[:-1] - logits_SxLxV[-1:]).max(-1)
    distance_SxT = place[None] - place[:, None]
    visible_SxT = (distance_SxT >= 0) & (distance_SxT < reach)
    np.testing.assert_array_equal(change_SxT > 0, visible_SxT)
    assert (np.diag(change_SxT) > 1e-2).all()
    assert (np.diag(change_SxT, 1) > 1e-3).all()


@pytest.mark.parametrize("name", NAMES)
def test_prompt_response_and_cached_passes_equal_the_full_forward(name):
    subject = subject_of(name)
    model, params, token_BxGxT = subject.model, subject.params, subject.response_BxGxT

    @jax.jit
    def both(params):
        forced = response_logits(model, params, subject.prompt, token_BxGxT)
        first_BxV, context = run_prompt(model, params, subject.prompt)
        cache = model.empty_cache(context, GROUP, RESPONSE)

        def step(cache, index):
            hidden, cache = model.decode_step(
                params, token_BxGxT[..., index], index, context, cache
            )
            return cache, model.unembed(params, hidden)

        stepped_TxBxGxV = jax.lax.scan(step, cache, jnp.arange(RESPONSE))[1]
        return forced, first_BxV, stepped_TxBxGxV

    forced, first_BxV, stepped_TxBxGxV = map(np.asarray, both(params))
    assert forced.dtype == first_BxV.dtype == stepped_TxBxGxV.dtype == np.float32
    expected = subject.full_logits()
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.1  # responses differ
    np.testing.assert_allclose(forced, expected[:, :, :-1], rtol=1e-5, atol=1e-5)
    for g in range(GROUP):
        np.testing.assert_allclose(first_BxV, expected[:, g, 0], rtol=1e-5, atol=1e-5)
    stepped = np.moveaxis(stepped_TxBxGxV, 0, 2)
    np.testing.assert_allclose(stepped, expected[:, :, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "mistral_window"])
def test_bfloat16_compute_is_close_and_parameters_stay_float32(name):
    exact, subject = subject_of(name), Subject(config(name, dtype="bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(subject.params)} == {jnp.dtype("float32")}

    def loss(params):
        logits = subject.full(params, subject.token_NxL)
        return jax.nn.log_softmax(logits)[..., 0].mean()

    gradient = jax.eval_shape(jax.grad(loss), subject.params)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    rough, fine = subject.full_logits(), exact.full_logits()
    assert rough.dtype == np.float32
    error = np.abs(rough - fine).max() / np.std(fine)
    assert 1e-4 < error < 0.1  # bfloat16 has 8 bits; equal logits would mean no effect


def test_wide_window_is_no_window():
    subject = subject_of("mistral_tied")
    wide = dataclasses.replace(subject.cfg, sliding_window=LENGTH)
    logits = jax.jit(Transformer(wide, VOCAB, LENGTH).apply)(
        {"params": subject.params}, subject.token_NxL
    )
    expected = subject.full(subject.params, subject.token_NxL)
    np.testing.assert_array_equal(logits, expected)


def test_rotary_products_depend_on_the_distance_only():
    query, key = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)

    @jax.jit
    def product(t, s):
        turned = [
            rotary(x[None, None, None], jnp.reshape(p, 1), jnp.array([1, 0.5, 0.1, 0]))
            for x, p in ((query, t), (key, s))
        ]
        return (turned[0] * turned[1]).sum()

    def of(t, s):
        return float(product(t, s))

    assert of(3, 1) == pytest.approx(of(9, 7), rel=1e-5)
    assert of(0, 0) == pytest.approx(float(query @ key), rel=1e-5)
    assert abs(of(3, 1) - of(3, 2)) > 1e-2


def test_dense_products_and_their_gradients_are_those_of_dot_general():
    rng = np.random.default_rng(0)
    for kernel_shape, num_axes in (((8, 3), 1), ((3, 2, 4), 1), ((2, 4, 3), 2)):
        kernel = rng.normal(size=kernel_shape).astype(np.float32)
        x = rng.normal(size=(5, 2, *kernel_shape[:num_axes])).astype(np.float32)
        axes = (tuple(range(2, 2 + num_axes)), tuple(range(num_axes)))
        size = (5, 2, *kernel_shape[num_axes:])
        weight = rng.normal(size=size).astype(np.float32)

        @jax.jit
        def both(x, kernel, weight=weight, numbers=(axes, ((), ()))):
            """Products and gradients, ours and the library's."""

            def run(dot):
                out, pull = jax.vjp(lambda x, y: dot(x, y, numbers), x, kernel)
                return out, *pull(weight)

            return run(dot_rows), run(jax.lax.dot_general)

        ours, theirs = both(x, kernel)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# Sizes


def num_parameters(cfg, max_len):
    model = make_transformer(cfg.resolved(), VOCAB, max_len)
    params = jax.eval_shape(model.init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(params))


def test_parameter_counts():
    for depth, width in ((1, 64), (2, 128)):
        attention = 4 * (width * width + width)
        mlp = 2 * 4 * width * width + 4 * width + width
        block = attention + mlp + 2 * 2 * width
        total = VOCAB * width + LENGTH * width + depth * block + 2 * width
        assert num_parameters(gpt2(depth, width), LENGTH) == total
        attention = 2 * width * width + 2 * width * width // 2  # half as many kv heads
        mlp = 3 * width * (7 * width // 2)
        block = attention + mlp + 2 * width
        total = 2 * VOCAB * width + depth * block + width
        assert num_parameters(mistral(depth, width), LENGTH) == total


def test_a_width_below_that_of_a_head_has_one_head():
    for cfg in (gpt2(1, 16).resolved(), mistral(1, 16).resolved()):
        assert (cfg.num_heads, cfg.num_kv_heads) == (1, 1)
    with pytest.raises(ConfigError, match=r"^width=0: must be at least 1"):
        gpt2(width=0)


def test_residual_projections_start_smaller():
    model = make_transformer(tiny_gpt2(depth=2, width=32).resolved(), VOCAB, LENGTH)
    mlp = jax.jit(model.init)(jax.random.key(0))["blocks_0"]["mlp"]
    up, down = (float(mlp[name]["kernel"].std()) for name in ("up", "down"))
    assert up == pytest.approx(32**-0.5, rel=0.1)
    assert down == pytest.approx(up / 2, rel=0.1)  # sqrt(2 * depth) = 2
