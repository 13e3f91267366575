"""What only accelerators use, against the plain way, on a CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny_mistral

from parity_jax.decode import sample
from parity_jax.gradient import response_gradient
from parity_jax.models import Model, kernels
from parity_jax.models.attention import KV, Attention
from parity_jax.models.transformer import make_transformer
from parity_jax.objectives import Target, next_token_loss
from parity_jax.platform import made_for
from parity_jax.program import compiler_options
from parity_jax.responses import response_mask
from parity_jax.runs.roofline import equations
from parity_jax.types import Prompt, ResponseFormat

VOCAB, PROMPT, RESPONSE, BATCH, GROUP = 7, 5, 6, 4, 3
FORMAT = ResponseFormat(0, (1,), RESPONSE, short_len=2)
NUM_PADS = (0, 2, 4, 1)


def model(**overrides) -> Model:
    options = dict(depth=3, width=64) | overrides
    return make_transformer(tiny_mistral(**options).resolved(), VOCAB, 64)


def prompts(is_padded: bool = True) -> Prompt:
    token = np.random.default_rng(0).integers(2, VOCAB, (BATCH, PROMPT))
    mask = np.arange(PROMPT)[None] >= np.array(NUM_PADS)[:, None]
    if not is_padded:
        return Prompt(jnp.array(token))
    return Prompt(jnp.where(mask, token, 0), jnp.array(mask))


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("num_pads", [None, NUM_PADS])
@pytest.mark.parametrize("num_queries", [4, 9])
def test_fused_attention_is_the_plain_one(num_queries, num_pads, window):
    """Outputs at tokens and gradients, with JAX's own form in the place of cuDNN's."""
    cfg = tiny_mistral(width=64, sliding_window=window).resolved()
    heads, kv_heads, head_size = cfg.num_heads, cfg.num_kv_heads, cfg.head_size
    num = 9
    rng = np.random.default_rng(0)
    shapes = [(BATCH, h, n, head_size) for h, n in ((heads, num_queries),)]
    shapes += [(BATCH, kv_heads, num, head_size)] * 2
    query, *own = (jnp.array(rng.normal(size=s), jnp.float32) for s in shapes)
    position = jnp.arange(num - num_queries, num)
    mask, is_token = None, np.ones((BATCH, num), bool)
    if num_pads is not None:
        is_token = np.arange(num)[None] >= np.array(num_pads)[:, None]
        mask = jnp.array(is_token, jnp.float32)
    weight = rng.normal(size=query.shape) * is_token[:, None, -num_queries:, None]

    def plain(query, *own):
        attention = Attention(cfg, parent=None)
        out = attention.apply(
            {}, query, position, None, mask, KV(*own), method="_attend"
        )
        return (out * weight).sum(), out

    def fused(query, *own):
        out = kernels.fused_attention(query, *own, mask, window, "xla")
        return (out * weight).sum(), out

    found, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(query, *own)
        for f in (fused, plain)
    )
    shown = is_token[:, None, -num_queries:, None]
    np.testing.assert_allclose(
        found[0][1] * shown, expected[0][1] * shown, rtol=1e-5, atol=1e-5
    )
    for x, y in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
def test_fused_attention_in_a_model_on_a_gpu(monkeypatch):
    """Gradients of padded prompts with responses; bfloat16 rounds at 0.4%."""
    wide = model(width=128, num_heads=2, num_kv_heads=1, dtype="bfloat16")
    found = gradient(wide)
    monkeypatch.setattr(kernels, "has_fused_attention", lambda cfg: False)
    expected = gradient(wide)
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert np.linalg.norm(x - y) < 0.02 * np.linalg.norm(y) + 1e-6


def responses() -> jax.Array:
    token = np.random.default_rng(1).integers(2, VOCAB, (BATCH, GROUP, RESPONSE))
    token[:, 1:, 1], token[0, :, 1] = 1, 1  # the first of each prompt is long
    return jnp.array(token)


def gradient(of: Model):
    token = responses()
    mask = response_mask(token, FORMAT)
    target = Target(token, mask)
    params = random_params(of)
    loss = partial(next_token_loss, num_sequences=1)
    run = partial(response_gradient, loss, of)
    return jax.jit(lambda p: run(p, prompts(), target, FORMAT.short_len))(params)[0]


def loops_of(jaxpr):
    """The `while` equations of a traced program."""
    found = (e for e, _ in equations(jaxpr, 1.0, 1))
    return [e for e in found if str(e.primitive) == "while"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_one_by_one_decode_as_the_loop_does(dtype):
    """The same tokens and log-probabilities."""
    scanned = model(scan=True, dtype=dtype)
    params = random_params(scanned)

    def answers(key):
        return sample(key, scanned, params, prompts(), jnp.ones(GROUP), FORMAT)

    expected = jax.jit(answers)(jax.random.key(0))
    with made_for("gpu"):
        traced = jax.jit(partial(answers)).trace(jax.random.key(0))
    (loop,) = loops_of(traced.jaxpr.jaxpr)
    body = loop.params["body_jaxpr"].jaxpr
    assert "scan" not in {str(e.primitive) for e, _ in equations(body, 1.0, 1)}
    found = traced.lower().compile()(jax.random.key(0))
    np.testing.assert_array_equal(found.token, expected.token)
    np.testing.assert_allclose(
        found.log_prob, expected.log_prob, rtol=1e-2 if dtype == "bfloat16" else 1e-5
    )


@pytest.mark.parametrize("work", ["answers", "gradient"])
def test_loops_of_members_side_by_side_choose_nothing(work):
    """Selects between old and new caches were a third of a GRPO step on a GPU."""
    own = model(depth=1)

    def answers(params, key):
        return sample(key, own, params, prompts(), jnp.ones(GROUP), FORMAT)

    def grads(params, key):
        token = jax.random.randint(key, (BATCH, GROUP, RESPONSE), 1, VOCAB)
        target = Target(token, response_mask(token, FORMAT))
        loss = partial(next_token_loss, num_sequences=1)
        run = partial(response_gradient, loss, own)
        return run(params, prompts(), target, FORMAT.short_len)

    members = jax.vmap(answers if work == "answers" else grads)
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.vmap(own.init)(keys)
    with made_for("gpu"):
        traced = jax.make_jaxpr(members)(params, keys)
    loops = loops_of(traced.jaxpr)
    assert loops
    for loop in loops:
        (goes_on,) = loop.params["cond_jaxpr"].jaxpr.outvars
        assert goes_on.aval.shape == ()  # one for each member would need the selects


def test_the_gradient_of_a_lookup_is_a_product():
    """As that of the table's rows, whose parts are scattered."""
    rng = np.random.default_rng(0)
    table = jnp.array(rng.normal(size=(5, 8)), jnp.float32)
    token = jnp.array(rng.integers(0, 5, (3, 7)))
    weight = jnp.array(rng.normal(size=(3, 7, 8)), jnp.float32)

    def weighted(table):
        return (kernels.lookup(table, token) * weight).sum()

    expected = jax.value_and_grad(weighted)(table)
    with made_for("gpu"):
        found = jax.value_and_grad(weighted)(table)
        traced = str(jax.make_jaxpr(jax.grad(weighted))(table))
    assert "scatter" not in traced
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)


def test_the_compiler_knows_what_programs_of_a_gpu_ask_for(monkeypatch):
    """Its names change; how a GPU adds up is not seen here."""
    add = jax.jit(lambda x, row: x.at[row].add(1.0))
    lowered = add.lower(jnp.zeros(3), jnp.array([0, 0, 2]))
    assert (
        compiler_options("gpu")
        and not compiler_options("cpu")
        and not compiler_options("tpu")
    )
    compiled = lowered.compile(compiler_options=compiler_options("gpu"))
    assert compiled(jnp.zeros(3), jnp.array([0, 0, 2])).tolist() == [2, 0, 1]
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such"):
        lowered.compile(compiler_options={"xla_gpu_of_old": True})
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_exclude_nondeterministic_ops=false")
    assert not compiler_options("gpu")
