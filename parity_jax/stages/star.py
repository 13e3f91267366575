"""STaR: sample, keep what is right, train on it by next-token prediction (section 4).

    for every round:
        x_1 .. x_N ~ prompts;  y_i ~ pi^(1/temperature)(. | x_i)
        kept = {(x_i, y_i) : reward_i = 1}
        params <- reference, if restart
        num_epochs times over kept, in shuffled minibatches:
            params <- AdamW(params, grad of the next-token loss)

One step of this stage is one round. The kept set has no fixed size: it is moved to the
front, and only as many minibatches run as it fills.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.blocks import at_most
from parity_jax.config import require, require_positive
from parity_jax.evaluate import Evaluate
from parity_jax.gradient import response_gradient
from parity_jax.hypers import Hypers
from parity_jax.metrics import Mean, Metrics
from parity_jax.models.model import Model, ModelConfig
from parity_jax.objectives import Target, next_token_loss
from parity_jax.optim import OptimizerConfig
from parity_jax.stages.rollout import (
    Rollout,
    RolloutConfig,
    check_noise,
    make_sampler,
    rollout_metrics,
)
from parity_jax.stages.stage import Stage, StageConfig, StepKeys, evaluator, make_init
from parity_jax.tasks.task import BINARY, Task
from parity_jax.types import NOTHING_KEPT, Data, Key, Params, StageState

KEPT = 1 - 1e-5  # the least reward of a sample that is kept


@dataclass(frozen=True)
class StarConfig(StageConfig):
    """STaR (paper section 4); one step is one round."""

    kind: ClassVar[str] = "star"
    rollout: RolloutConfig = field(
        default_factory=lambda: RolloutConfig(num_prompts=2048, num_generations=1)
    )
    batch_size: int = 64
    num_epochs: int = 3  # passes over the kept samples of a round
    restart: bool = False  # every round starts from the parameters of the parent run
    decay: bool = False  # the learning rate falls linearly to 0 over each round
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "num_epochs")
        samples = self.rollout.num_responses
        divides = samples % self.batch_size == 0
        allowed = f"must divide the {samples} samples of a round"
        require(divides, "batch_size", self.batch_size, allowed)
        warmup = self.optimizer.warmup_steps
        allowed = "must be 0 with STaR: a step is a round, at rate 0 it is lost"
        require(warmup == 0, "optimizer.warmup_steps", warmup, allowed)

    @property
    def sequences_per_step(self) -> int:
        return self.rollout.num_responses

    def make(self, task: Task, model: Model, evaluate: Evaluate) -> Stage:
        return make_star(self, task, model, evaluate)

    def check(self, model: ModelConfig, hypers: Hypers) -> None:
        check_kept(self.rollout, hypers)
        check_noise(self.rollout, hypers)


def make_star(cfg: StarConfig, task: Task, model: Model, evaluate: Evaluate) -> Stage:
    """The stage of a config; ConfigError for rewards that do not exist."""
    optimizer = cfg.optimizer.make()
    sampler = make_sampler(cfg.rollout, task, model)
    num_samples, short_len = cfg.rollout.num_responses, task.format.short_len

    def gradient(
        params: Params, kept: Rollout, weight_B: Array
    ) -> tuple[Params, Metrics]:
        """Of the next-token loss of the rows with weight."""
        num_sequences = weight_B.sum()
        target = Target(
            kept.response.token, kept.response.mask & weight_B[:, None, None]
        )
        grads, loss, metrics = response_gradient(
            lambda scores, target: next_token_loss(scores, target, num_sequences),
            model,
            params,
            kept.prompt,
            target,
            short_len,
        )
        return grads, metrics | {"loss": Mean.over(loss)}

    def epoch(
        key: Key, index: Array, state: StageState, metrics: Metrics, samples: Rollout
    ) -> tuple[StageState, Metrics]:
        """All kept samples once, shuffled; the last minibatch may be part full."""
        kept_N = is_kept(samples)
        shuffled = jax.random.uniform(key, kept_N.shape)
        order_N = jnp.argsort(jnp.where(kept_N, shuffled, 2.0))
        num_kept = kept_N.sum()
        num_minibatches = -(-num_kept // cfg.batch_size)

        def minibatch(i: Array, carry: tuple[Params, Any, Metrics]) -> tuple:
            params, opt_state, metrics = carry
            start = i * cfg.batch_size
            rows_B = jax.lax.dynamic_slice_in_dim(order_N, start, cfg.batch_size)
            weight_B = start + jnp.arange(cfg.batch_size) < num_kept
            part = jax.tree.map(lambda x: x[rows_B], samples)
            grads, new = gradient(params, part, weight_B)
            done = (index + i / num_minibatches) / cfg.num_epochs
            factor = 1.0 - done if cfg.decay else 1.0
            before = state._replace(params=params, opt_state=opt_state)
            after, grad_norm = optimizer.apply(before, grads, factor)
            new["grad_norm"] = Mean.over(grad_norm)
            return after.params, after.opt_state, jax.tree.map(jnp.add, metrics, new)

        first = (state.params, state.opt_state, metrics)
        with at_most(-(-len(kept_N) // cfg.batch_size)):
            params, opt_state, metrics = jax.lax.fori_loop(
                0, num_minibatches, minibatch, first
            )
        return state._replace(params=params, opt_state=opt_state), metrics

    def step(state: StageState, data: Data) -> tuple[StageState, Metrics]:
        keys = StepKeys.of(state)
        rollout = sampler(state, keys, data)
        samples = flatten_groups(rollout)
        num_kept = is_kept(samples).sum()
        if cfg.restart:
            state = state._replace(
                params=state.reference,
                opt_state=optimizer.transformation.init(state.reference),
            )
        names = ("loss", "token_loss", "grad_norm")
        metrics = {name: Mean(jnp.float32(0), jnp.float32(0)) for name in names}

        def next_epoch(
            index: Array, carry: tuple[StageState, Metrics]
        ) -> tuple[StageState, Metrics]:
            key = jax.random.fold_in(keys.update, index)
            return epoch(key, index, *carry, samples=samples)

        with at_most(cfg.num_epochs):
            state, metrics = jax.lax.fori_loop(
                0, cfg.num_epochs, next_epoch, (state, metrics)
            )
        num_updates = cfg.num_epochs * -(-num_kept // cfg.batch_size)
        metrics |= rollout_metrics(rollout, task) | {
            "kept_ratio": Mean(num_kept.astype(jnp.float32), jnp.float32(num_samples)),
            "kept_p_long": Mean.over(
                task.is_long(samples.response.token), is_kept(samples)[:, None]
            ),
            "updates": Mean.over(num_updates.astype(jnp.float32)),
        }
        status = jnp.where(num_kept == 0, NOTHING_KEPT, state.status)
        return state._replace(step=state.step + 1, status=status), metrics

    return Stage(
        init=make_init(model, optimizer.transformation, cfg.restart),
        step=step,
        evaluate=evaluator(evaluate),
    )


def check_kept(cfg: RolloutConfig, hypers: Hypers) -> None:
    """ConfigError where no sample can have reward 1: a price of length, or weights of
    0/1 rewards that do not add up to it.
    """
    allowed = "must be 0 with STaR: it keeps samples whose reward is 1"
    price = hypers.length_price
    require(price == 0, "length_price", price, allowed)
    if {*cfg.rewards} <= {*BINARY}:
        most, weights = sum(max(w, 0) for w in cfg.weights.values()), cfg.reward_weights
        allowed = f"must add up to 1 with STaR, not {most:g}: {allowed.split(': ')[1]}"
        require(most >= KEPT, "stage.rollout.reward_weights", weights, allowed)


def flatten_groups(rollout: Rollout) -> Rollout:
    """G responses to each of B prompts as N = B * G prompts with one response each."""
    num_generations = rollout.reward.shape[1]

    def one_each(x_BxG: Array) -> Array:
        return x_BxG.reshape(-1, 1, *x_BxG.shape[2:])

    def repeated(x: Array) -> Array:
        return jnp.repeat(x, num_generations, 0)

    return Rollout(
        prompt=jax.tree.map(repeated, rollout.prompt),
        response=jax.tree.map(one_each, rollout.response),
        reward=one_each(rollout.reward),
        correct=one_each(rollout.correct),
        flags=jax.tree.map(one_each, rollout.flags),
    )


def is_kept(samples: Rollout) -> Array:
    """Whether the reward of a sample is 1 or more, N.

    Rewards are weighted sums: weights that add up to 1 may not in float32.
    """
    return samples.reward[:, 0] >= KEPT
