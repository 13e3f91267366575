"""Real sizes: here compiling well pays off, unlike in the other tests."""

import os

import jax

os.environ.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
jax.config.update("jax_disable_most_optimizations", False)
