"""The kind of device that programs are made for: JAX's own, or a target's."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_target: ContextVar[str] = ContextVar("target", default="")


def platform() -> str:
    """ "cpu", "gpu" or "tpu"; some shapes of a program depend on it."""
    return _target.get() or jax.default_backend()


@contextmanager
def made_for(target: str) -> Iterator[None]:
    """Programs that are traced within are made for a platform that is not there."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)
