"""Many members in one program: the only place that knows there is more than one.

Members are the product of named axes (`p_cot`, `seed`, ...). They are sharded over the
devices, and on a device run `vmap_width` at a time, one group after the other.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parity_jax.config import (
    ConfigError,
    Label,
    number_text,
    require,
    require_count,
    unknown_name,
)
from parity_jax.hosts import is_alone, spread_over_hosts
from parity_jax.hypers import Hypers
from parity_jax.mesh import (
    MEMBER,
    MeshConfig,
    constrained,
    mesh_of,
    mesh_of_rows,
    placed_members,
)
from parity_jax.metrics import Mean, Metrics
from parity_jax.stages import Stage
from parity_jax.stages.contract import (
    check_names,
    check_scores,
    check_step,
    numbers_read,
)
from parity_jax.types import DIVERGED, RUNNING, Data, Params, StageState

Axes = Mapping[str, tuple[float, ...]]
ONE_DEVICE = MeshConfig()


@dataclass(frozen=True)
class PopulationConfig:
    """How the members of one program are laid out; results agree to rounding."""

    num_devices: int = 0  # members are sharded over so many devices; 0: all local ones
    vmap_width: int = 0  # members per vmap on a device; 0: all on GPU/TPU, 1 on CPU
    # Devices that share the rows of each member, which all of them hold; 0: on CPU
    # those that small members leave idle, elsewhere 1.
    row_devices: int = 0

    def __post_init__(self) -> None:
        for name in ("num_devices", "vmap_width", "row_devices"):
            require_count(self, name, "automatic")


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
            raise unknown_name(f"parent_member.{name}", value, parent_axes)

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
            allowed += f" which, e.g. parent_member.{name}={number_text(values[0])}"
            if wanted not in values:
                raise ConfigError(f"parent_member.{name}", wanted, allowed)
            index = index * len(values) + list(values).index(wanted)
        index_P.append(index)
    return np.array(index_P)


class Program:
    """A jitted function that is compiled once, at its first call, if it fits."""

    def __init__(self, jitted: Any, devices: list[jax.Device], is_spread: bool = False):
        self._jitted, self._devices = jitted, devices
        # From a cache, programs in which the compiler put several collectives beside
        # each other may have CPU devices wait for different ones, for ever.
        self._is_cached = not (is_spread and devices[0].platform == "cpu")
        self._compiled: Any = None

    def __call__(self, *args: Any) -> Any:
        return self.compiled(*args)(*args)

    def eval_shape(self, *args: Any) -> Any:
        """Shapes of what it returns; it is traced, not compiled.

        MemoryError if one of its arrays alone is larger than a device.
        """
        traced = self.trace(*args)
        require_memory(largest_array(traced.jaxpr.jaxpr), self._devices)
        return traced.out_info

    def require_room(self, states: StageState) -> None:
        """MemoryError if states of these shapes are larger than all devices."""
        needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(states))
        require_memory(needed // len(self._devices), self._devices)

    def trace(self, *args: Any) -> Any:
        """The program before it is lowered and compiled."""
        return self._jitted.trace(*args)

    def compiled(self, *args: Any) -> Any:
        """The executable; MemoryError if it needs more than its devices have."""
        if self._compiled is None:
            with nullcontext() if self._is_cached else uncached():
                compiled = self.trace(*args).lower().compile()
            require_memory(memory_needed(compiled), self._devices)
            self._compiled = compiled
        return self._compiled


@contextmanager
def uncached() -> Iterator[None]:
    """No compiled program comes from a cache, and none goes there."""
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    jax.config.update(name, False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update(name, before)
        compilation_cache.reset_cache()


def memory_needed(compiled: Any) -> int:
    """Bytes of a device while an executable runs, its arguments included."""
    sizes = compiled.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )


def largest_array(jaxpr: Any) -> int:
    """Bytes of the largest array of a traced program, those of its loops included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        shapes = [x.aval for x in equation.outvars if hasattr(x.aval, "dtype")]
        sizes += [x.size * x.dtype.itemsize for x in shapes]
        for value in jax.tree.leaves([*equation.params.values()]):
            inner = getattr(value, "jaxpr", value)  # of a closed one
            sizes += [largest_array(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


def require_memory(needed: int, devices: list[jax.Device]) -> None:
    """MemoryError if so many bytes are more than a device has."""
    limit = memory_limit(devices)
    if needed > limit:
        told = f"{needed / 2**30:.1f} GiB needed, {limit / 2**30:.1f} GiB there"
        raise MemoryError(told)


def memory_limit(devices: list[jax.Device]) -> int:
    """Bytes of one device; CPU devices share the machine's."""
    own = jax.process_index()
    devices = [d for d in devices if d.process_index == own] or devices
    told = (devices[0].memory_stats() or {}).get("bytes_limit")
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return told or whole // len(devices)


class Population(NamedTuple):
    """The programs of all members; states and metrics have P in front."""

    labels: list[Label]
    layout: "Layout"
    data: Data
    init: Any  # (params_P or None) -> states
    # (states, metrics so far, num_steps, data) -> states, metrics with the steps' own
    run: Program
    evaluate: Program  # (states, data) -> metrics
    metric_shapes: Callable[[], Metrics]
    numbers_read: Callable[[], set[str]]  # along other axes members would be alike
    placed: Callable[[Any], Any]  # shardings of states, metrics or parts of them

    def advance(
        self, states: StageState, metrics: Metrics, num_steps: int
    ) -> tuple[StageState, Metrics]:
        """num_steps further steps of all members; states and metrics are used up."""
        return self.run(states, metrics, num_steps, self.data)

    def scores(self, states: StageState) -> Metrics:
        """Evaluation of all members."""
        return self.evaluate(states, self.data)

    def place(self, tree: Any) -> Any:
        """Arrays with P in front laid out as the programs take them."""
        if is_alone():
            return jax.device_put(tree, self.placed(tree))
        return jax.tree.map(spread_over_hosts, tree, self.placed(tree))

    def member_params(self) -> Params:
        """Shapes of one member's parameters, and how its devices hold them."""

        def of_member(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            spec = PartitionSpec(*sharding.spec[1:])
            of_one = NamedSharding(sharding.mesh, spec)
            return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=of_one)

        params_P = jax.eval_shape(self.init, None).params
        return jax.tree.map(of_member, params_P, self.placed(params_P))

    def shared(self, params: Params) -> Params:
        """The same parameters for every member."""

        def repeat(x: Array) -> Array:
            return jnp.broadcast_to(x, (len(self.labels), *x.shape))

        def of_all(params: Params) -> Params:
            return jax.tree.map(repeat, params)

        placed = self.placed(jax.eval_shape(of_all, params))
        return jax.jit(of_all, out_shardings=placed)(params)

    def shapes(self) -> tuple[StageState, Metrics]:
        """Shapes of states and evaluation; traces all programs, compiles none."""
        arguments = self.arguments()
        self.run.require_room(arguments[0])
        self.run.eval_shape(*arguments)
        scores = self.evaluate.eval_shape(arguments[0], self.data)
        check_scores(scores, len(self.labels))
        for where, means in (("step", arguments[1]), ("evaluate", scores)):
            check_names(f"stage.{where}", means, self.labels[0])
        return arguments[0], scores

    def arguments(self) -> tuple[StageState, Metrics, int, Data]:
        """What `run` takes: shapes, and how they lie, of states and metrics."""

        def laid_out(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        tree = (jax.eval_shape(self.init, None), self.metric_shapes())
        states, metrics = jax.tree.map(laid_out, tree, self.placed(tree))
        return states, metrics, 1, self.data

    def no_metrics(self) -> Metrics:
        """Metrics of no step yet."""

        def zeros(x: Any) -> np.ndarray:
            return np.zeros(x.shape, x.dtype)

        return self.place(jax.tree.map(zeros, self.metric_shapes()))


class Layout(NamedTuple):
    """Where the members of a program run."""

    mesh: Mesh  # member x fsdp x tensor, or member x rows
    width: int  # members in one vmap

    def __str__(self) -> str:
        axes = self.mesh.shape.items()
        shared = [f"{k}={size}" for k, size in axes if k != MEMBER and size > 1]
        each = f", {' x '.join(shared)} to a member" * bool(shared)
        return f"{self.mesh.size} device{'s' * (self.mesh.size > 1)}{each}"


# A member is copied to the devices that share its rows, unless it is larger.
MAX_COPIED = 2**28


def layout(
    cfg: PopulationConfig,
    num_members: int,
    member_bytes: Callable[[], int],
    spread: MeshConfig = ONE_DEVICE,
    devices: Sequence[jax.Device] = (),
    is_judged_on_host: bool = False,
) -> Layout:
    """The devices, as a mesh, and how many members run in one vmap.

    A member that is spread over several devices runs alone on them. Small members share
    out their rows to CPU devices that would be idle.
    """
    devices = [*(devices or jax.devices())][: cfg.num_devices or None]
    on_cpu, share = devices[0].platform == "cpu", cfg.row_devices
    allowed = "must be 1: answers are judged on the host, once for all devices"
    field = "population.row_devices"
    require(share <= 1 or not is_judged_on_host, field, share, allowed)
    if is_judged_on_host:
        share = 1
    if not share:
        num_each = len(devices) // num_members if on_cpu and is_alone() else 1
        share = num_each if num_each > 1 and member_bytes() <= MAX_COPIED else 1
    both = f"{share} with mesh.fsdp={spread.fsdp}, mesh.tensor={spread.tensor}"
    is_one = cfg.row_devices <= 1 or spread.size == 1
    require(is_one, field, both, "must be 1 or without a mesh")
    if share > 1 and spread.size == 1:
        mesh = mesh_of_rows(share, devices[: num_members * share])
    else:
        mesh = mesh_of(spread, devices[: num_members * spread.size])
    if not is_alone():
        used = f"{mesh.size} devices, for {num_members} members"
        allowed = f"must be all {jax.device_count()} devices of these processes"
        require(mesh.size == jax.device_count(), "mesh", used, allowed)
    if spread.size > 1:
        return Layout(mesh, 1)
    return Layout(mesh, cfg.vmap_width or (1 if on_cpu else num_members))


def member_bytes(stage: Stage, hypers: Hypers) -> int:
    """Of one member's state."""
    shapes = jax.eval_shape(stage.init, jax.random.key(0), hypers, None)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def check_devices(cfg: PopulationConfig) -> None:
    """ConfigError for more devices than there are."""
    there, wanted = jax.device_count(), cfg.num_devices
    allowed = f"must be at most {there}, the devices that are here"
    require(wanted <= there, "population.num_devices", wanted, allowed)


def make_population(
    cfg: PopulationConfig,
    stage: Stage,
    axes: Axes,
    hypers: Hypers,
    data: Data | None = None,
    spread: MeshConfig = ONE_DEVICE,
    devices: Sequence[jax.Device] = (),
    keeps_states: bool = False,
    is_judged_on_host: bool = False,
) -> Population:
    """The programs of a stage for all members of the product of the axes.

    They run on all devices, of all processes; for devices that are given, which are
    only described, they can be compiled. `keeps_states`: those that a step starts from
    stay as they are, for more memory; it may fail on the host. `is_judged_on_host`:
    no devices share the rows of a member.

    Each is traced and compiled once, at its first call; a second trace is an error.
    """
    labels = member_labels(axes)
    num_members = len(labels)
    data = Data() if data is None else data
    is_spread = spread.size > 1
    size = partial(member_bytes, stage, hypers)
    where = layout(cfg, num_members, size, spread, devices, is_judged_on_host)
    mesh, width = where
    by_member = PartitionSpec(MEMBER)
    num_padded = -num_members % mesh.shape[MEMBER]  # copies of member 0, thrown away
    # States come from init, a checkpoint or the step before: always laid out alike.
    uniform = NamedSharding(mesh, PartitionSpec(None if num_padded else MEMBER))
    shared = NamedSharding(mesh, PartitionSpec())
    data = described(data, shared) if devices else jax.device_put(data, shared)

    def placed(tree: Any) -> Any:
        if is_spread:
            return placed_members(tree, uniform)
        return jax.tree.map(lambda _: uniform, tree)

    def over_members(f: Any) -> Any:
        """f of one member's trees as an f of all; `rest` is the same for each."""

        def on_device(trees: Any, rest: Any) -> Any:
            one = partial(_call_one, f, rest)
            if width == 1:
                return jax.lax.map(one, trees)
            return jax.lax.map(one, trees, batch_size=width)

        def on_groups(trees: Any, rest: Any) -> Any:
            """Within a group of devices the compiler splits what a member has."""
            num_groups = mesh.shape[MEMBER]
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                if num_groups == 1:
                    return on_device(trees, rest)
                by_group = partial(_fold, num_groups)
                of_groups = jax.vmap(on_device, (0, None), spmd_axis_name=MEMBER)
                out = of_groups(jax.tree.map(by_group, trees), rest)
                return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

        on_devices = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(by_member, PartitionSpec()),
            out_specs=by_member,
            check_vma=False,
        )

        def on_all(trees: Any, rest: Any) -> Any:
            trees = jax.tree.map(partial(_pad, num_padded), trees)
            out = (on_groups if is_spread else on_devices)(trees, rest)
            return jax.tree.map(lambda x: x[:num_members], out)

        return on_all

    # Traced once, for the shapes of its metrics and for the program.
    stage = stage._replace(step=jax.jit(stage.step, inline=True))
    init_all = over_members(stage.init)
    one_run = partial(run_member, stage)
    run_all = over_members(partial(one_run, keep=constrained) if is_spread else one_run)
    evaluate_all = over_members(partial(guarded_scores, stage))

    def init(params: Params | None) -> StageState:
        keys = jnp.stack([jax.random.key(int(label["seed"])) for label in labels])
        members = (keys, member_hypers(hypers, labels), params)

        program = jax.jit(lambda *trees: init_all(trees, ()), out_shardings=of_states)
        return program(*members)

    of_states: Any = uniform  # until it is known what they are
    of_states = placed(jax.eval_shape(init, None)) if is_spread else uniform

    @partial(
        jax.jit,
        donate_argnums=() if keeps_states else (0, 1),
        in_shardings=(of_states, uniform, shared, shared),
        out_shardings=(of_states, uniform),
    )
    @traced_once
    def run(
        states: StageState, metrics: Metrics, num_steps: Array, data: Data
    ) -> tuple[StageState, Metrics]:
        return run_all((states, metrics), (num_steps, data))

    @partial(jax.jit, in_shardings=(of_states, shared), out_shardings=uniform)
    @traced_once
    def evaluate(states: StageState, data: Data) -> Metrics:
        return evaluate_all((states,), (data,))

    @cache
    def metric_shapes() -> Metrics:
        metrics_all = over_members(partial(step_metrics, stage))
        states = jax.eval_shape(init, None)
        return jax.eval_shape(lambda *rest: metrics_all(rest, (data,)), states)

    devices = [*mesh.devices.flat]
    return Population(
        labels,
        where,
        data,
        init,
        Program(run, devices, is_spread),
        Program(evaluate, devices, is_spread),
        metric_shapes,
        cache(partial(numbers_read, stage, data)),
        placed,
    )


def step_metrics(stage: Stage, state: StageState, data: Data) -> Metrics:
    """The metrics of one member's step; ConfigError if it breaks its form."""
    new, metrics = stage.step(state, data)

    def shape(x: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    check_step(state, *jax.tree.map(shape, (new, metrics)))
    return metrics


def traced_once(f: Any) -> Any:
    """f, whose second trace is an error: its program would be compiled twice."""
    traces: list[None] = []

    def once(*args: Any) -> Any:
        traces.append(None)
        if len(traces) > 1:
            raise RuntimeError(f"the program {f.__name__!r} was traced a second time")
        return f(*args)

    return once


def described(tree: Any, sharding: NamedSharding) -> Any:
    """Shapes of arrays that lie on devices which are not here."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def _call_one(f: Any, rest: tuple[Any, ...], trees: tuple[Any, ...]) -> Any:
    return f(*trees, *rest)


def _fold(num_groups: int, x: Array) -> Array:
    return x.reshape(num_groups, -1, *x.shape[1:])


def _pad(num_padded: int, x: Array) -> Array:
    return jnp.concatenate([x, jnp.repeat(x[:1], num_padded, 0)]) if num_padded else x


def run_member(
    stage: Stage,
    state: StageState,
    metrics: Metrics,
    num_steps: Array,
    data: Data,
    keep: Callable[[StageState], StageState] = lambda state: state,
) -> tuple[StageState, Metrics]:
    """num_steps guarded steps of one member, their metrics added to those so far.

    `keep` says how the state of a member that is spread over devices stays laid out.

    num_steps is traced: one program serves chunks of every length, so that how a run is
    cut into chunks changes nothing, bit for bit.
    """

    def body(_: int, carry: tuple[StageState, Metrics]) -> tuple[StageState, Metrics]:
        state, metrics = carry
        state, new = guarded_step(stage, state, data)
        return keep(state), jax.tree.map(jnp.add, metrics, new)

    return jax.lax.fori_loop(0, num_steps, body, (state, metrics))


def guarded_step(
    stage: Stage, state: StageState, data: Data
) -> tuple[StageState, Metrics]:
    """A step of a running member; one that fails is frozen as it was before the step.

    A member fails when its loss or a parameter is not finite, or when the stage says so
    in `status`. A frozen member adds nothing to the metrics.
    """
    new, metrics = stage.step(state, data)
    loss: Mean = metrics["loss"]
    finite = [jnp.isfinite(loss.total)]
    finite += [jnp.isfinite(x).all() for x in jax.tree.leaves(new.params)]
    status = jnp.where(jnp.stack(finite).all(), new.status, DIVERGED)
    status = jnp.where(state.status == RUNNING, status, state.status)
    goes_on = status == RUNNING
    new = jax.tree.map(partial(jnp.where, goes_on), new, state)
    metrics = jax.tree.map(lambda x: jnp.where(goes_on, x, 0), metrics)
    return new._replace(status=status), metrics


def guarded_scores(stage: Stage, state: StageState, data: Data) -> Metrics:
    """The evaluation of a member; means over nothing of one that diverged."""
    scores, is_whole = stage.evaluate(state, data), state.status != DIVERGED
    return jax.tree.map(lambda x: jnp.where(is_whole, x, 0), scores)
