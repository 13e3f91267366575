"""AdamW and plain SGD whose learning rate is a traced number of the member.

The gradient transformation has unit learning rate; the step is scaled last, so that
members with different learning rates share one program.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from parity_jax.config import require, require_finite
from parity_jax.types import Params, StageState

UNDECAYED = ("bias", "scale")  # of layers and norms


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters follow gradients, in every stage; the rate itself is traced."""

    name: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0  # of kernels and embeddings, not of norms and biases
    # The learning rate falls along a cosine over decay_steps steps of the stage (0: it
    # is constant) to final_lr_ratio of itself, and stays there. A constant rate of 1e-3
    # leaves noise in the logits that is as large as the margin at p_cot = 0.25.
    decay_steps: int = 0
    final_lr_ratio: float = 0.05

    def __post_init__(self) -> None:
        allowed = "must be 0 (constant learning rate) or positive"
        require(self.decay_steps >= 0, "decay_steps", self.decay_steps, allowed)
        require_finite(self, "final_lr_ratio", high=1.0)
        require_finite(self, "weight_decay")
        allowed = "must be 0 with name='sgd'"
        is_adam = self.name == "adamw"
        decay = self.weight_decay
        require(is_adam or decay == 0, "weight_decay", decay, allowed)

    def make(self) -> "Optimizer":
        """The optimizer and the schedule of its learning rate."""
        if self.name == "sgd":
            return Optimizer(optax.identity(), self._schedule())
        decay = optax.add_decayed_weights(self.weight_decay, mask=is_decayed)
        return Optimizer(optax.chain(optax.scale_by_adam(), decay), self._schedule())

    def _schedule(self) -> optax.Schedule:
        if self.decay_steps == 0:
            return optax.constant_schedule(1.0)
        return optax.cosine_decay_schedule(1.0, self.decay_steps, self.final_lr_ratio)


class Optimizer(NamedTuple):
    """A direction (Adam's has 0.9, 0.999, 1e-8) and a factor of the learning rate."""

    transformation: optax.GradientTransformation
    schedule: optax.Schedule

    def apply(
        self, state: StageState, grads: Params, factor: Array | float = 1.0
    ) -> tuple[StageState, Array]:
        """One update at factor * learning rate, and the norm of the gradient.

        params <- params - rate * (direction + weight_decay * params). The step counter
        of the stage, which the schedule reads, is not touched.
        """
        update = self.transformation.update
        updates, opt_state = update(grads, state.opt_state, state.params)
        factor = factor * self.schedule(state.step)
        learning_rate = factor * jnp.asarray(state.hypers.learning_rate)
        updates = jax.tree.map(lambda u: -learning_rate * u, updates)
        params = optax.apply_updates(state.params, updates)
        state = state._replace(params=params, opt_state=opt_state)
        return state, optax.tree.norm(grads)


def is_decayed(params: Params) -> Params:
    """For every parameter whether weight decay applies to it."""

    def by_name(path: tuple, leaf: Array) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return name not in UNDECAYED

    return jax.tree_util.tree_map_with_path(by_name, params)
