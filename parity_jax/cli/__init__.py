"""The command `parity-jax` and what it can do."""

NO_HELP = "the help is in docstrings, which PYTHONOPTIMIZE=2 leaves out"
IS_EMPTY = "is empty: leave it out, or give it a value"
