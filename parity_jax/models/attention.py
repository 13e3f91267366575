"""Attention over a prompt and a response's own tokens.

Keys and values of a prompt are shared by its responses, in training and in decoding.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.models import kernels

if TYPE_CHECKING:
    from parity_jax.models.transformer import TransformerConfig


# So many attention scores of a block exist at once; more queries come in pieces.
MAX_SCORES = 2**28


class KV(NamedTuple):
    """Keys and values of one block, NxJxLxK, or of all that are scanned, NxZxJxLxK.

    N = B G rows, J key-value heads. In this order a decoding step writes and reads its
    cache as it lies.
    """

    key: Array
    value: Array


Layers = tuple[KV, ...] | KV  # of all blocks, one by one or stacked
# Takes the keys and values of new tokens; returns those of all own tokens so far, which
# attention reads, and what is kept of them.
Extend = Callable[[KV], tuple[KV, Any]]


class Context(NamedTuple):
    """What the responses need of their prompts."""

    layers: Layers
    mask: Array | None  # BxL float, 1 on tokens; None: no prompt is padded


def num_positions(layers: Layers) -> int:
    """Positions that keys and values are of."""
    return jax.tree.leaves(layers)[0].shape[-2]


def keep_all(new: KV) -> tuple[KV, KV]:
    """The `Extend` of a pass over all own tokens."""
    return new, new


def rotary_frequencies(cfg: "TransformerConfig") -> Array:
    """Radians a position of each pair of a head: theta^(-2k/K), scaled if asked for."""
    half = cfg.head_size // 2
    frequency_K = cfg.rope_theta ** (-jnp.arange(half) / half)
    scaling = cfg.rope_scaling
    if scaling is None:
        return frequency_K
    waves_K = scaling.original_len * frequency_K / (2 * math.pi)  # in the original
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_K = jnp.clip((waves_K - low) / (high - low), 0, 1)
    return frequency_K * (kept_K + (1 - kept_K) / scaling.factor)


def rotary(x_NxHxTxK: Array, position_T: Array, frequency_K: Array) -> Array:
    """Rotate pairs (k, k + K/2) of each head by position * frequency."""
    angle_TxK = position_T[:, None].astype(jnp.float32) * frequency_K[None]
    cos = jnp.cos(angle_TxK).astype(x_NxHxTxK.dtype)[None, None]
    sin = jnp.sin(angle_TxK).astype(x_NxHxTxK.dtype)[None, None]
    left, right = jnp.split(x_NxHxTxK, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def dense_options(cfg: "TransformerConfig", std: float) -> dict[str, Any]:
    """What the dense layers of a block have in common."""
    return {
        "use_bias": cfg.bias,
        "dtype": jnp.dtype(cfg.dtype),
        "kernel_init": nn.initializers.normal(std),
        "dot_general": kernels.dot_general(),
    }


def residual_std(cfg: "TransformerConfig") -> float:
    """Initial std of what is added to the residual stream, 2 depth times (GPT-2)."""
    return cfg.init_std / (2 * cfg.depth) ** 0.5


def norm_of(cfg: "TransformerConfig") -> nn.Module:
    """The norm before each part of a block, and at the end."""
    if cfg.norm == "rms":
        return rms_norm(cfg)
    return nn.LayerNorm(
        epsilon=cfg.norm_eps, dtype=jnp.dtype(cfg.dtype), use_fast_variance=False
    )


def rms_norm(cfg: "TransformerConfig") -> nn.Module:
    """Of a root mean square, with a scale and no bias."""
    return nn.RMSNorm(epsilon=cfg.norm_eps, dtype=jnp.dtype(cfg.dtype))


class Attention(nn.Module):
    """Causal attention of T new positions to the prompt and to their own response.

    Rows are N = B G, the queries of a key-value head Q = (heads / key-value heads) T.
    """

    cfg: "TransformerConfig"

    def setup(self) -> None:
        cfg = self.cfg

        def heads(num: int) -> nn.Module:
            options = dense_options(cfg, cfg.init_std)
            options["use_bias"] = cfg.bias or cfg.qkv_bias
            return nn.DenseGeneral((num, cfg.head_size), **options)

        self.query, self.key = heads(cfg.num_heads), heads(cfg.num_kv_heads)
        self.value = heads(cfg.num_kv_heads)
        if cfg.qk_norm:
            self.query_norm, self.key_norm = rms_norm(cfg), rms_norm(cfg)
        options = dense_options(cfg, residual_std(cfg))
        self.out = nn.DenseGeneral(cfg.width, axis=(-2, -1), **options)

    def __call__(
        self,
        x_BxGxTxD: Array,
        position_T: Array,
        prompt: KV | None,
        prompt_mask_BxL: Array | None,
        extend: Extend,
    ) -> tuple[Array, Any]:
        """The output, BxGxTxD, and what is kept of the own keys and values.

        Without a `prompt` the own tokens are the prompt: the mask is theirs.
        """
        query_NxHxTxK, new = self._project(x_BxGxTxD, position_T)
        own, kept = extend(new)
        is_one_pass = x_BxGxTxD.shape[2] > 1 and x_BxGxTxD.shape[1] == 1
        if prompt is not None and is_one_pass:  # a prompt to each row: one sequence
            own, prompt_mask_BxL = _behind(prompt, prompt_mask_BxL, own)
            prompt = None
        if prompt is None and kernels.has_fused_attention(self.cfg):
            out_NxHxTxK = kernels.fused_attention(
                query_NxHxTxK, *own, prompt_mask_BxL, self.cfg.sliding_window
            )
        else:
            out_NxHxTxK = self._attend(
                query_NxHxTxK, position_T, prompt, prompt_mask_BxL, own
            )
        shape = (*x_BxGxTxD.shape[:3], *out_NxHxTxK.shape[1::2])
        return self.out(out_NxHxTxK.swapaxes(1, 2).reshape(shape)), kept

    def _attend(
        self,
        query_NxHxTxK: Array,
        position_T: Array,
        prompt: KV | None,
        mask_BxL: Array | None,
        own: KV,
    ) -> Array:
        """What the queries see of the prompts and the own tokens, NxHxTxK.

        The mask is the prompt's; without one it is that of the own tokens.
        """
        prompt_len = 0 if prompt is None else num_positions(prompt)
        own_position_S = prompt_len + jnp.arange(num_positions(own))

        def attend(query_NxHxTxK: Array, position_T: Array) -> Array:
            num_rows, kv_heads, head_size = len(own.key), *own.key.shape[1::2]
            query_NxJxQxK = query_NxHxTxK.reshape(num_rows, kv_heads, -1, head_size)
            query_NxJxQxK = query_NxJxQxK * head_size**-0.5
            own_mask_BxL = mask_BxL if prompt is None else None
            scores_NxJxQxS = self._own_scores(
                query_NxJxQxK, own.key, position_T, own_position_S, own_mask_BxL
            )
            if prompt is None:
                weights_NxJxQxS = jax.nn.softmax(scores_NxJxQxS, -1)
                out_NxJxQxK = weights_NxJxQxS.astype(own.key.dtype) @ own.value
            else:
                shape = (len(prompt.key), -1, *query_NxJxQxK.shape[1:])
                query_BxGxJxQxK = query_NxJxQxK.reshape(shape)
                prompt_scores = self._prompt_scores(
                    query_BxGxJxQxK, prompt.key, position_T, mask_BxL
                )
                out_NxJxQxK = _mixed(
                    prompt_scores, scores_NxJxQxS, prompt.value, own.value
                )
            return out_NxJxQxK.reshape(query_NxHxTxK.shape)

        num_scores = query_NxHxTxK.size // query_NxHxTxK.shape[-1]
        num_scores *= prompt_len + len(own_position_S)
        return in_pieces_of_queries(
            attend, query_NxHxTxK, position_T, -(-num_scores // MAX_SCORES)
        )

    def _project(self, x_BxGxTxD: Array, position_T: Array) -> tuple[Array, KV]:
        """Queries NxHxTxK and the new keys and values, rotated where positions are."""
        num_rows, num_tokens = (
            x_BxGxTxD.shape[0] * x_BxGxTxD.shape[1],
            x_BxGxTxD.shape[2],
        )

        def rows(heads: nn.Module) -> Array:
            out_BxGxTxHxK = heads(x_BxGxTxD)
            shape = (num_rows, num_tokens, *out_BxGxTxHxK.shape[3:])
            return out_BxGxTxHxK.reshape(shape).swapaxes(1, 2)

        query_NxHxTxK, own = rows(self.query), KV(rows(self.key), rows(self.value))
        if self.cfg.qk_norm:
            query_NxHxTxK = self.query_norm(query_NxHxTxK)
            own = own._replace(key=self.key_norm(own.key))
        if self.cfg.positions == "rotary":
            frequency_K = rotary_frequencies(self.cfg)
            query_NxHxTxK = rotary(query_NxHxTxK, position_T, frequency_K)
            own = own._replace(key=rotary(own.key, position_T, frequency_K))
        return query_NxHxTxK, own

    def _own_scores(
        self,
        query_NxJxQxK: Array,
        key_NxJxSxK: Array,
        position_T: Array,
        own_position_S: Array,
        mask_NxS: Array | None,
    ) -> Array:
        """Scores of own positions, NxJxQxS float32; -inf where they are not visible."""
        scores_NxJxQxS = kernels.scores(query_NxJxQxK, key_NxJxSxK)
        scores_NxJxQxS = scores_NxJxQxS.astype(jnp.float32)
        visible_1x1xQxS = self._visible(position_T, own_position_S)
        if mask_NxS is not None:  # a padded position sees itself: no row is empty
            is_self_QxS = self._by_query(position_T[:, None] == own_position_S[None])
            is_token = mask_NxS[:, None, None] > 0
            visible_1x1xQxS = visible_1x1xQxS & (is_token | is_self_QxS)
        return jnp.where(visible_1x1xQxS, scores_NxJxQxS, -jnp.inf)

    def _prompt_scores(
        self,
        query_BxGxJxQxK: Array,
        key_BxJxLxK: Array,
        position_T: Array,
        mask_BxL: Array | None,
    ) -> Array:
        """Scores of the shared prompt, BxGxJxQxL float32."""
        scores = jnp.einsum("bgjqk,bjlk->bgjql", query_BxGxJxQxK, key_BxJxLxK)
        scores_BxGxJxQxL = scores.astype(jnp.float32)
        if self.cfg.sliding_window:
            visible = self._visible(position_T, jnp.arange(key_BxJxLxK.shape[2]))
            scores_BxGxJxQxL = jnp.where(visible[None], scores_BxGxJxQxL, -jnp.inf)
        if mask_BxL is not None:
            is_token = mask_BxL[:, None, None, None] > 0
            scores_BxGxJxQxL = jnp.where(is_token, scores_BxGxJxQxL, -jnp.inf)
        return scores_BxGxJxQxL

    def _visible(self, query_position_T: Array, key_position_S: Array) -> Array:
        """Which keys the queries of a key-value head see, 1x1xQxS."""
        distance = query_position_T[:, None] - key_position_S[None, :]
        visible = distance >= 0
        if self.cfg.sliding_window:
            visible &= distance < self.cfg.sliding_window
        return self._by_query(visible)

    def _by_query(self, of_position_TxS: Array) -> Array:
        """The same for the queries of all heads that share keys, 1x1xQxS."""
        num_groups = self.cfg.num_heads // self.cfg.num_kv_heads
        return jnp.tile(of_position_TxS, (num_groups, 1))[None, None]


def _behind(prompt: KV, mask_NxL: Array | None, own: KV) -> tuple[KV, Array | None]:
    """Prompts with their responses behind them, row by row, and the mask of both."""
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts, 2), prompt, own)
    if mask_NxL is None:
        return both, None
    pad = ((0, 0), (0, num_positions(own)))
    return both, jnp.pad(mask_NxL, pad, constant_values=1.0)


def in_pieces_of_queries(
    attend: Callable[[Array, Array], Array],
    query_NxHxTxK: Array,
    position_T: Array,
    num_pieces: int,
) -> Array:
    """attend(queries, their positions), NxHxTxK, piece by piece along T.

    The scores of all queries then never exist at once: a gradient repeats them.
    """
    if num_pieces == 1:
        return attend(query_NxHxTxK, position_T)
    num_tokens = len(position_T)
    size = -(-num_tokens // min(num_pieces, num_tokens))
    pad = -num_tokens % size
    query_NxHxTxK = jnp.pad(query_NxHxTxK, ((0, 0), (0, 0), (0, pad), (0, 0)))
    position_T = jnp.pad(position_T, (0, pad), mode="edge")
    shape = query_NxHxTxK.shape
    query = query_NxHxTxK.reshape(*shape[:2], -1, size, shape[-1])
    pieces = (jnp.moveaxis(query, 2, 0), position_T.reshape(-1, size))
    out = jax.lax.map(jax.checkpoint(lambda piece: attend(*piece)), pieces)
    return jnp.moveaxis(out, 0, 2).reshape(shape)[:, :, :num_tokens]


def _mixed(
    prompt_scores_BxGxJxQxL: Array,
    own_scores_NxJxQxS: Array,
    prompt_value_BxJxLxK: Array,
    own_value_NxJxSxK: Array,
) -> Array:
    """One softmax over prompt and own positions, and the mean of their values."""
    shape, dtype = prompt_scores_BxGxJxQxL.shape, own_value_NxJxSxK.dtype
    prompt_len = shape[-1]
    prompt_scores_NxJxQxL = prompt_scores_BxGxJxQxL.reshape(-1, *shape[2:])
    scores = jnp.concatenate([prompt_scores_NxJxQxL, own_scores_NxJxQxS], -1)
    weights = jax.nn.softmax(scores, -1).astype(dtype)
    out_NxJxQxK = weights[..., prompt_len:] @ own_value_NxJxSxK
    weights_BxGxJxQxL = weights[..., :prompt_len].reshape(shape)
    out = jnp.einsum("bgjql,bjlk->bgjqk", weights_BxGxJxQxL, prompt_value_BxJxLxK)
    return out_NxJxQxK + out.reshape(out_NxJxQxK.shape)
