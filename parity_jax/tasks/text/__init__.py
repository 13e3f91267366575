"""Text: rows, tokenizers, templates and verifiers behind one task."""

from parity_jax.tasks.text.host import callback_error, reward_error
from parity_jax.tasks.text.pool import ProcessPool, RewardError
from parity_jax.tasks.text.rows import Row, Splits
from parity_jax.tasks.text.sources import (
    FileSource,
    GsmSymbolicSource,
    SourceConfig,
    WordedSource,
)
from parity_jax.tasks.text.task import Text, TextConfig
from parity_jax.tasks.text.templates import TemplateConfig, marked, unmarked
from parity_jax.tasks.text.tokenizer import TokenizerConfig

__all__ = [
    "FileSource",
    "GsmSymbolicSource",
    "ProcessPool",
    "RewardError",
    "Row",
    "SourceConfig",
    "Splits",
    "TemplateConfig",
    "Text",
    "TextConfig",
    "TokenizerConfig",
    "WordedSource",
    "callback_error",
    "marked",
    "reward_error",
    "unmarked",
]
