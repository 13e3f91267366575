"""Decoder-only transformer: GPT-2, Mistral, Llama and Qwen families from one module.

A sequence is a prompt and a response. The prompt is run once; its keys and values are
then shared by the G responses of that prompt, in training and in decoding alike.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.config import (
    MAX_SIZE,
    require,
    require_count,
    require_default,
    require_finite,
    require_positive,
)
from parity_jax.models import kernels
from parity_jax.models.attention import (
    KV,
    Attention,
    Context,
    Layers,
    dense_options,
    keep_all,
    norm_of,
    num_positions,
    residual_std,
)
from parity_jax.models.model import (
    MAX_DEPTH,
    Model,
    ModelConfig,
    applied,
    require_one_length,
)
from parity_jax.platform import platform
from parity_jax.tasks.task import Task, TaskConfig
from parity_jax.types import Key, Params, Prompt, path_text


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
    # 0: as many as num_heads; fewer: grouped-query attention
    num_kv_heads: int = 0
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
    qk_norm: bool = False  # RMSNorm of every query and key, before any rotation
    tie_embedding: bool = True
    # of weights; residual ones are divided by sqrt(2 depth). 0: 1 / sqrt(width), ours:
    # GPT-2's 0.02, for width 768, learns slower here
    init_std: float = 0.0
    sliding_window: int = 0  # 0: every earlier position is visible
    dtype: Literal["float32", "bfloat16"] = "float32"  # of compute; params are float32
    scan: bool = False  # blocks are stacked and compiled once, whatever the depth
    remat: bool = False  # a block's activations are computed again for its gradient
    gradient_rows: int = 0  # long responses that are trained on at once; 0: automatic

    def __post_init__(self) -> None:
        require_positive(self, "depth", "width", "num_heads")
        at_most = f"must be at most {MAX_DEPTH}"
        require(self.depth <= MAX_DEPTH, "depth", self.depth, at_most)
        heads = self.num_heads
        for name, zero in (
            ("num_kv_heads", "as many as num_heads"),
            ("head_size", "width / num_heads"),
            ("mlp_width", "from the width"),
            ("vocab_size", "the task's"),
            ("num_positions", "the task's"),
            ("sliding_window", "off"),
            ("gradient_rows", "automatic"),
        ):
            require_count(self, name, zero)
        most = MAX_SIZE // 4  # of which four are the layer's
        fits = self.mlp_width > 0 or self.width <= most
        require(fits, "width", self.width, f"must be at most {most} without mlp_width")
        divides = self.head_size > 0 or self.width % heads == 0
        require(divides, "num_heads", heads, f"must divide width={self.width}")
        divides = heads % (self.num_kv_heads or heads) == 0
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
        require_default(self, is_rotary, "with positions='learned'", "rope_theta")
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
        """With the sizes and the initial std that follow from others."""
        by_width = 7 * self.width // 2 if self.mlp == "swiglu" else 4 * self.width
        return dataclasses.replace(
            self,
            num_kv_heads=self.num_kv_heads or self.num_heads,
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
        if self.positions == "learned":
            require_one_length(made, "model.positions", "learned", "must be rotary")

    def make(self, task: Task) -> Model:
        max_len = self.num_positions or task.prompt_len + task.format.max_len
        vocab_size = self.vocab_size or task.vocab_size
        return make_transformer(self.resolved(), vocab_size, max_len)


def gpt2(depth: int = 2, width: int = 128, **overrides: Any) -> TransformerConfig:
    """GPT-2 family: learned positions, LayerNorm, GELU, biases, tied embedding.

    The paper uses depth 2, 4, 8 and width 128, 256; heads of size 32 are ours.
    """
    preset = dict(depth=depth, width=width, num_heads=max(1, width // 32))
    return TransformerConfig(**preset | overrides)


def mistral(depth: int = 2, width: int = 128, **overrides: Any) -> TransformerConfig:
    """Mistral family: rotary, RMSNorm, SwiGLU, grouped-query heads, no biases.

    The paper uses depth 2, 4, 8 and width 128, 256; heads of size 32 and two query
    heads to one key-value head are ours.
    """
    preset: dict[str, Any] = dict(
        depth=depth,
        width=width,
        num_heads=max(1, width // 32),
        num_kv_heads=max(1, width // 64),
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


class Block(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    cfg: TransformerConfig

    def setup(self) -> None:
        self.attention_norm = norm_of(self.cfg)
        self.attention = Attention(self.cfg)
        self.mlp_norm = norm_of(self.cfg)
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
        if cfg.scan and self.has_variable("params", "blocks"):
            self.blocks: Any = self.get_variable("params", "blocks")
        elif cfg.scan:
            self.blocks = self.param("blocks", partial(stacked_blocks, cfg))
        else:
            self.blocks = [Block(cfg) for _ in range(cfg.depth)]
        self.final_norm = norm_of(cfg)
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
        # looked up before it is rounded: its gradient is a sum in float32
        x = kernels.lookup(self.embed.embedding, token_BxGxT)
        x = x.astype(jnp.dtype(self.cfg.dtype))
        if self.cfg.positions == "learned":
            allowed = "must be rotary: prompts are not of one length"
            is_even = prompt_mask_BxL is None
            require(is_even, "model.positions", self.cfg.positions, allowed)
            x = x + self.position_embed(position_T)[None, None]
        if self.cfg.scan and not isinstance(self.blocks, tuple):
            return self._scanned(x, position_T, prompt, prompt_mask_BxL, cache, index)
        none = [None] * self.cfg.depth
        layers = []
        for block, prompt_n, cache_n in zip(
            self._each_block(), prompt or none, cache or none, strict=True
        ):
            extend = keep_all if cache_n is None else partial(_appended, cache_n, index)
            x, own = block(x, position_T, prompt_n, prompt_mask_BxL, extend)
            layers.append(own)
        return x, tuple(layers)

    def _each_block(self) -> Sequence[Callable[..., Any]]:
        """The blocks, also those of a scanned model that were taken apart."""
        if not self.cfg.scan:
            return self.blocks
        block = Block(self.cfg, parent=None)
        return [partial(block.apply, {"params": params}) for params in self.blocks]

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
        at = [jnp.asarray(i, jnp.int32) for i in (0, n, 0, index, 0)]
        return jax.lax.dynamic_update_slice(old, new[:, None], at)

    def layer(whole: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(whole, n, 1, keepdims=False)

    whole = jax.tree.map(append, cache, new)
    return jax.tree.map(layer, whole), whole


def _exchanged(tree: Any) -> Any:
    """Rows and blocks, the first two axes of every leaf, in the other order."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)


def for_decoding(
    cfg: TransformerConfig, params: Params, context: Context
) -> tuple[Params, Context]:
    """Weights in the dtype of compute, which they have in every product anyway; on a
    GPU blocks that are stacked come one by one, where a loop copies each block's cache.
    """
    dtype = jnp.dtype(cfg.dtype)

    def cast(path: Any, x: Array) -> Array:
        return x if "norm" in path_text(path) else x.astype(dtype)

    params = jax.tree_util.tree_map_with_path(cast, params)
    if not cfg.scan or platform() != "gpu":
        return params, context
    blocks = _one_by_one(params["blocks"], 0, cfg.depth)
    layers = _one_by_one(context.layers, 1, cfg.depth)
    return {**params, "blocks": blocks}, context._replace(layers=layers)


def _one_by_one(stacked: Any, axis: int, depth: int) -> tuple[Any, ...]:
    """What is stacked along an axis of every leaf, apart."""

    def layer(n: int) -> Any:
        return jax.tree.map(lambda x: jax.lax.index_in_dim(x, n, axis, False), stacked)

    return tuple(map(layer, range(depth)))


def make_transformer(cfg: TransformerConfig, vocab_size: int, max_len: int) -> Model:
    """The transformer as pure functions; sequences have at most max_len tokens."""
    module = Transformer(cfg, vocab_size, max_len)

    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def empty_cache(prompt: Context, num_generations: int, response_len: int) -> Layers:
        def empty(x: Array) -> Array:
            num_rows = len(x) * num_generations
            shape = (num_rows, *x.shape[1:-2], response_len, x.shape[-1])
            return jnp.zeros(shape, x.dtype)

        return jax.tree.map(empty, prompt.layers)

    return Model(
        init=init,
        prompt_pass=applied(module, "prompt_pass"),
        response_pass=applied(module, "response_pass"),
        empty_cache=empty_cache,
        decode_step=applied(module, "decode_step"),
        unembed=applied(module, "logits"),
        for_decoding=partial(for_decoding, cfg),
        gradient_rows=cfg.gradient_rows,
    )
