"""One member: its steps, one after the other, and its scores, until it fails."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.metrics import Mean, Metrics
from parity_jax.stages import Stage
from parity_jax.stages.contract import check_step
from parity_jax.types import DIVERGED, RUNNING, Data, StageState


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

    A member fails when its loss, the norm of its gradient (whose squares Adam divides
    by) or a parameter is not finite, or when the stage says so in `status`. A frozen
    member adds nothing to the metrics.
    """
    new, metrics = stage.step(state, data)
    told: list[Mean] = [metrics[x] for x in ("loss", "grad_norm") if x in metrics]
    finite = [jnp.isfinite(x.total).all() for x in told]
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


def step_metrics(stage: Stage, state: StageState, data: Data) -> Metrics:
    """The metrics of one member's step; ConfigError if it breaks its form."""
    new, metrics = stage.step(state, data)

    def shape(x: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    check_step(state, *jax.tree.map(shape, (new, metrics)))
    return metrics
