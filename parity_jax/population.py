"""Many members in one program: the only place that knows there is more than one.

Members are the product of named axes (`p_cot`, `seed`, ...). They are sharded over the
devices, and on a device run `vmap_width` at a time, one group after the other.
"""

import itertools
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, PartitionSpec

from parity_jax.config import ConfigError, PopulationConfig, unknown_name
from parity_jax.masked import Mean, Metrics
from parity_jax.stages import Stage
from parity_jax.types import DIVERGED, RUNNING, Hypers, Params, StageState

Axes = Mapping[str, tuple[float, ...]]
Label = dict[str, float]  # the value of every axis for one member


def member_labels(axes: Axes) -> list[Label]:
    """One label per member, the last axis fastest."""
    return [
        dict(zip(axes, values, strict=True))
        for values in itertools.product(*axes.values())
    ]


def member_hypers(hypers: Hypers, labels: list[Label]) -> Hypers:
    """Hypers of all members: every leaf is a float32 array of length P."""
    return Hypers(
        **{
            f.name: np.array(
                [label.get(f.name, getattr(hypers, f.name)) for label in labels],
                np.float32,
            )
            for f in fields(Hypers)
        }
    )


def parent_index(
    labels: list[Label], hypers: Hypers, parent_axes: Axes, pinned: Mapping[str, float]
) -> np.ndarray:
    """For every member its parent: the one with the same value on every axis of it, P.

    The member's value is the pinned one, else that of its own axis, else that of its
    run's hypers. `parent_step` is a step of another run for the parent than for the
    member, so it can only be pinned. ConfigError if no parent has these values.
    """
    for name, value in pinned.items():
        if name not in parent_axes:
            raise unknown_name(name, value, parent_axes).under("parent_member")

    def value_of(label: Label, name: str) -> float | None:
        own = None if name == "parent_step" else label.get(name)
        own = getattr(hypers, name, None) if own is None else own
        return pinned.get(name, own)

    index_P = []
    for label in labels:
        index = 0
        for name, values in parent_axes.items():
            wanted = value_of(label, name)
            allowed = f"must be one of the parent's {tuple(values)}; parent_member says"
            allowed += f" which, e.g. parent_member.{name}={values[0]:g}"
            if wanted not in values:
                raise ConfigError(name, wanted, allowed)
            index = index * len(values) + list(values).index(wanted)
        index_P.append(index)
    return np.array(index_P)


class Population(NamedTuple):
    """The compiled functions of all members; states and metrics have P in front."""

    labels: list[Label]
    init: Any  # (params_P or None) -> states
    run: Any  # (states, num_steps) -> states, metrics merged over the steps
    evaluate: Any  # (states) -> metrics
    sequences_per_step: int  # of one member


def layout(cfg: PopulationConfig, num_members: int) -> tuple[list[jax.Device], int]:
    """The devices that members are sharded over, and how many run in one vmap."""
    devices = jax.local_devices()[: cfg.num_devices or None][:num_members]
    on_cpu = devices[0].platform == "cpu"
    return devices, cfg.vmap_width or (1 if on_cpu else num_members)


def make_population(
    cfg: PopulationConfig, stage: Stage, axes: Axes, hypers: Hypers
) -> Population:
    """Compile a stage for all members of the product of the axes."""
    labels = member_labels(axes)
    num_members = len(labels)
    devices, width = layout(cfg, num_members)
    mesh = jax.make_mesh(
        (len(devices),), ("member",), axis_types=(AxisType.Auto,), devices=devices
    )
    by_member = PartitionSpec("member")
    num_padded = -num_members % len(devices)  # copies of member 0, thrown away

    def over_members(f: Any) -> Any:
        """f of one member as a compiled f of all; further arguments are shared."""

        def on_device(tree: Any, *shared: Any) -> Any:
            one = partial(_call_one, f, shared)
            if width == 1:
                return jax.lax.map(one, tree)
            return jax.lax.map(one, tree, batch_size=width)

        def on_all(tree: Any, *shared: Any) -> Any:
            tree = jax.tree.map(partial(_pad, num_padded), tree)
            specs = (by_member, *[PartitionSpec()] * len(shared))
            sharded = jax.shard_map(
                on_device,
                mesh=mesh,
                in_specs=specs,
                out_specs=by_member,
                check_vma=False,
            )
            return jax.tree.map(lambda x: x[:num_members], sharded(tree, *shared))

        return on_all

    def init(params: Params | None) -> StageState:
        keys = jnp.stack([jax.random.key(int(label["seed"])) for label in labels])
        members = (keys, member_hypers(hypers, labels), params)
        return jax.jit(over_members(lambda member: stage.init(*member)))(members)

    run = over_members(partial(run_member, stage))
    return Population(
        labels=labels,
        init=init,
        run=jax.jit(run, donate_argnums=0),
        evaluate=jax.jit(over_members(stage.evaluate)),
        sequences_per_step=stage.sequences_per_step,
    )


def _call_one(f: Any, shared: tuple[Any, ...], member: Any) -> Any:
    return f(member, *shared)


def _pad(num_padded: int, x: Array) -> Array:
    return jnp.concatenate([x, jnp.repeat(x[:1], num_padded, 0)]) if num_padded else x


def run_member(
    stage: Stage, state: StageState, num_steps: Array
) -> tuple[StageState, Metrics]:
    """num_steps guarded steps of one member, metrics merged.

    num_steps is traced: one program serves chunks of every length, so that how a run is
    cut into chunks changes nothing, bit for bit.
    """
    metrics_shape = jax.eval_shape(stage.step, state)[1]
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics_shape)

    def body(_: int, carry: tuple[StageState, Metrics]) -> tuple[StageState, Metrics]:
        state, metrics = carry
        state, new = guarded_step(stage, state)
        return state, jax.tree.map(jnp.add, metrics, new)

    return jax.lax.fori_loop(0, num_steps, body, (state, zero))


def guarded_step(stage: Stage, state: StageState) -> tuple[StageState, Metrics]:
    """A step of a running member; one that fails is frozen as it was before the step.

    A member fails when its loss or a parameter is not finite, or when the stage says so
    in `status`. A frozen member adds nothing to the metrics.
    """
    new, metrics = stage.step(state)
    loss: Mean = metrics["loss"]
    finite = [jnp.isfinite(loss.total)]
    finite += [jnp.isfinite(x).all() for x in jax.tree.leaves(new.params)]
    status = jnp.where(jnp.stack(finite).all(), new.status, DIVERGED)
    status = jnp.where(state.status == RUNNING, status, state.status)
    goes_on = status == RUNNING
    new = jax.tree.map(partial(jnp.where, goes_on), new, state)
    metrics = jax.tree.map(lambda x: jnp.where(goes_on, x, 0), metrics)
    return new._replace(status=status), metrics
