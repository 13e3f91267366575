"""Models: pure functions behind the `Model` contract."""

from parity_jax.config import LinearConfig, TransformerConfig
from parity_jax.models.linear import make_linear
from parity_jax.models.model import Model, forced_logits, response_logits
from parity_jax.models.transformer import make_transformer
from parity_jax.types import Task

__all__ = ["Model", "forced_logits", "make_model", "response_logits"]


def make_model(cfg: TransformerConfig | LinearConfig, task: Task) -> Model:
    """The model of a config for a task."""
    if isinstance(cfg, LinearConfig):
        return make_linear(task)
    """The model of a config for the vocabulary and lengths of a task."""
    return make_transformer(
        cfg, task.vocab_size, task.prompt_len, task.prompt_len + task.response_len
    )
