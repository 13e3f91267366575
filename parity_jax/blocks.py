"""Some rows of many: those that go on are put in front and run block by block.

Most responses of a batch are short. Whatever their number, the longer ones fill a
number of equal blocks that is known only when the program runs; only those are run.
"""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.platform import platform


def gradient_rows(num_rows: int, num_tokens: int) -> int:
    """Rows of a block that is trained on, num_tokens each.

    Small blocks waste few places; some 256 tokens still fill a CPU core.
    An accelerator runs blocks one after the other: few, large ones.
    """
    if platform() == "cpu":
        return min(num_rows, -(-256 // num_tokens))
    return -(-num_rows // 8)


def decode_rows(num_rows: int) -> int:
    """Rows of a block that is decoded, token by token; an accelerator takes all.

    32 rows keep weights and cache near a CPU core; 64 and more were slower.
    """
    return min(num_rows, 32) if platform() == "cpu" else num_rows


@jax.custom_batching.custom_vmap
def largest(x: Array) -> Array:
    """x; of members that run side by side (`jax.vmap`) the largest, the same for all.

    A loop whose end is the same for all needs no choice between old and new values of
    each member, which would read and write all that the loop carries in every turn.
    """
    return x


@largest.def_vmap
def _largest_of_members(axis_size: int, is_batched: list[bool], x: Array) -> Any:
    return largest(x.max(0) if is_batched[0] else x), False


def at_most(num_turns: int) -> AbstractContextManager[Any]:
    """Around a loop that ends by what was drawn: so many turns, for those who count a
    program's work (`runs.roofline`).
    """
    return jax.named_scope(f"at_most_{num_turns}")


class Blocks(NamedTuple):
    """Indices of the chosen rows; places without a row hold N, out of bounds."""

    row: Array  # num x R int
    # int32 scalar, blocks that hold a row; the most of members that run side by side
    num: Array


def blocks_of(is_chosen_N: Array, size: int) -> Blocks:
    """The chosen rows in their order, `size` to a block."""
    num_rows = is_chosen_N.shape[0]
    order_N = jnp.argsort(~is_chosen_N, stable=True)
    is_filled_N = jnp.arange(num_rows) < is_chosen_N.sum()
    row_N = jnp.where(is_filled_N, order_N, num_rows)
    row_N = jnp.pad(row_N, (0, -num_rows % size), constant_values=num_rows)
    num_blocks = -(-is_chosen_N.sum(dtype=jnp.int32) // size)
    return Blocks(row_N.reshape(-1, size), largest(num_blocks))


def take_rows(tree: Any, row_R: Array) -> Any:
    """These rows of every leaf; places without a row repeat the last one."""
    return jax.tree.map(lambda x: jnp.take(x, row_R, 0, mode="clip"), tree)


def add_rows(tree: Any, row_R: Array, addend: Any) -> Any:
    """Leaves with `addend` added at these rows; places without a row add nothing."""
    return jax.tree.map(lambda x, y: x.at[row_R].add(y, mode="drop"), tree, addend)


def set_rows(tree: Any, row_R: Array, new: Any) -> Any:
    """Leaves with `new` at these rows; places without a row change nothing."""
    return jax.tree.map(lambda x, y: x.at[row_R].set(y, mode="drop"), tree, new)
