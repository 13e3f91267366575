"""Decoder-only transformer, GPT-2 and Mistral families from one module.

A sequence is a prompt and a response. The prompt is run once; its keys and values are
then shared by the G responses of that prompt, in training and in decoding alike.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.config import require, require_finite, require_positive
from parity_jax.models.kernels import dot_general
from parity_jax.models.model import Model, ModelConfig
from parity_jax.tasks.task import Task
from parity_jax.types import Key, Params, Prompt


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """Decoder-only transformer; the defaults are the GPT-2 family at width 128."""

    kind: ClassVar[str] = "transformer"
    depth: int = 2
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 4  # fewer than num_heads: grouped-query attention
    mlp_width: int = 0  # 0: 4 widths, or 7/2 of a SwiGLU (as in Mistral 7B)
    positions: Literal["learned", "rotary"] = "learned"
    norm: Literal["layer", "rms"] = "layer"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    bias: bool = True
    tie_embedding: bool = True
    # of weights; residual ones are divided by sqrt(2 depth). 0: 1 / sqrt(width), ours:
    # GPT-2's 0.02, for width 768, learns slower here
    init_std: float = 0.0
    sliding_window: int = 0  # 0: every earlier position is visible
    dtype: Literal["float32", "bfloat16"] = "float32"  # of compute; params are float32

    def __post_init__(self) -> None:
        require_positive(self, "depth", "width", "num_heads", "num_kv_heads")
        heads = self.num_heads
        divides = self.width % heads == 0
        require(divides, "num_heads", heads, f"must divide width={self.width}")
        divides = heads % self.num_kv_heads == 0
        allowed = f"must divide num_heads={heads}"
        require(divides, "num_kv_heads", self.num_kv_heads, allowed)
        even = self.positions == "learned" or self.head_size % 2 == 0
        allowed = f"head size {self.head_size} must be even for rotary positions"
        require(even, "num_heads", heads, allowed)
        for name, zero in (
            ("mlp_width", "from the width"),
            ("sliding_window", "off"),
        ):
            value = getattr(self, name)
            require(value >= 0, name, value, f"must be 0 ({zero}) or positive")
        require_finite(self, "init_std")

    @property
    def head_size(self) -> int:
        return self.width // self.num_heads

    def resolved(self) -> "TransformerConfig":
        """With the MLP's width and the initial std that follow from the width."""
        by_width = 7 * self.width // 2 if self.mlp == "swiglu" else 4 * self.width
        return dataclasses.replace(
            self,
            mlp_width=self.mlp_width or by_width,
            init_std=self.init_std or self.width**-0.5,
        )

    def make(self, task: Task) -> Model:
        max_len = task.prompt_len + task.format.max_len
        return make_transformer(self.resolved(), task.vocab_size, max_len)


def gpt2(depth: int = 2, width: int = 128, **overrides: Any) -> TransformerConfig:
    """GPT-2 family: learned positions, LayerNorm, GELU, biases, tied embedding.

    The paper uses depth 2, 4, 8 and width 128, 256; heads of size 32 are ours.
    """
    heads = {"num_heads": width // 32, "num_kv_heads": width // 32}
    return TransformerConfig(**dict(depth=depth, width=width) | heads | overrides)


def mistral(depth: int = 2, width: int = 128, **overrides: Any) -> TransformerConfig:
    """Mistral family: rotary, RMSNorm, SwiGLU, grouped-query heads, no biases.

    The paper uses depth 2, 4, 8 and width 128, 256; heads of size 32 and two query
    heads to one key-value head are ours.
    """
    preset: dict[str, Any] = dict(
        depth=depth,
        width=width,
        num_heads=width // 32,
        num_kv_heads=width // 64,
        positions="rotary",
        norm="rms",
        mlp="swiglu",
        bias=False,
        tie_embedding=False,
    )
    return TransformerConfig(**preset | overrides)


class KV(NamedTuple):
    """Keys and values of one layer, NxJxLxK: N = B G rows, J key-value heads.

    In this order a decoding step writes and reads its cache as it lies.
    """

    key: Array
    value: Array


Layers = tuple[KV, ...]


class Context(NamedTuple):
    """What the responses need of their prompts."""

    layers: Layers
    mask: Array | None  # BxL float, 1 on tokens; None: no prompt is padded


def rotary(x_NxHxTxK: Array, position_T: Array, base: float = 10_000.0) -> Array:
    """Rotate pairs (k, k + K/2) of each head by position * base^(-2k/K)."""
    half = x_NxHxTxK.shape[-1] // 2
    frequency_K = base ** (-jnp.arange(half) / half)
    angle_TxK = position_T[:, None].astype(jnp.float32) * frequency_K[None]
    cos = jnp.cos(angle_TxK).astype(x_NxHxTxK.dtype)[None, None]
    sin = jnp.sin(angle_TxK).astype(x_NxHxTxK.dtype)[None, None]
    left, right = jnp.split(x_NxHxTxK, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def dense_options(cfg: TransformerConfig, std: float) -> dict[str, Any]:
    """What the dense layers of a block have in common."""
    return {
        "use_bias": cfg.bias,
        "dtype": jnp.dtype(cfg.dtype),
        "kernel_init": nn.initializers.normal(std),
        "dot_general": dot_general(),
    }


def residual_std(cfg: TransformerConfig) -> float:
    """Initial std of what is added to the residual stream, 2 depth times (GPT-2)."""
    return cfg.init_std / (2 * cfg.depth) ** 0.5


class Attention(nn.Module):
    """Causal attention of T new positions to the prompt and to their own response.

    Rows are N = B G, the queries of a key-value head Q = (heads / key-value heads) T.
    """

    cfg: TransformerConfig

    def setup(self) -> None:
        cfg = self.cfg

        def heads(num: int) -> nn.Module:
            options = dense_options(cfg, cfg.init_std)
            return nn.DenseGeneral((num, cfg.head_size), **options)

        self.query, self.key = heads(cfg.num_heads), heads(cfg.num_kv_heads)
        self.value = heads(cfg.num_kv_heads)
        options = dense_options(cfg, residual_std(cfg))
        self.out = nn.DenseGeneral(cfg.width, axis=(-2, -1), **options)

    def __call__(
        self,
        x_BxGxTxD: Array,
        position_T: Array,
        prompt: KV | None,
        prompt_mask_BxL: Array | None,
        cache: KV | None,
        index: Array | int,
    ) -> tuple[Array, KV]:
        """The output, BxGxTxD, and keys and values of all own positions so far.

        Without a `prompt` the own tokens are the prompt: the mask is theirs.
        """
        batch_size, num_generations, num_tokens, _ = x_BxGxTxD.shape
        query_NxHxTxK, own = self._project(x_BxGxTxD, position_T)
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
        num_rows, kv_heads, head_size = len(own.key), *own.key.shape[1::2]
        query_NxJxQxK = query_NxHxTxK.reshape(num_rows, kv_heads, -1, head_size)
        query_NxJxQxK = query_NxJxQxK * head_size**-0.5
        own_mask_BxL = prompt_mask_BxL if prompt is None else None
        scores_NxJxQxS = self._own_scores(
            query_NxJxQxK, own.key, position_T, own_position_S, own_mask_BxL
        )
        if prompt is None:
            weights_NxJxQxS = jax.nn.softmax(scores_NxJxQxS, -1).astype(own.key.dtype)
            out_NxJxQxK = weights_NxJxQxS @ own.value
        else:
            shape = (batch_size, num_generations, *query_NxJxQxK.shape[1:])
            prompt_scores = self._prompt_scores(
                query_NxJxQxK.reshape(shape), prompt.key, position_T, prompt_mask_BxL
            )
            out_NxJxQxK = _mixed(prompt_scores, scores_NxJxQxS, prompt.value, own.value)
        shape = (num_rows, self.cfg.num_heads, num_tokens, head_size)
        out_NxTxHxK = out_NxJxQxK.reshape(shape).swapaxes(1, 2)
        out_BxGxTxHxK = out_NxTxHxK.reshape(*x_BxGxTxD.shape[:3], -1, head_size)
        return self.out(out_BxGxTxHxK), own

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
        if self.cfg.positions == "rotary":
            query_NxHxTxK = rotary(query_NxHxTxK, position_T)
            own = own._replace(key=rotary(own.key, position_T))
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
        scores_NxJxSxQ = jnp.einsum("njsk,njqk->njsq", key_NxJxSxK, query_NxJxQxK)
        scores_NxJxQxS = scores_NxJxSxQ.swapaxes(2, 3).astype(jnp.float32)
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

    def __call__(self, x: Array, *place: Any) -> tuple[Array, KV]:
        """The arguments behind x are those of `Attention`."""
        out, own = self.attention(self.attention_norm(x), *place)
        x = x + out
        return x + self.mlp(self.mlp_norm(x)), own


class Transformer(nn.Module):
    """Token and position embedding, blocks, final norm and unembedding."""

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
        return self.logits(self.final_norm(x))[:, 0]

    def prompt_pass(self, prompt: Prompt) -> tuple[Array, Context]:
        """hidden_BxD after the prompt, and its keys and values."""
        mask_BxL = None if prompt.mask is None else prompt.mask.astype(jnp.float32)
        position_T = jnp.arange(prompt.token.shape[1])
        x, layers = self._run(prompt.token[:, None], position_T, None, mask_BxL)
        return self.final_norm(x[:, 0, -1]), Context(layers, mask_BxL)

    def response_pass(self, token_BxGxT: Array, prompt: Context) -> Array:
        """hidden_BxGxTxD after each response token."""
        prompt_len = prompt.layers[0].key.shape[2]
        position_T = prompt_len + jnp.arange(token_BxGxT.shape[2])
        x, _ = self._run(token_BxGxT, position_T, prompt.layers, prompt.mask)
        return self.final_norm(x)

    def decode_step(
        self, token_BxG: Array, index: Array, prompt: Context, cache: Layers
    ) -> tuple[Array, Layers]:
        """hidden_BxGxD after response token `index`, and the cache with it."""
        position_T = prompt.layers[0].key.shape[2] + index + jnp.arange(1)
        x, cache = self._run(
            token_BxG[..., None], position_T, prompt.layers, prompt.mask, cache, index
        )
        return self.final_norm(x)[:, :, 0], cache

    def logits(self, hidden: Array) -> Array:
        """float32 logits of hidden states that went through the final norm."""
        hidden = hidden.astype(jnp.float32)
        if self.cfg.tie_embedding:
            return hidden @ self.embed.embedding.T
        return self.unembed(hidden)

    def _run(
        self,
        token_BxGxT: Array,
        position_T: Array,
        prompt: Layers | None = None,
        prompt_mask_BxL: Array | None = None,
        cache: Layers | None = None,
        index: Array | int = 0,
    ) -> tuple[Array, Layers]:
        x = self.embed(token_BxGxT)
        if self.cfg.positions == "learned":
            if prompt_mask_BxL is not None:
                raise ValueError("learned positions: prompts must be of one length")
            x = x + self.position_embed(position_T)[None, None]
        none = [None] * self.cfg.depth
        layers = []
        for block, prompt_n, cache_n in zip(
            self.blocks, prompt or none, cache or none, strict=True
        ):
            x, own = block(x, position_T, prompt_n, prompt_mask_BxL, cache_n, index)
            layers.append(own)
        return x, tuple(layers)


def make_transformer(cfg: TransformerConfig, vocab_size: int, max_len: int) -> Model:
    """The transformer as pure functions; sequences have at most max_len tokens."""
    module = Transformer(cfg, vocab_size, max_len)

    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def method(name: str) -> Callable[..., Any]:
        def call(params: Params, *args: Any) -> Any:
            return module.apply({"params": params}, *args, method=name)

        return call

    def empty_cache(prompt: Context, num_generations: int, response_len: int) -> Layers:
        def empty(x: Array) -> Array:
            batch_size, num_heads, _, head_size = x.shape
            shape = (batch_size * num_generations, num_heads, response_len, head_size)
            return jnp.zeros(shape, x.dtype)

        return jax.tree.map(empty, prompt.layers)

    return Model(
        init=init,
        prompt_pass=method("prompt_pass"),
        response_pass=method("response_pass"),
        empty_cache=empty_cache,
        decode_step=method("decode_step"),
        unembed=method("logits"),
    )
