"""The rows of one member over several devices, each of which holds the whole member.

`population` lets devices share rows where there are fewer members than CPU cores.
There every device computes the same but for two kinds of work: what is done for each
row by itself, and sums over rows. Sums are over the devices in a fixed order, so all of
them go on with the same numbers. Elsewhere these functions only call what they are
given.

Devices wait for each other once in a call, and calls should need each other's results:
XLA lets CPU devices that have two things to wait for wait for different ones, for ever.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from parity_jax.blocks import take_rows

ROWS = "rows"  # axis of the mesh


def num_parts(num_rows: int) -> int:
    """Over how many devices these rows are split; what does not divide is not."""
    mesh = jax.sharding.get_abstract_mesh()
    size = mesh.shape[ROWS] if ROWS in mesh.manual_axes else 1
    return size if num_rows % size == 0 else 1


def each_row(f: Callable[[Any], Any], rows: Any) -> Any:
    """f of trees with the rows in front, as its results have them; every device does
    its part and has all results.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    num = num_parts(num_rows)
    if num == 1:
        return f(rows)
    own = take_rows(rows, jnp.arange(num_rows).reshape(num, -1)[_device()])
    leaves, form = jax.tree.flatten(f(own))
    bytes_RxK = [_as_bytes(x) for x in leaves]
    whole_RxK = jax.lax.all_gather(jnp.concatenate(bytes_RxK, 1), ROWS, tiled=True)
    ends = [sum(x.shape[1] for x in bytes_RxK[: i + 1]) for i in range(len(leaves))]
    parts_RxK = jnp.split(whole_RxK, ends[:-1], 1)
    return jax.tree.unflatten(form, map(_from_bytes, parts_RxK, leaves))


def sum_of_rows(f: Callable[[Any], Any], rows: Any, work_R: Array) -> Any:
    """f of trees with the rows in front, whose results are sums over them.

    work_R   how much there is to do for a row, by which rows are dealt out: the devices
             should end together
    """
    num = num_parts(work_R.shape[0])
    if num == 1:
        return f(rows)
    own = take_rows(rows, jnp.argsort(work_R).reshape(-1, num)[:, _device()])
    vector, tree_of = ravel_pytree(f(own))
    return tree_of(jax.lax.psum(vector, ROWS))


def _device() -> Array:
    return jax.lax.axis_index(ROWS)


def _as_bytes(x: Array) -> Array:
    """Rows of bytes."""
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    return jax.lax.bitcast_convert_type(x, jnp.uint8).reshape(x.shape[0], -1)


def _from_bytes(bytes_RxK: Array, like: Array) -> Array:
    """What the bytes are, in the form of the rows of one device."""
    dtype = jnp.dtype(jnp.uint8) if like.dtype == bool else like.dtype
    shape = (bytes_RxK.shape[0], *like.shape[1:])
    parts = bytes_RxK.reshape(*shape, dtype.itemsize)
    parts = parts[..., 0] if dtype.itemsize == 1 else parts
    return jax.lax.bitcast_convert_type(parts, dtype).astype(like.dtype)
