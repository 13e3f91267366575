"""Many members in one program: the only place that knows there is more than one.

Members are the product of named axes (`p_cot`, `seed`, ...). They are sharded over the
devices, and on a device run `vmap_width` at a time, one group after the other.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parity_jax.axes import Axes, member_hypers, member_labels
from parity_jax.config import (
    Label,
    require,
    require_count,
)
from parity_jax.hosts import is_alone, spread_over_hosts
from parity_jax.hypers import Hypers
from parity_jax.member import guarded_scores, run_member, step_metrics
from parity_jax.mesh import (
    MEMBER,
    MeshConfig,
    constrained,
    mesh_of,
    mesh_of_rows,
    placed_members,
)
from parity_jax.metrics import Metrics
from parity_jax.program import Program
from parity_jax.stages import Stage
from parity_jax.stages.contract import (
    check_names,
    check_scores,
    numbers_read,
)
from parity_jax.types import Data, Key, Params, StageState

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


class Population(NamedTuple):
    """The programs of all members; states and metrics have P in front."""

    labels: list[Label]
    layout: "Layout"
    data: Data
    init: Any  # (params_P or None, their parents' keys_P or None) -> states
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

    def shapes(self) -> tuple[StageState, Metrics, Metrics]:
        """Shapes of states, metrics and evaluation; traces all, compiles none."""
        arguments = self.arguments()
        self.run.require_room(arguments[0])
        self.run.eval_shape(*arguments)
        scores = self.evaluate.eval_shape(arguments[0], self.data)
        check_scores(scores, len(self.labels))
        for where, means in (("step", arguments[1]), ("evaluate", scores)):
            check_names(f"stage.{where}", means, self.labels[0])
        return arguments[0], arguments[1], scores

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
        both = f"{cfg.vmap_width} with mesh.fsdp={spread.fsdp}, "
        both += f"mesh.tensor={spread.tensor}"
        allowed = "must be 0 or 1, or without a mesh"
        require(cfg.vmap_width <= 1, "population.vmap_width", both, allowed)
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
    mesh = where.mesh
    is_whole = num_members % mesh.shape[MEMBER] == 0
    # States come from init, a checkpoint or the step before: always laid out alike.
    uniform = NamedSharding(mesh, PartitionSpec(MEMBER if is_whole else None))
    shared = NamedSharding(mesh, PartitionSpec())
    data = described(data, shared) if devices else jax.device_put(data, shared)

    def placed(tree: Any) -> Any:
        if is_spread:
            return placed_members(tree, uniform)
        return jax.tree.map(lambda _: uniform, tree)

    # Traced once, for the shapes of its metrics and for the program.
    stage = stage._replace(step=jax.jit(stage.step, inline=True))
    of_all = partial(
        over_members, where=where, num_members=num_members, is_spread=is_spread
    )
    init_all = of_all(stage.init)
    one_run = partial(run_member, stage)
    run_all = of_all(partial(one_run, keep=constrained) if is_spread else one_run)
    evaluate_all = of_all(partial(guarded_scores, stage))

    def init(params: Params | None, parent_keys: Key | None = None) -> StageState:
        seeds = [int(label["seed"]) for label in labels]
        if parent_keys is None:
            keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        else:  # else a child would draw again what its parent of this seed drew
            keys = jax.vmap(jax.random.fold_in)(parent_keys, np.array(seeds, np.uint32))
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
        metrics_all = of_all(partial(step_metrics, stage))
        states = jax.eval_shape(init, None)
        return jax.eval_shape(lambda *rest: metrics_all(rest, (data,)), states)

    @cache
    def numbers() -> set[str]:
        """A member that is spread says how its arrays lie on the devices of a mesh."""
        within = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
        with within if is_spread else nullcontext():
            return numbers_read(stage, data)

    devices = [*mesh.devices.flat]
    return Population(
        labels,
        where,
        data,
        init,
        Program(run, devices, is_spread),
        Program(evaluate, devices, is_spread),
        metric_shapes,
        numbers,
        placed,
    )


def over_members(f: Any, where: Layout, num_members: int, is_spread: bool) -> Any:
    """f(*trees, *rest) of one member as an f(trees, rest) of all.

    `rest` is the same for each; members that fill up the last device are thrown away.
    """
    mesh, width = where
    by_member = PartitionSpec(MEMBER)
    num_padded = -num_members % mesh.shape[MEMBER]  # copies of member 0

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
