"""The command `parity-jax` and what it can do."""
