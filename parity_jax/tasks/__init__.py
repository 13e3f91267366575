"""What is learned. A task is an object with the members of `types.Task`."""

import numpy as np

from parity_jax.config import ParityConfig, TaskConfig
from parity_jax.tasks.multiplication import Multiplication
from parity_jax.tasks.parity import Parity
from parity_jax.types import Task


def make_task(cfg: TaskConfig) -> Task:
    """The task of a config."""
    return Parity(cfg) if isinstance(cfg, ParityConfig) else Multiplication(cfg)


def vocabulary(task: Task) -> list[str]:
    """The text of every token."""
    return [task.to_text(np.array([v])).strip() for v in range(task.vocab_size)]
