"""Models as Hugging Face has them: config, weights and tokenizer, both ways."""

from parity_jax.models.huggingface.config import (
    EXTRA,
    FAMILIES,
    end_id,
    family_of,
    for_task,
    from_hf_config,
    to_hf_config,
)
from parity_jax.models.huggingface.folder import (
    MAX_BYTES,
    TOKENIZER,
    FolderError,
    HfFolder,
    copy_tokenizer,
    is_hf_folder,
    write_weights,
)
from parity_jax.models.huggingface.tokenizer import to_tokenizer
from parity_jax.models.huggingface.weights import load, to_state_dict

__all__ = [
    "EXTRA",
    "FAMILIES",
    "MAX_BYTES",
    "TOKENIZER",
    "FolderError",
    "HfFolder",
    "copy_tokenizer",
    "end_id",
    "family_of",
    "for_task",
    "from_hf_config",
    "is_hf_folder",
    "load",
    "to_hf_config",
    "to_state_dict",
    "to_tokenizer",
    "write_weights",
]
