"""What is learned: one file a task, its config beside it."""

from parity_jax.tasks.chains import Chains, ChainsConfig
from parity_jax.tasks.multiplication import Multiplication, MultiplicationConfig
from parity_jax.tasks.parity import Parity, ParityConfig
from parity_jax.tasks.task import (
    Diagnostics,
    Reward,
    Solution,
    Task,
    TaskConfig,
    vocabulary,
)

__all__ = [
    "Chains",
    "ChainsConfig",
    "Diagnostics",
    "Multiplication",
    "MultiplicationConfig",
    "Parity",
    "ParityConfig",
    "Reward",
    "Solution",
    "Task",
    "TaskConfig",
    "vocabulary",
]
