"""Digests of arrays that several processes hold: one for each shard, by its bounds.

Every process hashes what it has, nobody needs the whole; and what is read back is
compared shard by shard, by whoever has one of the same bounds, or the whole.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity_jax.hosts import of_all

# name -> dtype, shape and, by the bounds of each shard, its SHA-256
ShardIndex = dict[str, Any]


def shard_index(arrays: Mapping[str, jax.Array]) -> ShardIndex:
    """The index of arrays that are spread over all processes; each hashes its own."""
    own = {
        name: {
            bounds_text(shard.index, x.shape): sha256(np.asarray(shard.data))
            for shard in x.addressable_shards
            if shard.replica_id == 0
        }
        for name, x in arrays.items()
    }
    index: ShardIndex = {
        name: {"dtype": str(x.dtype), "shape": [*x.shape], "shards": {}}
        for name, x in arrays.items()
    }
    for part in of_all(own):
        for name, shards in part.items():
            index[name]["shards"] |= shards
    return index


def has_shards_of(index: ShardIndex, layout: Mapping[str, Any]) -> bool:
    """Whether what each device is to hold of arrays is what was hashed."""
    if index.keys() != layout.keys():
        return False
    for name, x in layout.items():
        held = x.sharding.devices_indices_map(x.shape).values()
        if not {bounds_text(i, x.shape) for i in held} <= {*index[name]["shards"]}:
            return False
    return True


def whole_arrays(index: ShardIndex) -> dict[str, np.ndarray]:
    """Arrays of these types and shapes, which take no memory."""
    return {
        name: np.broadcast_to(np.zeros((), jnp.dtype(entry["dtype"])), entry["shape"])
        for name, entry in index.items()
    }


def is_as_written(index: ShardIndex, arrays: Mapping[str, Any]) -> bool:
    """Whether arrays, whole or this process's shards of them, have their digests."""
    if index.keys() != arrays.keys():
        return False
    for name, x in arrays.items():
        entry = index[name]
        if (entry["dtype"], entry["shape"]) != (str(x.dtype), [*x.shape]):
            return False
        shards = entry["shards"]
        if any(shards.get(where) != sha256(part) for where, part in parts(x, shards)):
            return False
    return True


def parts(x: Any, shards: Mapping[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """What can be compared: shards that are here, or those of a whole array.

    Shards that do not make up the whole are no part of it: nothing has that digest.
    """
    if isinstance(x, jax.Array):
        for shard in x.addressable_shards:
            yield bounds_text(shard.index, x.shape), np.asarray(shard.data)
        return
    size = 0
    for where in shards:
        part = x[slices_of(where)]
        size += part.size
        yield where, part
    if size != x.size:
        yield "", x[:0]


def bounds_text(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """Bounds of a shard: "0:4,16:32"."""
    pairs = (s.indices(size)[:2] for s, size in zip(index, shape, strict=True))
    return ",".join(f"{start}:{stop}" for start, stop in pairs)


def slices_of(where: str) -> tuple[slice, ...]:
    """The other way."""
    pairs = (pair.split(":") for pair in where.split(",") if pair)
    return tuple(slice(int(start), int(stop)) for start, stop in pairs)


def sha256(part: np.ndarray) -> str:
    """Digest of the bytes of an array."""
    return hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()
