"""Jitted functions that are compiled once, and the memory that they need."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from parity_jax.types import StageState

# A GPU adds up what is scattered to one place in any order, so that two runs differ in
# their last bits; told so, XLA sorts it first, and cuDNN takes slower gradients.
FIXED_ORDER = "xla_gpu_exclude_nondeterministic_ops"


def compiler_options(platform: str) -> dict[str, bool]:
    """What XLA is told on a platform; XLA_FLAGS decides what it names."""
    is_left = platform != "gpu" or FIXED_ORDER in os.environ.get("XLA_FLAGS", "")
    return {} if is_left else {FIXED_ORDER: True}


class Program:
    """A jitted function that is compiled once, at its first call, if it fits."""

    def __init__(self, jitted: Any, devices: list[jax.Device], is_spread: bool = False):
        self._jitted, self._devices = jitted, devices
        # From a cache, programs in which the compiler put several collectives beside
        # each other may have CPU devices wait for different ones, for ever.
        self._is_cached = not (is_spread and devices[0].platform == "cpu")
        self._compiled: Any = None

    def __call__(self, *args: Any) -> Any:
        return self.compiled(*args)(*args)

    def eval_shape(self, *args: Any) -> Any:
        """Shapes of what it returns; it is traced, not compiled.

        MemoryError if one of its arrays alone is larger than a device.
        """
        traced = self.trace(*args)
        require_memory(largest_array(traced.jaxpr.jaxpr), self._devices)
        return traced.out_info

    def require_room(self, states: StageState) -> None:
        """MemoryError if states of these shapes are larger than all devices."""
        needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(states))
        require_memory(needed // len(self._devices), self._devices)

    def trace(self, *args: Any) -> Any:
        """The program before it is lowered and compiled."""
        return self._jitted.trace(*args)

    def compiled(self, *args: Any) -> Any:
        """The executable; MemoryError if it needs more than its devices have."""
        if self._compiled is None:
            with nullcontext() if self._is_cached else uncached():
                told = compiler_options(self._devices[0].platform)
                compiled = self.trace(*args).lower().compile(compiler_options=told)
            require_memory(memory_needed(compiled), self._devices)
            self._compiled = compiled
        return self._compiled


@contextmanager
def uncached() -> Iterator[None]:
    """No compiled program comes from a cache, and none goes there."""
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    jax.config.update(name, False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update(name, before)
        compilation_cache.reset_cache()


def memory_needed(compiled: Any) -> int:
    """Bytes of a device while an executable runs, its arguments included."""
    sizes = compiled.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )


def largest_array(jaxpr: Any) -> int:
    """Bytes of the largest array of a traced program, those of its loops included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        shapes = [x.aval for x in equation.outvars if hasattr(x.aval, "dtype")]
        sizes += [x.size * x.dtype.itemsize for x in shapes]
        for value in jax.tree.leaves([*equation.params.values()]):
            inner = getattr(value, "jaxpr", value)  # of a closed one
            sizes += [largest_array(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


def require_memory(needed: int, devices: list[jax.Device]) -> None:
    """MemoryError if so many bytes are more than a device has."""
    limit = memory_limit(devices)
    if needed > limit:
        told = f"{needed / 2**30:.1f} GiB needed, {limit / 2**30:.1f} GiB there"
        raise MemoryError(told)


def memory_limit(devices: list[jax.Device]) -> int:
    """Bytes of one device; CPU devices share the machine's."""
    own = jax.process_index()
    devices = [d for d in devices if d.process_index == own] or devices
    told = (devices[0].memory_stats() or {}).get("bytes_limit")
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return told or whole // len(devices)
