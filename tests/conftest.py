"""Settings that make JAX strict and tests cheap, before any starts its backend."""

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny models: compiling well costs more than running well (children inherit it).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# Nobody reads in programs which line of Python an instruction is of.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# A program that is as it was is not compiled again, by no worker, child or later
# session; `pytest --cache-clear` forgets them all.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(__file__).parents[1] / ".pytest_cache/d/programs"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

# Traced programs are many long-lived objects, which are looked through less often.
gc.set_threshold(50_000, 20, 50)

jax.config.update("jax_num_cpu_devices", 2)  # members are sharded in test_population
jax.devices()  # the backend starts here: no command under test says how many
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests of these take long and share nothing: each is for the worker that is free. Those
# of another file begin earlier, all with one worker, which makes their fixtures once.
ALONE = ("test_mesh", "test_hosts", "test_kill", "test_documentation")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what `pytest -n 3 --dist loadgroup` keeps together."""
    items.sort(key=lambda item: (*ALONE, item.path.stem).index(item.path.stem))
    for item in items:
        if item.path.stem not in ALONE:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True)
def experiments_are_forgotten():
    """One that a test imports stands in the way of another of its name."""
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        if "/experiments/" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
