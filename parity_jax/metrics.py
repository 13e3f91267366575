"""Masked reductions; metrics stay (total, count) until they are printed."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


def masked_mean(x: Array, mask: Array) -> Array:
    """Mean of x where mask is true; 0 where nothing is."""
    return Mean.over(x, mask).value(empty=0.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """A weighted mean kept as float32 total and count, so that parts add up exactly."""

    total: Array
    count: Array

    @classmethod
    def over(cls, x: Array, mask: Array | None = None) -> "Mean":
        """Mean over all elements of x, or over those where mask is true."""
        mask = jnp.ones_like(x, bool) if mask is None else mask
        mask = jnp.broadcast_to(mask, x.shape)
        total = jnp.where(mask, x, 0).sum(dtype=jnp.float32)
        return cls(total, mask.sum(dtype=jnp.float32))

    def merge(self, other: "Mean") -> "Mean":
        """The mean of both together."""
        return Mean(self.total + other.total, self.count + other.count)

    def value(self, empty: float = jnp.nan) -> Array:
        """total / count, or `empty` where nothing was counted."""
        present = self.count > 0
        return jnp.where(present, self.total / jnp.where(present, self.count, 1), empty)


Metrics = dict[str, Mean]
