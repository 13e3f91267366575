"""The kind of device that programs are made for: JAX's own, or a target's."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_target: ContextVar[str] = ContextVar("target", default="")


def platform() -> str:
    """ "cpu", "gpu" or "tpu"; some shapes of a program depend on it."""
    return _target.get() or jax.default_backend()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine has not the memory that was asked for."""
    text = str(error).strip().partition("\n")[0]
    told = "RESOURCE_EXHAUSTED" in text or "Out of memory" in text  # compiled, or run
    return isinstance(error, MemoryError) or told


@contextmanager
def made_for(target: str) -> Iterator[None]:
    """Programs that are traced within are made for a platform that is not there."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)
