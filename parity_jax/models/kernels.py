"""Products of dense layers, laid as a CPU runs them fast; elsewhere the library's own.

Left to itself the gradient of a kernel transposes the rows first, or is tall: half the
rate of the other products in measurements. The rule that mends it is a custom vjp, so
forward-mode derivatives (`jax.jvp`) need another backend.
"""

from math import prod
from typing import Any

import jax
from jax import Array

from parity_jax.platform import platform


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
