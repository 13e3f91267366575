"""How reinforcement learning after next-token prediction makes models learn."""
