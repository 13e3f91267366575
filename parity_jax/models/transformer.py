"""Decoder-only transformer, GPT-2 and Mistral families from one module.

A sequence is a prompt and a response. The prompt is run once; its keys and values are
then shared by the G responses of that prompt, in training and in decoding alike.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.config import TransformerConfig
from parity_jax.models.model import Model
from parity_jax.types import Key, Params


class KV(NamedTuple):
    """Keys and values of one layer, NxJxLxK: N = B G rows, J key-value heads.

    In this order a decoding step writes and reads its cache as it lies.
    """

    key: Array
    value: Array


Layers = tuple[KV, ...]


def rotary(x_NxHxTxK: Array, position_T: Array, base: float = 10_000.0) -> Array:
    """Rotate pairs (k, k + K/2) of each head by position * base^(-2k/K)."""
    half = x_NxHxTxK.shape[-1] // 2
    frequency_K = base ** (-jnp.arange(half) / half)
    angle_TxK = position_T[:, None].astype(jnp.float32) * frequency_K[None]
    cos = jnp.cos(angle_TxK).astype(x_NxHxTxK.dtype)[None, None]
    sin = jnp.sin(angle_TxK).astype(x_NxHxTxK.dtype)[None, None]
    left, right = jnp.split(x_NxHxTxK, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


@jax.custom_vjp
def row_product(x_NxD: Array, kernel_DxF: Array) -> Array:
    """x @ kernel, whose gradients are products of the shapes that a CPU runs fast.

    Left to itself the kernel's gradient transposes the rows first, or is tall: half the
    rate of the other products in measurements.
    """
    return x_NxD @ kernel_DxF


def _row_product_fwd(x_NxD: Array, kernel_DxF: Array) -> tuple[Array, Any]:
    return x_NxD @ kernel_DxF, (x_NxD, kernel_DxF)


def _row_product_bwd(saved: Any, grad_NxF: Array) -> tuple[Array, Array]:
    x_NxD, kernel_DxF = saved
    if kernel_DxF.shape[0] > kernel_DxF.shape[1]:  # the barrier keeps it wide
        kernel_grad = jax.lax.optimization_barrier(grad_NxF.T @ x_NxD).T
    else:
        kernel_grad = x_NxD.T @ grad_NxF
    return grad_NxF @ kernel_DxF.T, kernel_grad


row_product.defvjp(_row_product_fwd, _row_product_bwd)


def dot_rows(x: Array, kernel: Array, dimension_numbers: Any, **_: Any) -> Array:
    """`row_product` in the place of `lax.dot_general` in dense layers."""
    (axes, _), _ = dimension_numbers
    num = len(axes)  # the last ones of x, the first ones of the kernel
    rows = x.reshape(-1, prod(x.shape[-num:]))
    out = row_product(rows, kernel.reshape(rows.shape[1], -1))
    return out.reshape(*x.shape[:-num], *kernel.shape[num:])


def dense_options(cfg: TransformerConfig, std: float) -> dict[str, Any]:
    """What the dense layers of a block have in common."""
    return {
        "use_bias": cfg.bias,
        "dtype": jnp.dtype(cfg.dtype),
        "kernel_init": nn.initializers.normal(std),
        "dot_general": dot_rows,
    }


def residual_std(cfg: TransformerConfig) -> float:
    """Initial std of what is added to the residual stream, 2 depth times (GPT-2)."""
    return cfg.init_std / (2 * cfg.depth) ** 0.5


class Attention(nn.Module):
    """Causal attention of T new positions to the prompt and to their own response.

    Rows are N = B G, the queries of a key-value head Q = (heads / key-value heads) T.
    """

    cfg: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x_BxGxTxD: Array,
        position_T: Array,
        prompt: KV | None,
        cache: KV | None,
        index: Array | int,
    ) -> tuple[Array, KV]:
        cfg = self.cfg
        batch_size, num_generations, num_tokens, _ = x_BxGxTxD.shape
        num_rows, heads = batch_size * num_generations, cfg.num_kv_heads
        head_size = cfg.width // cfg.num_heads
        dtype = jnp.dtype(cfg.dtype)

        def project(name: str, num_heads: int) -> Array:
            shape = (num_heads, head_size)
            dense = nn.DenseGeneral(
                shape, name=name, **dense_options(cfg, cfg.init_std)
            )
            return dense(x_BxGxTxD).reshape(num_rows, num_tokens, *shape).swapaxes(1, 2)

        query = project("query", cfg.num_heads)  # NxHxTxK
        own = KV(project("key", heads), project("value", heads))
        if cfg.positions == "rotary":
            query = rotary(query, position_T)
            own = own._replace(key=rotary(own.key, position_T))
        own_position_S = position_T
        if cache is not None:
            own = jax.tree.map(
                lambda old, new: jax.lax.dynamic_update_slice_in_dim(
                    old, new, index, 2
                ),
                cache,
                own,
            )
            own_position_S = position_T[0] - index + jnp.arange(own.key.shape[2])

        query = query.reshape(num_rows, heads, -1, head_size) * head_size**-0.5
        scores_NxJxSxQ = jnp.einsum("njsk,njqk->njsq", own.key, query)  # as keys lie
        visible = self._visible(position_T, own_position_S)
        scores_NxJxQxS = scores_NxJxSxQ.swapaxes(2, 3).astype(jnp.float32)
        scores_NxJxQxS = jnp.where(visible, scores_NxJxQxS, -jnp.inf)
        if prompt is None:
            weights_NxJxQxS = jax.nn.softmax(scores_NxJxQxS, -1).astype(dtype)
            out_NxJxQxK = weights_NxJxQxS @ own.value
        else:
            by_prompt = (batch_size, num_generations, heads)
            prompt_len = prompt.key.shape[2]
            query = query.reshape(*by_prompt, -1, head_size)
            prompt_scores = jnp.einsum("bgjqk,bjlk->bgjql", query, prompt.key)
            prompt_scores = prompt_scores.astype(jnp.float32)
            if cfg.sliding_window:
                visible = self._visible(position_T, jnp.arange(prompt_len))
                prompt_scores = jnp.where(visible[None], prompt_scores, -jnp.inf)
            prompt_scores = prompt_scores.reshape(num_rows, heads, -1, prompt_len)
            scores = jnp.concatenate([prompt_scores, scores_NxJxQxS], -1)
            weights = jax.nn.softmax(scores, -1).astype(dtype)
            out_NxJxQxK = weights[..., prompt_len:] @ own.value
            weights = weights[..., :prompt_len].reshape(*by_prompt, -1, prompt_len)
            out = jnp.einsum("bgjql,bjlk->bgjqk", weights, prompt.value)
            out_NxJxQxK += out.reshape(out_NxJxQxK.shape)
        out_NxHxTxK = out_NxJxQxK.reshape(num_rows, cfg.num_heads, -1, head_size)
        out = out_NxHxTxK.swapaxes(1, 2).reshape(*x_BxGxTxD.shape[:3], -1, head_size)
        options = dense_options(cfg, residual_std(cfg))
        dense = nn.DenseGeneral(cfg.width, axis=(-2, -1), name="out", **options)
        return dense(out), own

    def _visible(self, query_position_T: Array, key_position_S: Array) -> Array:
        """Which keys the queries of a key-value head see, 1x1xQxS."""
        distance = query_position_T[:, None] - key_position_S[None, :]
        visible = distance >= 0
        if self.cfg.sliding_window:
            visible &= distance < self.cfg.sliding_window
        num_groups = self.cfg.num_heads // self.cfg.num_kv_heads
        return jnp.tile(visible, (num_groups, 1))[None, None]


class Mlp(nn.Module):
    """Position-wise MLP: GELU (tanh form, as in GPT-2) or SwiGLU."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        cfg = self.cfg

        def dense(features: int, name: str, std: float = cfg.init_std) -> nn.Dense:
            return nn.Dense(features, name=name, **dense_options(cfg, std))

        hidden = dense(cfg.mlp_width, "up")(x)
        if cfg.mlp == "swiglu":
            hidden = nn.silu(dense(cfg.mlp_width, "gate")(x)) * hidden
        else:
            hidden = nn.gelu(hidden, approximate=True)
        return dense(cfg.width, "down", residual_std(cfg))(hidden)


def _norm(cfg: TransformerConfig) -> nn.Module:
    if cfg.norm == "rms":
        return nn.RMSNorm(epsilon=1e-5, dtype=jnp.dtype(cfg.dtype))
    return nn.LayerNorm(
        epsilon=1e-5, dtype=jnp.dtype(cfg.dtype), use_fast_variance=False
    )


class Block(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    cfg: TransformerConfig

    def setup(self) -> None:
        self.attention_norm = _norm(self.cfg)
        self.attention = Attention(self.cfg)
        self.mlp_norm = _norm(self.cfg)
        self.mlp = Mlp(self.cfg)

    def __call__(
        self,
        x: Array,
        position_T: Array,
        prompt: KV | None,
        cache: KV | None,
        index: Array | int,
    ) -> tuple[Array, KV]:
        out, own = self.attention(
            self.attention_norm(x), position_T, prompt, cache, index
        )
        x = x + out
        return x + self.mlp(self.mlp_norm(x)), own


class Transformer(nn.Module):
    """Token and position embedding, N blocks, final norm and unembedding."""

    cfg: TransformerConfig
    vocab_size: int
    max_len: int

    def setup(self) -> None:
        cfg = self.cfg
        init = nn.initializers.normal(cfg.init_std)
        dtype = jnp.dtype(cfg.dtype)
        self.embed = nn.Embed(
            self.vocab_size, cfg.width, dtype=dtype, embedding_init=init
        )
        if cfg.positions == "learned":
            self.position_embed = nn.Embed(
                self.max_len, cfg.width, dtype=dtype, embedding_init=init
            )
        self.blocks = [Block(cfg) for _ in range(cfg.depth)]
        self.final_norm = _norm(cfg)
        if not cfg.tie_embedding:
            self.unembed = nn.Dense(
                self.vocab_size, use_bias=False, dtype=jnp.float32, kernel_init=init
            )

    def __call__(self, token_BxL: Array) -> Array:
        """logits_BxLxV of the token after each; one pass over whole sequences."""
        x, _ = self._run(token_BxL[:, None], jnp.arange(token_BxL.shape[1]))
        return self._logits(x)[:, 0]

    def prompt_pass(self, prompt_BxL: Array) -> tuple[Array, Layers]:
        """logits_BxV after the prompt, and its keys and values."""
        x, layers = self._run(prompt_BxL[:, None], jnp.arange(prompt_BxL.shape[1]))
        return self._logits(x[:, 0, -1]), layers

    def response_pass(self, token_BxGxT: Array, prompt: Layers) -> Array:
        """logits_BxGxTxV after each response token."""
        position_T = prompt[0].key.shape[2] + jnp.arange(token_BxGxT.shape[2])
        return self._logits(self._run(token_BxGxT, position_T, prompt)[0])

    def decode_step(
        self, token_BxG: Array, index: Array, prompt: Layers, cache: Layers
    ) -> tuple[Array, Layers]:
        """logits_BxGxV after response token `index`, and the cache with it."""
        position_T = prompt[0].key.shape[2] + index + jnp.arange(1)
        token_BxGx1 = token_BxG[..., None]
        x, cache = self._run(token_BxGx1, position_T, prompt, cache, index)
        return self._logits(x)[:, :, 0], cache

    def _run(
        self,
        token_BxGxT: Array,
        position_T: Array,
        prompt: Layers | None = None,
        cache: Layers | None = None,
        index: Array | int = 0,
    ) -> tuple[Array, Layers]:
        x = self.embed(token_BxGxT)
        if self.cfg.positions == "learned":
            x = x + self.position_embed(position_T)[None, None]
        none = [None] * self.cfg.depth
        layers = []
        for block, prompt_n, cache_n in zip(
            self.blocks, prompt or none, cache or none, strict=True
        ):
            x, own = block(x, position_T, prompt_n, cache_n, index)
            layers.append(own)
        return x, tuple(layers)

    def _logits(self, x: Array) -> Array:
        x = self.final_norm(x).astype(jnp.float32)
        if self.cfg.tie_embedding:
            return x @ self.embed.embedding.T
        return self.unembed(x)


def make_transformer(
    cfg: TransformerConfig, vocab_size: int, prompt_len: int, max_len: int
) -> Model:
    """The transformer as pure functions; sequences have at most max_len tokens."""
    module = Transformer(cfg, vocab_size, max_len)

    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros((1, prompt_len), jnp.int32))["params"]

    def method(name: str) -> Callable[..., Any]:
        def call(params: Params, *args: Any) -> Any:
            return module.apply({"params": params}, *args, method=name)

        return call

    def empty_cache(prompt: Layers, num_generations: int, response_len: int) -> Layers:
        def empty(x: Array) -> Array:
            batch_size, num_heads, _, head_size = x.shape
            shape = (batch_size * num_generations, num_heads, response_len, head_size)
            return jnp.zeros(shape, x.dtype)

        return jax.tree.map(empty, prompt)

    return Model(
        init=init,
        prompt_pass=method("prompt_pass"),
        response_pass=method("response_pass"),
        empty_cache=empty_cache,
        decode_step=method("decode_step"),
    )
