"""Models: pure functions behind the `Model` contract, a config beside each."""

from parity_jax.models.linear import LinearConfig
from parity_jax.models.model import (
    Model,
    ModelConfig,
    forced_logits,
    forced_scores,
    response_logits,
)
from parity_jax.models.recurrent import RecurrentConfig
from parity_jax.models.transformer import (
    RopeScaling,
    TransformerConfig,
    gpt2,
    llama,
    mistral,
    qwen,
)

__all__ = [
    "LinearConfig",
    "Model",
    "ModelConfig",
    "RecurrentConfig",
    "RopeScaling",
    "TransformerConfig",
    "forced_logits",
    "forced_scores",
    "gpt2",
    "llama",
    "mistral",
    "qwen",
    "response_logits",
]
