"""The transformer: causality, its three passes, precision, windows, sizes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_gpt2, tiny_mistral

from parity_jax.models import gpt2, mistral, response_logits
from parity_jax.models.kernels import dot_rows
from parity_jax.models.model import run_prompt
from parity_jax.models.transformer import Transformer, make_transformer, rotary
from parity_jax.types import Prompt

VOCAB, PROMPT, RESPONSE = 5, 5, 4
LENGTH = PROMPT + RESPONSE
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
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        token_BxGxL = jax.random.randint(jax.random.key(1), (2, 3, LENGTH), 0, VOCAB)
        # The responses of a prompt share it.
        prompt_Bx1xP = token_BxGxL[:, :1, :PROMPT]
        self.token_NxL = (
            token_BxGxL.at[..., :PROMPT].set(prompt_Bx1xP).reshape(-1, LENGTH)
        )
        self.prompt = Prompt(prompt_Bx1xP[:, 0])
        self.response_BxGxT = token_BxGxL[..., PROMPT:]
        self.full = jax.jit(self.forward)

    def forward(self, params, token_BxL):
        return self.module.apply({"params": params}, token_BxL)

    def full_logits(self):
        """Logits that predict the response tokens, and those after the last, BxGx.xV"""
        flat = self.full(self.params, self.token_NxL)
        return flat.reshape(2, 3, LENGTH, VOCAB)[:, :, PROMPT - 1 :]


@functools.cache
def subject_of(name):
    return Subject(config(name))


def input_gradient(subject):
    """Size of d(logits at position t) / d(embedded token at position s), LxL."""
    token_1xL = subject.token_NxL[:1]
    weight_V = jnp.linspace(1.0, 2.0, VOCAB)

    def scores(delta_1xLxD):
        def shift(f, args, kwargs, context):
            out = f(*args, **kwargs)
            method = (context.module.name, context.method_name)
            is_token = method == ("embed", "__call__")
            return out + delta_1xLxD[:, None] if is_token else out

        with nn.intercept_methods(shift):
            logits_1xLxV = subject.forward(subject.params, token_1xL)
        return (logits_1xLxV[0] * weight_V[None]).sum(-1)

    zero = jnp.zeros((1, LENGTH, subject.cfg.width))
    jacobian = jax.jit(jax.jacrev(scores))(zero)
    return np.abs(jacobian[:, 0]).max(-1)


@pytest.mark.parametrize("name", NAMES)
def test_a_position_sees_exactly_what_it_may(name):
    """Itself and earlier ones, as far as the windows of all layers reach."""
    subject = subject_of(name)
    gradient_TxS = input_gradient(subject)
    reach = subject.cfg.depth * (subject.cfg.sliding_window - 1) + 1
    reach = reach if subject.cfg.sliding_window else LENGTH
    t, s = np.indices((LENGTH, LENGTH))
    visible = (t - s >= 0) & (t - s < reach)
    np.testing.assert_array_equal(gradient_TxS > 0, visible)
    assert (np.diag(gradient_TxS) > 1e-3).all()
    assert (np.diag(gradient_TxS, -1) > 1e-6).all()
    # Another token changes nothing before it, bit for bit.
    changed_NxL = subject.token_NxL.at[:, -2].set(
        (subject.token_NxL[:, -2] + 1) % VOCAB
    )
    before, after = (
        subject.full(subject.params, x) for x in (subject.token_NxL, changed_NxL)
    )
    np.testing.assert_array_equal(before[:, :-2], after[:, :-2])
    assert np.abs(before[:, -2:] - after[:, -2:]).max(-1).min() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_prompt_response_and_cached_passes_equal_the_full_forward(name):
    subject = subject_of(name)
    model, params, token_BxGxT = subject.model, subject.params, subject.response_BxGxT

    @jax.jit
    def both(params):
        forced = response_logits(model, params, subject.prompt, token_BxGxT)
        first_BxV, context = run_prompt(model, params, subject.prompt)
        cache = model.empty_cache(context, 3, RESPONSE)

        def step(cache, index):
            hidden, cache = model.decode_step(
                params, token_BxGxT[..., index], index, context, cache
            )
            return cache, model.unembed(params, hidden)

        stepped_TxBxGxV = jax.lax.scan(step, cache, jnp.arange(RESPONSE))[1]
        return forced, first_BxV, stepped_TxBxGxV

    forced, first_BxV, stepped_TxBxGxV = both(params)
    assert forced.dtype == first_BxV.dtype == stepped_TxBxGxV.dtype == jnp.float32
    expected = subject.full_logits()
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.1  # responses differ
    np.testing.assert_allclose(forced, expected[:, :, :-1], rtol=1e-5, atol=1e-5)
    for g in range(3):
        np.testing.assert_allclose(first_BxV, expected[:, g, 0], rtol=1e-5, atol=1e-5)
    stepped = np.moveaxis(stepped_TxBxGxV, 0, 2)
    np.testing.assert_allclose(stepped, expected[:, :, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "mistral_window"])
def test_bfloat16_compute_is_close_and_parameters_stay_float32(name):
    exact = Subject(config(name, depth=1))
    subject = Subject(config(name, depth=1, dtype="bfloat16"))
    for a, b in zip(*map(jax.tree.leaves, (subject.params, exact.params)), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)

    def loss(params):
        logits = subject.forward(params, subject.token_NxL)
        return jax.nn.log_softmax(logits)[..., 0].mean()

    gradient = jax.eval_shape(jax.grad(loss), subject.params)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    rough, fine = subject.full_logits(), exact.full_logits()
    assert rough.dtype == jnp.float32
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
    query, key = jax.random.normal(jax.random.key(0), (2, 8))

    def product(t, s):
        turned = [
            rotary(x[None, None, None], jnp.array([p]))
            for x, p in ((query, t), (key, s))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(3, 1) == pytest.approx(product(9, 7), rel=1e-5)
    assert product(0, 0) == pytest.approx(float(query @ key), rel=1e-5)
    assert abs(product(3, 1) - product(3, 2)) > 1e-2


def test_dense_products_and_their_gradients_are_those_of_dot_general():
    k_x, k_kernel, k_out = jax.random.split(jax.random.key(0), 3)
    for kernel_shape, num_axes in (((8, 3), 1), ((3, 2, 4), 1), ((2, 4, 3), 2)):
        kernel = jax.random.normal(k_kernel, kernel_shape)
        x = jax.random.normal(k_x, (5, 2, *kernel_shape[:num_axes]))
        axes = (tuple(range(2, 2 + num_axes)), tuple(range(num_axes)))
        numbers = (axes, ((), ()))
        out, pull = jax.vjp(lambda *p, n=numbers: dot_rows(*p, n), x, kernel)
        expected, expected_pull = jax.vjp(
            lambda *p, n=numbers: jax.lax.dot_general(*p, n), x, kernel
        )
        np.testing.assert_allclose(out, expected, rtol=1e-5)
        grad = jax.random.normal(k_out, out.shape)
        for ours, theirs in zip(pull(grad), expected_pull(grad), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


# Sizes


def num_parameters(cfg, max_len):
    model = make_transformer(cfg.resolved(), VOCAB, max_len)
    params = jax.eval_shape(model.init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(params))


def test_parameter_counts():
    for depth, width in ((2, 128), (4, 256)):
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


def test_residual_projections_start_smaller():
    model = make_transformer(tiny_gpt2(depth=2, width=32).resolved(), VOCAB, LENGTH)
    mlp = jax.jit(model.init)(jax.random.key(0))["blocks_0"]["mlp"]
    up, down = (float(mlp[name]["kernel"].std()) for name in ("up", "down"))
    assert up == pytest.approx(32**-0.5, rel=0.1)
    assert down == pytest.approx(up / 2, rel=0.1)  # sqrt(2 * depth) = 2
