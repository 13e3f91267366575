"""Models as Hugging Face has them: config, weights and tokenizer, both ways."""

from parity_jax.models.huggingface.tokenizer import to_tokenizer
from parity_jax.models.huggingface.weights import (
    EXTRA,
    end_id,
    from_hf_config,
    from_state_dict,
    to_hf_config,
    to_state_dict,
)

__all__ = [
    "EXTRA",
    "end_id",
    "from_hf_config",
    "from_state_dict",
    "to_hf_config",
    "to_state_dict",
    "to_tokenizer",
]
