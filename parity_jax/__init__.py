"""How reinforcement learning after next-token prediction makes models learn."""

__version__ = "0.2.0"
