"""Decoder-only transformer: GPT-2, Mistral, Llama and Qwen families from one module.

A sequence is a prompt and a response. The prompt is run once; its keys and values are
then shared by the G responses of that prompt, in training and in decoding alike.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.config import require, require_finite, require_positive
from parity_jax.models.kernels import dot_general
from parity_jax.models.model import Model, ModelConfig
from parity_jax.tasks.task import Task, TaskConfig
from parity_jax.types import Key, Params, Prompt

# So many attention scores of a block exist at once; more queries come in pieces.
MAX_SCORES = 2**28


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies as Llama 3.1 changes them for sequences beyond the original.

    A frequency whose wave is longer than original_len / low_freq_factor positions is
    divided by factor, one that is shorter than original_len / high_freq_factor stays,
    and between them the two are mixed. The defaults are Llama 3.1's; 3.2 has factor 32.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_len: int = 8192

    def __post_init__(self) -> None:
        require_positive(self, "original_len")
        require_finite(self, "factor", low=1.0)
        require_finite(self, "low_freq_factor")
        low, high = self.low_freq_factor, self.high_freq_factor
        allowed = f"must be above low_freq_factor={low:g}"
        require(low < high < math.inf, "high_freq_factor", high, allowed)


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """Decoder-only transformer; the defaults are the GPT-2 family at width 128.

    Parameters are float32, also where compute is bfloat16: they are what the optimizer
    adds to, and a copy of theirs in bfloat16 would only add to their memory.
    """

    kind: ClassVar[str] = "transformer"
    depth: int = 2
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 4  # fewer than num_heads: grouped-query attention
    head_size: int = 0  # 0: width / num_heads
    mlp_width: int = 0  # 0: 4 widths, or 7/2 of a SwiGLU (as in Mistral 7B)
    vocab_size: int = 0  # rows of the embedding; 0: as many as the task has tokens
    positions: Literal["learned", "rotary"] = "learned"
    num_positions: int = 0  # learned ones; 0: as many as the task needs
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    mlp: Literal["gelu", "swiglu"] = "gelu"
    bias: bool = True  # of all dense layers
    qkv_bias: bool = False  # of query, key and value where the others have none
    qk_norm: bool = False  # RMSNorm of each head's queries and keys, before rotation
    tie_embedding: bool = True
    # of weights; residual ones are divided by sqrt(2 depth). 0: 1 / sqrt(width), ours:
    # GPT-2's 0.02, for width 768, learns slower here
    init_std: float = 0.0
    sliding_window: int = 0  # 0: every earlier position is visible
    dtype: Literal["float32", "bfloat16"] = "float32"  # of compute; params are float32
    scan: bool = False  # blocks are stacked and compiled once, whatever the depth
    remat: bool = False  # a block's activations are computed again for its gradient

    def __post_init__(self) -> None:
        require_positive(self, "depth", "width", "num_heads", "num_kv_heads")
        heads = self.num_heads
        for name, zero in (
            ("head_size", "width / num_heads"),
            ("mlp_width", "from the width"),
            ("vocab_size", "the task's"),
            ("num_positions", "the task's"),
            ("sliding_window", "off"),
        ):
            value = getattr(self, name)
            require(value >= 0, name, value, f"must be 0 ({zero}) or positive")
        divides = self.head_size > 0 or self.width % heads == 0
        require(divides, "num_heads", heads, f"must divide width={self.width}")
        divides = heads % self.num_kv_heads == 0
        allowed = f"must divide num_heads={heads}"
        require(divides, "num_kv_heads", self.num_kv_heads, allowed)
        head_size, is_rotary = self._head_size, self.positions == "rotary"
        allowed = f"head size {head_size} must be even for rotary positions"
        require(not is_rotary or head_size % 2 == 0, "num_heads", heads, allowed)
        scaling = self.rope_scaling
        allowed = "must be 0 with positions='rotary'"
        num = self.num_positions
        require(not is_rotary or num == 0, "num_positions", num, allowed)
        allowed = "must be null with positions='learned'"
        require(is_rotary or scaling is None, "rope_scaling", scaling, allowed)
        allowed = "must be false with bias=true, which has it"
        require(not (self.bias and self.qkv_bias), "qkv_bias", True, allowed)
        require_finite(self, "init_std")
        allowed = "must be false without scan=true"
        require(self.scan or not self.remat, "remat", self.remat, allowed)
        require_finite(self, "rope_theta", low=1.0)
        require_finite(self, "norm_eps")

    @property
    def _head_size(self) -> int:
        return self.head_size or self.width // self.num_heads

    def resolved(self) -> "TransformerConfig":
        """With the sizes and the initial std that follow from the width."""
        by_width = 7 * self.width // 2 if self.mlp == "swiglu" else 4 * self.width
        return dataclasses.replace(
            self,
            head_size=self._head_size,
            mlp_width=self.mlp_width or by_width,
            init_std=self.init_std or self.width**-0.5,
        )

    def check(self, task: TaskConfig) -> None:
        made = task.make()
        for name, needed in (
            ("vocab_size", made.vocab_size),
            ("num_positions", made.prompt_len + made.format.max_len),
        ):
            size, allowed = getattr(self, name), f"must be 0 or at least {needed}"
            enough = size == 0 or size >= needed
            require(enough, f"model.{name}", size, f"{allowed}, which the task needs")

    def make(self, task: Task) -> Model:
        max_len = self.num_positions or task.prompt_len + task.format.max_len
        vocab_size = self.vocab_size or task.vocab_size
        return make_transformer(self.resolved(), vocab_size, max_len)


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


def llama(depth: int = 2, width: int = 128, **overrides: Any) -> TransformerConfig:
    """Llama family: as Mistral, with SwiGLU of 8/3 widths, theta 500,000 (Llama 3).

    Llama 3.1 and 3.2 add `rope_scaling`, 3.2 1B and 3B tie the embedding. Heads as in
    `mistral`.
    """
    preset: dict[str, Any] = dict(mlp_width=8 * width // 3, rope_theta=500_000.0)
    return mistral(depth, width, **preset | overrides)


def qwen(depth: int = 2, width: int = 128, **overrides: Any) -> TransformerConfig:
    """Qwen family: as Llama; Qwen 2 has biases of query, key and value (here), Qwen 3
    (`qkv_bias=False, qk_norm=True`) norms of queries and keys and a head size of 128.
    """
    preset: dict[str, Any] = dict(rope_theta=1e6, norm_eps=1e-6, qkv_bias=True)
    return llama(depth, width, **preset | overrides)


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


def rotary_frequencies(cfg: TransformerConfig) -> Array:
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
            options["use_bias"] = cfg.bias or cfg.qkv_bias
            return nn.DenseGeneral((num, cfg.head_size), **options)

        self.query, self.key = heads(cfg.num_heads), heads(cfg.num_kv_heads)
        self.value = heads(cfg.num_kv_heads)
        if cfg.qk_norm:
            self.query_norm, self.key_norm = _norm(cfg), _norm(cfg)
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
        prompt_len = 0 if prompt is None else num_positions(prompt)
        own_position_S = prompt_len + jnp.arange(num_positions(own))

        def attend(query_NxHxTxK: Array, position_T: Array) -> Array:
            num_rows, kv_heads, head_size = len(own.key), *own.key.shape[1::2]
            query_NxJxQxK = query_NxHxTxK.reshape(num_rows, kv_heads, -1, head_size)
            query_NxJxQxK = query_NxJxQxK * head_size**-0.5
            own_mask_BxL = prompt_mask_BxL if prompt is None else None
            scores_NxJxQxS = self._own_scores(
                query_NxJxQxK, own.key, position_T, own_position_S, own_mask_BxL
            )
            if prompt is None:
                weights_NxJxQxS = jax.nn.softmax(scores_NxJxQxS, -1)
                out_NxJxQxK = weights_NxJxQxS.astype(own.key.dtype) @ own.value
            else:
                shape = (*x_BxGxTxD.shape[:2], *query_NxJxQxK.shape[1:])
                query_BxGxJxQxK = query_NxJxQxK.reshape(shape)
                prompt_scores = self._prompt_scores(
                    query_BxGxJxQxK, prompt.key, position_T, prompt_mask_BxL
                )
                out_NxJxQxK = _mixed(
                    prompt_scores, scores_NxJxQxS, prompt.value, own.value
                )
            return out_NxJxQxK.reshape(query_NxHxTxK.shape)

        num_scores = query_NxHxTxK.size // query_NxHxTxK.shape[-1]
        num_scores *= prompt_len + len(own_position_S)
        out_NxHxTxK = in_pieces_of_queries(
            attend, query_NxHxTxK, position_T, -(-num_scores // MAX_SCORES)
        )
        out_NxTxHxK = out_NxHxTxK.swapaxes(1, 2)
        out_BxGxTxHxK = out_NxTxHxK.reshape(
            *x_BxGxTxD.shape[:3], *out_NxTxHxK.shape[2:]
        )
        return self.out(out_BxGxTxHxK), kept

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
        return nn.RMSNorm(epsilon=cfg.norm_eps, dtype=jnp.dtype(cfg.dtype))
    return nn.LayerNorm(
        epsilon=cfg.norm_eps, dtype=jnp.dtype(cfg.dtype), use_fast_variance=False
    )


class Block(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    cfg: TransformerConfig

    def setup(self) -> None:
        self.attention_norm = _norm(self.cfg)
        self.attention = Attention(self.cfg)
        self.mlp_norm = _norm(self.cfg)
        self.mlp = Mlp(self.cfg)

    def __call__(self, x: Array, *place: Any) -> tuple[Array, Any]:
        """The arguments behind x and the second result are those of `Attention`."""
        out, kept = self.attention(self.attention_norm(x), *place)
        x = x + out
        return x + self.mlp(self.mlp_norm(x)), kept


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
        if cfg.scan:
            self.blocks = self.param("blocks", partial(stacked_blocks, cfg))
        else:
            self.blocks = [Block(cfg) for _ in range(cfg.depth)]
        self.final_norm = _norm(cfg)
        if not cfg.tie_embedding:
            self.unembed = nn.Dense(
                self.vocab_size,
                use_bias=False,
                dtype=dtype,
                kernel_init=init,
                dot_general=partial(
                    jax.lax.dot_general, preferred_element_type=jnp.float32
                ),
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
        first = num_positions(prompt.layers)
        position_T = first + jnp.arange(token_BxGxT.shape[2])
        x, _ = self._run(token_BxGxT, position_T, prompt.layers, prompt.mask)
        return self.final_norm(x)

    def decode_step(
        self, token_BxG: Array, index: Array, prompt: Context, cache: Layers
    ) -> tuple[Array, Layers]:
        """hidden_BxGxD after response token `index`, and the cache with it."""
        position_T = num_positions(prompt.layers) + index + jnp.arange(1)
        x, cache = self._run(
            token_BxG[..., None], position_T, prompt.layers, prompt.mask, cache, index
        )
        return self.final_norm(x)[:, :, 0], cache

    def logits(self, hidden: Array) -> Array:
        """float32 logits of hidden states that went through the final norm."""
        dtype = jnp.dtype(self.cfg.dtype)
        hidden = hidden.astype(dtype)
        if self.cfg.tie_embedding:
            kernel = self.embed.embedding.astype(dtype).T
            return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
        return self.unembed(hidden)

    def _run(
        self,
        token_BxGxT: Array,
        position_T: Array,
        prompt: Any = None,
        prompt_mask_BxL: Array | None = None,
        cache: Any = None,
        index: Array | int = 0,
    ) -> tuple[Array, Layers]:
        """x_BxGxTxD behind the last block; own keys and values, or the longer cache.

        prompt and cache are `Layers` or None.
        """
        x = self.embed(token_BxGxT)
        if self.cfg.positions == "learned":
            if prompt_mask_BxL is not None:
                raise ValueError("learned positions: prompts must be of one length")
            x = x + self.position_embed(position_T)[None, None]
        if self.cfg.scan:
            return self._scanned(x, position_T, prompt, prompt_mask_BxL, cache, index)
        none = [None] * self.cfg.depth
        layers = []
        for block, prompt_n, cache_n in zip(
            self.blocks, prompt or none, cache or none, strict=True
        ):
            extend = keep_all if cache_n is None else partial(_appended, cache_n, index)
            x, own = block(x, position_T, prompt_n, prompt_mask_BxL, extend)
            layers.append(own)
        return x, tuple(layers)

    def _scanned(
        self,
        x: Array,
        position_T: Array,
        prompt: Any,
        prompt_mask_BxL: Array | None,
        cache: Any,
        index: Array | int,
    ) -> tuple[Array, Any]:
        """The blocks as turns of one loop; the cache is written where it lies."""
        block = Block(self.cfg, parent=None)

        def turn(carry: tuple[Array, Any], layer: tuple) -> tuple:
            x, cache = carry
            params, prompt_n, n = layer
            at_n = partial(_appended_to_layer, cache, n, index)
            place = (position_T, prompt_n, prompt_mask_BxL)
            extend = keep_all if cache is None else at_n
            x, kept = block.apply({"params": params}, x, *place, extend)
            return ((x, None), kept) if cache is None else ((x, kept), None)

        layers = (self.blocks, _exchanged(prompt), jnp.arange(self.cfg.depth))
        turn = jax.checkpoint(turn) if self.cfg.remat else turn
        (x, cache), own = jax.lax.scan(turn, (x, cache), layers)
        return x, (_exchanged(own) if cache is None else cache)


def stacked_blocks(cfg: TransformerConfig, key: Key) -> Params:
    """Parameters of all blocks, each leaf with the depth in front."""
    x_1x1x1xD = jnp.zeros((1, 1, 1, cfg.width), jnp.dtype(cfg.dtype))

    def init(key: Key) -> Params:
        block = Block(cfg, parent=None)
        return block.init(key, x_1x1x1xD, jnp.arange(1), None, None, keep_all)["params"]

    return jax.vmap(init)(jax.random.split(key, cfg.depth))


def _appended(cache: KV, index: Array | int, new: KV) -> tuple[KV, KV]:
    """The cache of a block with new tokens from `index` on."""

    def append(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, index, 2)

    own = jax.tree.map(append, cache, new)
    return own, own


def _appended_to_layer(
    cache: KV, n: Array, index: Array | int, new: KV
) -> tuple[KV, KV]:
    """Block n of the stacked cache with new tokens from `index` on, and the whole."""

    def append(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice(old, new[:, None], (0, n, 0, index, 0))

    def layer(whole: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(whole, n, 1, keepdims=False)

    whole = jax.tree.map(append, cache, new)
    return jax.tree.map(layer, whole), whole


def _exchanged(tree: Any) -> Any:
    """Rows and blocks, the first two axes of every leaf, in the other order."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)


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
            num_rows = len(x) * num_generations
            shape = (num_rows, *x.shape[1:-2], response_len, x.shape[-1])
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
