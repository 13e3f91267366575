"""What is learned: one file a task, its config beside it."""

from parity_jax.tasks.chains import Chains, ChainsConfig
from parity_jax.tasks.multiplication import Multiplication, MultiplicationConfig
from parity_jax.tasks.parity import Parity, ParityConfig
from parity_jax.tasks.task import (
    Diagnostics,
    FiniteTask,
    ManyWays,
    Reward,
    Solution,
    Task,
    TaskConfig,
    num_begun,
    vocabulary,
)
from parity_jax.tasks.text import Text, TextConfig

__all__ = [
    "Chains",
    "ChainsConfig",
    "Diagnostics",
    "FiniteTask",
    "ManyWays",
    "Multiplication",
    "MultiplicationConfig",
    "Parity",
    "ParityConfig",
    "Reward",
    "Solution",
    "Task",
    "TaskConfig",
    "Text",
    "TextConfig",
    "num_begun",
    "vocabulary",
]
