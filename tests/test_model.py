"""The transformer: causality, its three passes, precision, windows, sizes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_gpt2, tiny_mistral

from parity_jax.config import gpt2, mistral
from parity_jax.models import response_logits
from parity_jax.models.transformer import (
    Transformer,
    dot_rows,
    make_transformer,
    rotary,
)

VOCAB, PROMPT, RESPONSE = 5, 5, 4
LENGTH = PROMPT + RESPONSE

MODELS = {
    "gpt2": tiny_gpt2(depth=2),
    "mistral": tiny_mistral(depth=2),
    "window": tiny_mistral(depth=2, sliding_window=3),
    "gpt2_untied_without_bias": tiny_gpt2(tie_embedding=False, bias=False),
    "mistral_tied_one_kv_head": tiny_mistral(tie_embedding=True, num_kv_heads=1),
}


class Subject:
    """A model with random parameters and tokens; compiled once per module."""

    def __init__(self, cfg):
        self.cfg = cfg
        self.module = Transformer(cfg, VOCAB, LENGTH)
        self.model = make_transformer(cfg, VOCAB, PROMPT, LENGTH)
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        shape = (2, 3, LENGTH)
        self.token_BxGxL = jax.random.randint(jax.random.key(1), shape, 0, VOCAB)
        # The responses of a prompt share it.
        prompt_Bx1xP = self.token_BxGxL[:, :1, :PROMPT]
        self.token_BxGxL = self.token_BxGxL.at[..., :PROMPT].set(prompt_Bx1xP)
        self.prompt_BxP = prompt_Bx1xP[:, 0]
        self.response_BxGxT = self.token_BxGxL[..., PROMPT:]
        self.full = jax.jit(self.forward)

    def forward(self, params, token_BxL):
        return self.module.apply({"params": params}, token_BxL)

    def full_logits(self):
        """Logits that predict the response tokens, and those after the last, BxGx.xV"""
        flat = self.full(self.params, self.token_BxGxL.reshape(-1, LENGTH))
        return flat.reshape(2, 3, LENGTH, VOCAB)[:, :, PROMPT - 1 :]


@pytest.fixture(scope="module", params=list(MODELS))
def subject(request):
    return Subject(MODELS[request.param])


def input_gradient(subject):
    """Size of d(logits at position t) / d(embedded token at position s), LxL."""
    token_1xL = subject.token_BxGxL[0, :1]
    weight_V = jnp.linspace(1.0, 2.0, VOCAB)

    def scores(delta_1xLxD):
        def shift(f, args, kwargs, context):
            out = f(*args, **kwargs)
            is_token = (context.module.name, context.method_name) == (
                "embed",
                "__call__",
            )
            return out + delta_1xLxD[:, None] if is_token else out

        with nn.intercept_methods(shift):
            logits_1xLxV = subject.forward(subject.params, token_1xL)
        return (logits_1xLxV[0] * weight_V[None]).sum(-1)

    zero = jnp.zeros((1, LENGTH, subject.cfg.width))
    jacobian = jax.jit(jax.jacrev(scores))(zero)
    return np.abs(jacobian[:, 0]).max(-1)


def test_causality_by_gradient(subject):
    gradient_TxS = input_gradient(subject)
    later = np.triu(np.ones((LENGTH, LENGTH), bool), 1)
    assert (gradient_TxS[later] == 0).all()
    assert (np.diag(gradient_TxS) > 1e-3).all()
    assert (np.diag(gradient_TxS, -1) > 1e-6).all()


def test_later_tokens_change_nothing_earlier(subject):
    token_BxL = subject.token_BxGxL[:, 0]
    changed_BxL = token_BxL.at[:, -2].set((token_BxL[:, -2] + 1) % VOCAB)
    before, after = (subject.full(subject.params, x) for x in (token_BxL, changed_BxL))
    np.testing.assert_array_equal(before[:, :-2], after[:, :-2])
    assert np.abs(before[:, -2:] - after[:, -2:]).max(-1).min() > 1e-3


def test_prompt_and_response_pass_equal_the_full_forward(subject):
    logits = jax.jit(response_logits, static_argnums=0)(
        subject.model, subject.params, subject.prompt_BxP, subject.response_BxGxT
    )
    assert logits.dtype == jnp.float32
    expected = subject.full_logits()[:, :, :-1]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.1  # responses differ


def test_cached_decode_steps_equal_the_full_forward(subject):
    model, params = subject.model, subject.params
    first_BxV, context = jax.jit(model.prompt_pass)(params, subject.prompt_BxP)
    expected = subject.full_logits()
    for g in range(3):
        np.testing.assert_allclose(first_BxV, expected[:, g, 0], rtol=1e-5, atol=1e-5)
    cache = model.empty_cache(context, 3, RESPONSE)
    decode_step = jax.jit(model.decode_step)
    for t in range(RESPONSE):
        logits, cache = decode_step(
            params, subject.response_BxGxT[..., t], jnp.int32(t), context, cache
        )
        np.testing.assert_allclose(logits, expected[:, :, t + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "window"])
def test_bfloat16_compute_is_close_and_parameters_stay_float32(name):
    cfg = dataclasses.replace(MODELS[name], depth=1)
    subject = Subject(dataclasses.replace(cfg, dtype="bfloat16"))
    exact = Subject(cfg)
    for a, b in zip(*map(jax.tree.leaves, (subject.params, exact.params)), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)

    def loss(params):
        logits = subject.forward(params, subject.token_BxGxL[:, 0])
        return jax.nn.log_softmax(logits)[..., 0].mean()

    gradient = jax.jit(jax.grad(loss))(subject.params)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    rough, fine = subject.full_logits(), exact.full_logits()
    assert rough.dtype == jnp.float32
    error = np.abs(rough - fine).max() / np.std(fine)
    assert 1e-4 < error < 0.1  # bfloat16 has 8 bits; equal logits would mean no effect


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_mistral])
def test_sliding_window_sees_exactly_its_positions(make, window):
    gradient_TxS = input_gradient(Subject(make(depth=1, sliding_window=window)))
    t, s = np.indices((LENGTH, LENGTH))
    visible = (t - s >= 0) & (t - s < window)
    np.testing.assert_array_equal(gradient_TxS > 0, visible)


def test_wide_window_is_no_window():
    wide = Subject(tiny_mistral(sliding_window=LENGTH))
    without = Subject(tiny_mistral())
    np.testing.assert_array_equal(wide.full_logits(), without.full_logits())


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


@pytest.mark.parametrize(
    ("kernel_shape", "num_axes"),
    [((8, 3), 1), ((3, 8), 1), ((3, 2, 4), 1), ((2, 4, 3), 2)],
)
def test_dense_products_and_their_gradients_are_those_of_dot_general(
    kernel_shape, num_axes
):
    k_x, k_kernel, k_out = jax.random.split(jax.random.key(0), 3)
    kernel = jax.random.normal(k_kernel, kernel_shape)
    x = jax.random.normal(k_x, (5, 2, *kernel_shape[:num_axes]))
    axes = (tuple(range(2, 2 + num_axes)), tuple(range(num_axes)))
    numbers = (axes, ((), ()))
    out, pull = jax.vjp(lambda *p: dot_rows(*p, numbers), x, kernel)
    expected, expected_pull = jax.vjp(
        lambda *p: jax.lax.dot_general(*p, numbers), x, kernel
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    grad = jax.random.normal(k_out, out.shape)
    for ours, theirs in zip(pull(grad), expected_pull(grad), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def num_parameters(cfg, max_len):
    model = make_transformer(cfg, VOCAB, PROMPT, max_len)
    params = jax.eval_shape(model.init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(("depth", "width"), [(2, 128), (4, 256)])
def test_parameter_count_of_gpt2(depth, width):
    attention = 4 * (width * width + width)
    mlp = 2 * 4 * width * width + 4 * width + width
    block = attention + mlp + 2 * 2 * width
    total = VOCAB * width + LENGTH * width + depth * block + 2 * width
    assert num_parameters(gpt2(depth, width), LENGTH) == total


@pytest.mark.parametrize(("depth", "width"), [(2, 128), (4, 256)])
def test_parameter_count_of_mistral(depth, width):
    attention = 2 * width * width + 2 * width * width // 2  # half as many kv heads
    mlp = 3 * width * (7 * width // 2)
    block = attention + mlp + 2 * width
    total = 2 * VOCAB * width + depth * block + width
    assert num_parameters(mistral(depth, width), LENGTH) == total


def test_residual_projections_start_smaller():
    block = Subject(tiny_gpt2(depth=2, width=32)).params["blocks_0"]
    up, down = (float(block["mlp"][name]["kernel"].std()) for name in ("up", "down"))
    assert up == pytest.approx(32**-0.5, rel=0.1)
    assert down == pytest.approx(up / 2, rel=0.1)  # sqrt(2 * depth) = 2
