"""Whether a stage's functions return what everything else relies on."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from parity_jax.config import require
from parity_jax.hypers import Hypers
from parity_jax.metrics import Mean
from parity_jax.stages.stage import Stage
from parity_jax.types import Data, StageState, path_text


def check_step(before: StageState, after: Any, metrics: Any) -> None:
    """ConfigError unless a step keeps the form of the state; of shapes only."""
    is_state, kind = isinstance(after, StageState), type(after).__name__
    require(is_state, "stage.step", kind, "must return a StageState and metrics")
    old, new = forms(before), forms(after)
    for name in {**old, **new}:
        there, here = old.get(name, "nothing"), new.get(name, "nothing")
        allowed = f"must be {there}, as init makes it"
        require(there == here, f"stage.step {name}", here, allowed)
    check_means("stage.step", metrics, ())
    require("loss" in metrics, "stage.step", [*metrics], "must have the metric 'loss'")


def check_scores(scores: Any, num_members: int) -> None:
    """ConfigError unless evaluation gives means of every member, at least one."""
    check_means("stage.evaluate", scores, (num_members,))
    require(bool(scores), "stage.evaluate", scores, "must return at least one score")


def numbers_read(stage: Stage, data: Data) -> set[str]:
    """Names of the numbers that change a member's parameters, metrics or scores.

    It is traced, not run; what loops of unknown length carry counts as read.
    """
    names = [field.name for field in dataclasses.fields(Hypers)]
    number = jax.ShapeDtypeStruct((), jnp.float32)
    hypers = Hypers(**dict.fromkeys(names, number))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(stage.init, key, hypers, None)

    def member(hypers: Hypers, key: Any, state: StageState, data: Data) -> Any:
        before, start = state._replace(hypers=hypers), stage.init(key, hypers, None)
        after, metrics = stage.step(before, data)
        others = [(x.params, x.opt_state, x.status) for x in (start, after)]
        return (others, metrics, stage.evaluate(before, data)), after.hypers

    traced = jax.make_jaxpr(member)(hypers, key, state, data).jaxpr
    num_changed = len(traced.outvars) - len(names)

    def read_for(is_output: list[bool]) -> set[str]:
        _, is_read = dce_jaxpr(traced, is_output)
        return {name for name, read in zip(names, is_read, strict=False) if read}

    found = read_for([i < num_changed for i in range(len(traced.outvars))])
    for _ in names:  # those of which a stage makes the numbers of its next step
        for i, name in enumerate(names, num_changed):
            if name in found:
                found |= read_for([i == j for j in range(len(traced.outvars))])
    return found


def check_names(where: str, names: Iterable[str], axes: Iterable[str]) -> None:
    """ConfigError for a metric that could not be told apart when it is loaded."""
    taken = ["sequences", "step", *axes]
    for name in names:
        is_free = name.strip().isprintable() and bool(name.strip())
        is_free &= name not in taken
        allowed = f"must be printable and none of {', '.join(taken)}, which label it"
        require(is_free, f"{where} metric", name, allowed)


def check_means(where: str, metrics: Any, shape: tuple[int, ...]) -> None:
    """ConfigError unless these are metrics: a real number of a member each."""
    is_right, kind = isinstance(metrics, Mapping), type(metrics).__name__
    require(is_right, where, kind, "must return metrics by their names")
    for name, mean in metrics.items():
        is_right = isinstance(name, str) and isinstance(mean, Mean)
        allowed = "must be a metrics.Mean under a name"
        require(is_right, f"{where} {name}", type(mean).__name__, allowed)
        for part in (mean.total, mean.count):
            own = part.shape[len(shape) :]
            require(own == (), f"{where} {name}", own, "must be one number, shape ()")
            is_real = jnp.issubdtype(part.dtype, jnp.floating)
            is_real |= jnp.issubdtype(part.dtype, jnp.integer)
            require(
                is_real, f"{where} {name}", str(part.dtype), "must be a real number"
            )


def forms(state: StageState) -> dict[str, str]:
    """Type and shape of every leaf, by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {path_text(path): f"{x.dtype}{[*x.shape]}" for path, x in leaves}
