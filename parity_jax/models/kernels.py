"""Products, attention and embeddings as each kind of device runs them fast.

On a CPU the gradient of a dense kernel, left to itself, transposes the rows first, or
is tall: half the rate of the other products in measurements. The rule that mends it is
a custom vjp, so forward-mode derivatives (`jax.jvp`) need another backend. On a GPU in
bfloat16 the attention of whole sequences is cuDNN's. Where a vocabulary is small, an
accelerator adds up the gradient of its embedding as a product.
"""

from math import prod
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType

from parity_jax.platform import platform

if TYPE_CHECKING:
    from parity_jax.models.transformer import TransformerConfig


# Rows of a table up to which the gradient of a lookup is a product. As a sum of
# scattered parts it waited for itself: 272 of 290 ms of a step, 5 tokens, bfloat16.
MAX_MULTIPLIED = 1024


def dot_general() -> Any:
    """What flax's dense layers take as `dot_general` on this backend; None: its own."""
    return dot_rows if platform() == "cpu" else None


@jax.custom_vjp
def row_product(x_NxD: Array, kernel_DxF: Array) -> Array:
    """x @ kernel, whose gradients are products of the shapes that a CPU runs fast."""
    return x_NxD @ kernel_DxF


def _row_product_fwd(x_NxD: Array, kernel_DxF: Array) -> tuple[Array, Any]:
    return x_NxD @ kernel_DxF, (x_NxD, kernel_DxF)


def _row_product_bwd(saved: Any, grad_NxF: Array) -> tuple[Array, Array]:
    x_NxD, kernel_DxF = saved
    if kernel_DxF.shape[0] > kernel_DxF.shape[1]:  # the barrier keeps it wide
        kernel_grad = jax.lax.optimization_barrier(grad_NxF.T @ x_NxD).T
    else:
        kernel_grad = x_NxD.T @ grad_NxF
    return grad_NxF @ kernel_DxF.T, kernel_grad


row_product.defvjp(_row_product_fwd, _row_product_bwd)


def dot_rows(
    x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None
) -> Array:
    """`row_product` in the place of `lax.dot_general` in dense layers.

    A precision that is asked for goes to the library's product.
    """
    if precision is not None:
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision)
    (axes, _), _ = dimension_numbers
    num = len(axes)  # the last ones of x, the first ones of the kernel
    rows = x.reshape(-1, prod(x.shape[-num:]))
    out = row_product(rows, kernel.reshape(rows.shape[1], -1))
    return out.reshape(*x.shape[:-num], *kernel.shape[num:])


def scores(query_NxJxQxK: Array, key_NxJxSxK: Array) -> Array:
    """Products of all queries with all keys, NxJxQxS."""
    if platform() == "cpu":
        of_keys = jnp.einsum("njsk,njqk->njsq", key_NxJxSxK, query_NxJxQxK)
        return of_keys.swapaxes(2, 3)
    return jnp.einsum("njqk,njsk->njqs", query_NxJxQxK, key_NxJxSxK)


def has_fused_attention(cfg: "TransformerConfig") -> bool:
    """Whether cuDNN takes such heads, on a GPU that is here and holds the member whole.

    Programs for GPUs that are not there (`runs.targets`) are made without it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    is_whole = mesh.empty or AxisType.Auto not in mesh.axis_types or mesh.size == 1
    has_gpu = platform() == "gpu" and jax.default_backend() == "gpu"
    fits = cfg.dtype == "bfloat16" and cfg.head_size % 8 == 0 and cfg.head_size <= 128
    return has_gpu and fits and is_whole


def fused_attention(
    query_NxHxTxK: Array,
    key_NxJxSxK: Array,
    value_NxJxSxK: Array,
    mask_NxS: Array | None,
    sliding_window: int,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """Causal attention of the last T of S positions, NxHxTxK; no score is stored.

    Pads, which are in front, are moved behind the tokens: there causality hides them,
    as it does one place more where S is odd (cuDNN's gradients need it even). What
    comes out at pads is not that of `Attention._attend`; nothing reads it.
    """
    num, num_positions = query_NxHxTxK.shape[2], key_NxJxSxK.shape[2]
    num_first = num_positions - num

    def in_place(x: Array, num_in_front: int) -> Array:
        pad = ((0, 0), (0, 0), (num_in_front, num_positions % 2), (0, 0))
        return jnp.pad(x, pad).swapaxes(1, 2)

    query_NxSxHxK = in_place(query_NxHxTxK, num_first)
    key, value = in_place(key_NxJxSxK, 0), in_place(value_NxJxSxK, 0)
    if mask_NxS is not None:
        num_pads_N = (mask_NxS == 0).sum(1)
        query_NxSxHxK, key, value = (
            rolled(x, num_pads_N) for x in (query_NxSxHxK, key, value)
        )
    out_NxSxHxK = jax.nn.dot_product_attention(
        query_NxSxHxK,
        key,
        value,
        is_causal=True,
        local_window_size=(sliding_window - 1, 0) if sliding_window else None,
        implementation=implementation,
    )
    if mask_NxS is not None:
        out_NxSxHxK = rolled(out_NxSxHxK, -num_pads_N)
    return out_NxSxHxK[:, num_first:num_positions].swapaxes(1, 2)


@jax.custom_vjp
def rolled(x_NxSxHxK: Array, shift_N: Array) -> Array:
    """Position s of row n is what was at s + shift_N[n], modulo S.

    Its gradient is rolled back; that of a gather would be a sum of scattered parts.
    """
    num_positions = x_NxSxHxK.shape[1]
    source_NxS = (jnp.arange(num_positions)[None] + shift_N[:, None]) % num_positions
    return jnp.take_along_axis(x_NxSxHxK, source_NxS[..., None, None], 1)


def _rolled_fwd(x_NxSxHxK: Array, shift_N: Array) -> tuple[Array, Array]:
    return rolled(x_NxSxHxK, shift_N), shift_N


def _rolled_bwd(shift_N: Array, grad_NxSxHxK: Array) -> tuple[Array, None]:
    return rolled(grad_NxSxHxK, -shift_N), None


rolled.defvjp(_rolled_fwd, _rolled_bwd)


def lookup(table_VxD: Array, token: Array) -> Array:
    """Rows of the table, the shape of `token` x D; its gradient adds in float32."""
    if platform() == "cpu" or len(table_VxD) > MAX_MULTIPLIED:
        return jnp.take(table_VxD, token, 0)
    return _multiplied_lookup(table_VxD, token)


@jax.custom_vjp
def _multiplied_lookup(table_VxD: Array, token: Array) -> Array:
    return jnp.take(table_VxD, token, 0)


def _lookup_fwd(table_VxD: Array, token: Array) -> tuple[Array, Any]:
    return jnp.take(table_VxD, token, 0), (token, jnp.arange(len(table_VxD)))


def _lookup_bwd(saved: Any, grad: Array) -> tuple[Array, None]:
    token, id_V = saved
    is_row_NxV = token.ravel()[:, None] == id_V[None]
    grad_NxD = grad.reshape(-1, grad.shape[-1])
    return is_row_NxV.astype(grad.dtype).T @ grad_NxD, None


_multiplied_lookup.defvjp(_lookup_fwd, _lookup_bwd)
