"""The least time that the products of a traced program take, from a device's peaks.

FLOPs and bytes are those of products (`dot_general`): the rest of a step moves bytes
too, so a step takes longer. Turns of loops are counted; loops that end by what was
drawn (`blocks.at_most`) with the most turns that they can have.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

AT_MOST = re.compile(r"at_most_(\d+)")


class Work(NamedTuple):
    """Of a device, in a step of all members."""

    # FLOPs of products by the dtype of what they multiply (2 for a multiply-add)
    flops: Counter[str]
    # Bytes of what products read and write, as if none of it stayed on the chip; those
    # of fused attention's scores never leave it
    bytes: int


def products(jaxpr: Any, num_devices: int) -> Work:
    """The products of a program's jaxpr, whose arrays all devices share equally."""
    flops: Counter[str] = Counter()
    num_bytes = 0.0
    for equation, times in equations(jaxpr, 1.0 / num_devices, num_devices):
        if equation.primitive.name != "dot_general":
            continue
        left, right = (x.aval for x in equation.invars)
        out = equation.outvars[0].aval
        (axes, _), _ = equation.params["dimension_numbers"]
        contracted = math.prod(left.shape[axis] for axis in axes)
        wide = max(left, right, key=lambda x: x.dtype.itemsize).dtype.name
        flops[wide] += times * 2 * out.size * contracted
        sizes = [x.size * x.dtype.itemsize for x in (left, right, out)]
        num_bytes += times * sum(sizes)
    return Work(Counter({k: round(x) for k, x in flops.items()}), round(num_bytes))


def equations(
    jaxpr: Any, times: float, num_devices: int
) -> Iterator[tuple[Any, float]]:
    """All equations of a program and of what it calls, and how often a device runs each
    (less than once what it shares with others).
    """
    for equation in jaxpr.eqns:
        yield equation, times
        name = equation.primitive.name
        turns = times
        if name == "scan":
            turns *= equation.params["length"]
        elif name == "while":
            named = AT_MOST.findall(str(equation.source_info.name_stack))
            turns *= int(named[-1]) if named else 1
        elif name == "shard_map":  # arrays within are a device's own
            turns *= num_devices
        for value in jax.tree.leaves([*equation.params.values()]):
            inner = getattr(value, "jaxpr", value)  # of a closed one
            if hasattr(inner, "eqns"):
                yield from equations(inner, turns, num_devices)


def roofline_seconds(
    work: Work, flops_per_second: dict[str, float], bytes_per_second: float
) -> float:
    """The longer of computing at the peak and of moving at the full bandwidth."""
    computing = sum(n / flops_per_second[dtype] for dtype, n in work.flops.items())
    return max(computing, work.bytes / bytes_per_second)
