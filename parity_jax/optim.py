"""AdamW and plain SGD whose learning rate is a traced number of the member.

The gradient transformation has unit learning rate; the step is scaled last, so that
members with different learning rates share one program.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from parity_jax.types import Params, StageState


def adamw(weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Adam(0.9, 0.999, 1e-8) direction plus decoupled decay, ascending sign.

    With weight_decay = w, `apply` moves params by -learning_rate * (Adam + w * params).
    """
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(weight_decay))


def sgd() -> optax.GradientTransformation:
    """The gradient itself: `apply` moves params by -learning_rate * gradient."""
    return optax.identity()


def cosine_decay(decay_steps: int, final_ratio: float) -> optax.Schedule:
    """Factor of the learning rate at a step: from 1 to final_ratio; 1 if no steps."""
    if decay_steps == 0:
        return optax.constant_schedule(1.0)
    return optax.cosine_decay_schedule(1.0, decay_steps, final_ratio)


def apply(
    optimizer: optax.GradientTransformation,
    state: StageState,
    grads: Params,
    factor: Array | float = 1.0,
) -> tuple[StageState, Array]:
    """One optimizer step at factor * learning rate, and the norm of the gradient.

    The step counter of the stage is not touched.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    learning_rate = factor * jnp.asarray(state.hypers.learning_rate)
    updates = jax.tree.map(lambda u: -learning_rate * u, updates)
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, opt_state=opt_state), optax.tree.norm(grads)
