"""Settings that make JAX strict, before any test starts its backend."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny models: compiling well costs more than running well (children inherit it).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax

jax.config.update("jax_num_cpu_devices", 2)  # members are sharded in test_population
jax.devices()  # the backend starts here: no command under test says how many
jax.config.update("jax_numpy_rank_promotion", "raise")
