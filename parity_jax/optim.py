"""AdamW and plain SGD whose learning rate is a traced number of the member.

The gradient transformation has unit learning rate; the step is scaled last, so that
members with different learning rates share one program. Parameters, gradients and
moments are float32; a model that computes in bfloat16 rounds its parameters as it goes.
That is the arithmetic of bfloat16 parameters beside float32 masters, in 4 bytes a
parameter instead of 6.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from parity_jax.config import require, require_count, require_default, require_finite
from parity_jax.types import Params, StageState

UNDECAYED = ("bias", "scale")  # of layers and norms


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters follow gradients, in every stage; the rate itself is traced."""

    name: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0  # of kernels and embeddings, not of norms and biases
    b1: float = 0.9  # of Adam's mean gradient
    b2: float = 0.999  # of its mean square
    eps: float = 1e-8  # added to the root of the latter
    max_grad_norm: float = 0.0  # gradients are scaled down to this norm; 0: as they are
    # The learning rate rises linearly from 0, at the first step of the stage, to all of
    # itself at step warmup_steps. Then it falls along a cosine (0: it stays) to
    # final_lr_ratio of itself at step decay_steps, and stays there. A constant rate of
    # 1e-3 leaves noise in the logits as large as the margin at p_cot = 0.25.
    warmup_steps: int = 0
    decay_steps: int = 0
    final_lr_ratio: float = 0.05

    def __post_init__(self) -> None:
        warmup, decay = self.warmup_steps, self.decay_steps
        require_count(self, "warmup_steps", "none")
        require_count(self, "decay_steps", "constant learning rate")
        allowed = f"must be 0 or more than warmup_steps={warmup}, which it includes"
        require(decay == 0 or decay > warmup, "decay_steps", decay, allowed)
        require_finite(self, "final_lr_ratio", high=1.0)
        require_finite(self, "weight_decay", "max_grad_norm")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            inside = value >= 0 and float(np.float32(value)) < 1
            require(inside, name, value, "must be in [0, 1), as float32 has it")
        require_finite(self, "eps", low=1e-30)
        is_adamw, names = self.name == "adamw", ("weight_decay", "b1", "b2", "eps")
        require_default(self, is_adamw, "with name='sgd'", *names)
        require_default(self, decay > 0, "with decay_steps=0", "final_lr_ratio")

    def make(self) -> "Optimizer":
        """The optimizer and the schedule of its learning rate."""
        parts = []
        if self.max_grad_norm > 0:
            parts.append(optax.clip_by_global_norm(self.max_grad_norm))
        if self.name == "adamw":
            parts.append(optax.scale_by_adam(self.b1, self.b2, self.eps))
            parts.append(optax.add_decayed_weights(self.weight_decay, mask=is_decayed))
        transformation = optax.chain(*parts) if parts else optax.identity()
        return Optimizer(transformation, self._schedule())

    def _schedule(self) -> optax.Schedule:
        warmup, decay = self.warmup_steps, self.decay_steps
        rest = optax.constant_schedule(1.0)
        if decay > 0:
            length = decay - warmup
            rest = optax.cosine_decay_schedule(1.0, length, self.final_lr_ratio)
        if warmup == 0:
            return rest
        rise = optax.linear_schedule(0.0, 1.0, warmup)
        return optax.join_schedules([rise, rest], [warmup])


class Optimizer(NamedTuple):
    """A direction and a factor of the learning rate."""

    transformation: optax.GradientTransformation
    schedule: optax.Schedule

    def apply(
        self, state: StageState, grads: Params, factor: Array | float = 1.0
    ) -> tuple[StageState, Array]:
        """One update at factor * learning rate; the norm of the gradient, unclipped.

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
