"""Tasks and models: what decides shapes."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from parity_jax.config.checks import require, require_positive


@dataclass(frozen=True)
class ParityConfig:
    """Parity of num_bits bits."""

    kind: ClassVar[str] = "parity"
    num_bits: int = 16  # d
    leap: int = 1  # k: a leap chain shows every k-th running parity, and the last

    def __post_init__(self) -> None:
        require(self.num_bits >= 2, "num_bits", self.num_bits, "must be at least 2")
        inside = 1 <= self.leap <= self.num_bits
        require(inside, "leap", self.leap, f"must be in [1, {self.num_bits}]")


@dataclass(frozen=True)
class MultiplicationConfig:
    """Product of two numbers of num_digits digits."""

    kind: ClassVar[str] = "multiplication"
    num_digits: int = 4  # n

    def __post_init__(self) -> None:
        inside = 2 <= self.num_digits <= 9
        require(inside, "num_digits", self.num_digits, "must be in [2, 9]")


TaskConfig = ParityConfig | MultiplicationConfig


@dataclass(frozen=True)
class TransformerConfig:
    """Decoder-only transformer; the defaults are the GPT-2 family at width 128."""

    kind: ClassVar[str] = "transformer"
    depth: int = 2
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 4  # fewer than num_heads: grouped-query attention
    mlp_width: int = 512
    positions: Literal["learned", "rotary"] = "learned"
    norm: Literal["layer", "rms"] = "layer"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    bias: bool = True
    tie_embedding: bool = True
    init_std: float = 0.088  # of weights; residual ones are divided by sqrt(2 depth)
    sliding_window: int = 0  # 0: every earlier position is visible
    dtype: Literal["float32", "bfloat16"] = "float32"  # of compute; params are float32

    def __post_init__(self) -> None:
        require_positive(
            self, "depth", "width", "num_heads", "num_kv_heads", "mlp_width"
        )
        heads = self.num_heads
        divides = self.width % heads == 0
        require(divides, "num_heads", heads, f"must divide width={self.width}")
        divides = heads % self.num_kv_heads == 0
        allowed = f"must divide num_heads={heads}"
        require(divides, "num_kv_heads", self.num_kv_heads, allowed)
        even = self.positions == "learned" or (self.width // heads) % 2 == 0
        allowed = f"head size {self.width / heads:g} must be even for rotary positions"
        require(even, "num_heads", heads, allowed)
        allowed = "must be 0 (off) or positive"
        require(
            self.sliding_window >= 0, "sliding_window", self.sliding_window, allowed
        )


def gpt2(depth: int = 2, width: int = 128, **overrides: Any) -> TransformerConfig:
    """GPT-2 family: learned positions, LayerNorm, GELU, biases, tied embedding.

    The paper uses depth 2, 4, 8 and width 128, 256; heads of size 32 are ours, and so
    is init_std = 1 / sqrt(width): GPT-2's 0.02, for width 768, learns slower here.
    """
    heads = width // 32
    preset: dict[str, Any] = dict(
        depth=depth,
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        mlp_width=4 * width,
        init_std=width**-0.5,
    )
    return TransformerConfig(**preset | overrides)


def mistral(depth: int = 2, width: int = 128, **overrides: Any) -> TransformerConfig:
    """Mistral family: rotary, RMSNorm, SwiGLU, grouped-query heads, no biases.

    The paper uses depth 2, 4, 8 and width 128, 256; heads of size 32, two query heads
    to one key-value head and an MLP of 3.5 widths (as in Mistral 7B) are ours.
    """
    heads = width // 32
    preset: dict[str, Any] = dict(
        depth=depth,
        width=width,
        num_heads=heads,
        num_kv_heads=heads // 2,
        mlp_width=7 * width // 2,
        init_std=width**-0.5,
        positions="rotary",
        norm="rms",
        mlp="swiglu",
        bias=False,
        tie_embedding=False,
    )
    return TransformerConfig(**preset | overrides)


@dataclass(frozen=True)
class LinearConfig:
    """The chain of linear predictors of the paper's theory; it has no sizes."""

    kind: ClassVar[str] = "linear"
