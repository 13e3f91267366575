"""One member over several devices: one table of rules says what lies where.

A mesh has the axes member, fsdp and tensor. Members are told apart by hand
(`population`); inside a member arrays keep their whole shapes and the compiler splits
them: rows over fsdp, parameters and what is like them over fsdp and tensor.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from parity_jax.config import require, require_positive
from parity_jax.models.model import Cache, Context, Model
from parity_jax.rows import ROWS
from parity_jax.types import Params, Prompt, path_text

MEMBER, FSDP, TENSOR = "member", "fsdp", "tensor"

# How a parameter ends, and the mesh axes of its last axes; blocks that are stacked and
# members have theirs in front. What no rule names is whole on every device, as is an
# axis that the devices do not divide.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"\bembed\.embedding", (TENSOR, FSDP)),
    (r"attention\.(query|key|value)\.kernel", (FSDP, TENSOR, None)),
    (r"attention\.(query|key|value)\.bias", (TENSOR, None)),
    (r"attention\.out\.kernel", (TENSOR, None, FSDP)),
    (r"mlp\.(up|gate)\.kernel", (FSDP, TENSOR)),
    (r"mlp\.(up|gate)\.bias", (TENSOR,)),
    (r"mlp\.down\.kernel", (TENSOR, FSDP)),
    (r"unembed\.kernel", (FSDP, TENSOR)),
)


@dataclass(frozen=True)
class MeshConfig:
    """How many devices a member is spread over: fsdp x tensor."""

    fsdp: int = 1  # rows of a batch; parameters are gathered block by block
    tensor: int = 1  # heads, MLP and vocabulary

    def __post_init__(self) -> None:
        require_positive(self, "fsdp", "tensor")

    @property
    def size(self) -> int:
        """Devices of a member."""
        return self.fsdp * self.tensor


def mesh_of(cfg: MeshConfig, devices: Sequence[Any]) -> Mesh:
    """The devices as member x fsdp x tensor; ConfigError if they are too few."""
    allowed = f"must be at most the number of devices, {len(devices)}"
    asked = f"fsdp={cfg.fsdp} x tensor={cfg.tensor}"
    require(cfg.size <= len(devices), "mesh", asked, allowed)
    num_groups = len(devices) // cfg.size
    shape = (num_groups, cfg.fsdp, cfg.tensor)
    chosen = np.array(devices[: num_groups * cfg.size]).reshape(shape)
    return Mesh(chosen, (MEMBER, FSDP, TENSOR), axis_types=(AxisType.Auto,) * 3)


def mesh_of_rows(share: int, devices: Sequence[Any]) -> Mesh:
    """The devices as member x rows, `share` to each member; ConfigError if too few."""
    allowed = f"must be at most the number of devices, {len(devices)}"
    require(share <= len(devices), "population.row_devices", share, allowed)
    chosen = np.array(devices[: len(devices) // share * share]).reshape(-1, share)
    return Mesh(chosen, (MEMBER, ROWS), axis_types=(AxisType.Auto,) * 2)


def spec_of(path: str, shape: tuple[int, ...], mesh: Any) -> PartitionSpec:
    """What the rules say of an array of one member that ends like a parameter."""
    for pattern, axes in RULES:
        if re.search(pattern + "$", path):
            sizes = shape[len(shape) - len(axes) :]
            split = [
                axis if axis and size % mesh.shape[axis] == 0 else None
                for axis, size in zip(axes, sizes, strict=True)
            ]
            return PartitionSpec(*[None] * (len(shape) - len(axes)), *split)
    return PartitionSpec()


def constrained(tree: Any) -> Any:
    """Arrays of one member, laid out by the rules where a program computes them."""
    mesh = jax.sharding.get_abstract_mesh()

    def constrain(path: Any, x: Array) -> Array:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        spec = spec_of(path_text(path), x.shape, mesh)
        return jax.lax.with_sharding_constraint(x, spec)

    return jax.tree_util.tree_map_with_path(constrain, tree)


def placed_members(tree: Any, members: NamedSharding) -> Any:
    """Shardings of arrays with P in front, which is laid out as `members` says."""

    def place(path: Any, x: Any) -> NamedSharding:
        spec = spec_of(path_text(path), x.shape[1:], members.mesh)
        return NamedSharding(members.mesh, PartitionSpec(*members.spec, *spec))

    return jax.tree_util.tree_map_with_path(place, tree)


def spread(model: Model, cfg: MeshConfig) -> Model:
    """The model with its rows over fsdp and its parameters, and their gradients, by the
    rules, in every pass.
    """
    if cfg.size == 1:
        return model

    def rows(tree: Any) -> Any:
        def split(x: Array) -> Array:
            divides = x.shape[0] % cfg.fsdp == 0
            spec = PartitionSpec(FSDP if divides else None)
            return jax.lax.with_sharding_constraint(x, spec)

        return jax.tree.map(split, tree)

    def prompt_pass(params: Params, prompt: Prompt) -> tuple[Array, Context]:
        return rows(model.prompt_pass(constrained(params), rows(prompt)))

    def response_pass(params: Params, token: Array, context: Context) -> Array:
        return rows(
            model.response_pass(constrained(params), rows(token), rows(context))
        )

    def empty_cache(context: Context, num_generations: int, num_tokens: int) -> Cache:
        return rows(model.empty_cache(context, num_generations, num_tokens))

    def decode_step(
        params: Params, token: Array, index: Any, context: Context, cache: Cache
    ) -> tuple[Array, Cache]:
        return rows(
            model.decode_step(constrained(params), rows(token), index, context, cache)
        )

    def unembed(params: Params, hidden: Array) -> Array:
        return model.unembed(constrained(params), hidden)

    return model._replace(
        prompt_pass=prompt_pass,
        response_pass=response_pass,
        empty_cache=empty_cache,
        decode_step=decode_step,
        unembed=unembed,
    )
