"""REINFORCE, RLOO and the GRPO family (paper section 4), from one loss.

for every step:
    x_1 .. x_B ~ prompts;  y_bg ~ pi^(1/temperature)(. | x_b),  g = 1 .. G
    A_bg = (reward_bg - baseline) / (std + eps)
    repeat num_iterations times, over num_minibatches parts of the prompts:
        params <- Adam(params, grad of the clipped surrogate of A and pi / pi_old)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax import optim
from parity_jax.config import PolicyGradientConfig
from parity_jax.decode import tempered
from parity_jax.evaluate import Evaluate
from parity_jax.gradient import response_gradient
from parity_jax.masked import Mean, Metrics, has_ended
from parity_jax.models import Model, response_logits
from parity_jax.objectives import (
    PolicyTarget,
    advantages,
    is_zero_std,
    kl_estimate,
    policy_loss,
    policy_target,
    token_log_probs,
)
from parity_jax.stages.rollout import (
    Rollout,
    Sampler,
    resolve_rewards,
    rollout_metrics,
)
from parity_jax.stages.stage import Stage, StepKeys, evaluator, make_init
from parity_jax.types import Params, StageState, Task


class Minibatch(NamedTuple):
    """What one optimizer step reads; every leaf has the prompts in front."""

    rollout: Rollout
    mask: Array  # BxGxT, tokens that carry loss
    advantage: Array  # BxG
    reference_log_prob: Array | None  # BxGxT


def make_policy_gradient(
    cfg: PolicyGradientConfig, task: Task, model: Model, evaluate: Evaluate
) -> Stage:
    """The stage of a config; ConfigError for rewards that do not exist."""
    optimizer = optim.adamw() if cfg.optimizer == "adam" else optim.sgd()
    sampler = Sampler(cfg.rollout, task, model, resolve_rewards(cfg.rollout, task))

    def log_probs(params: Params, rollout: Rollout, temperature: Array) -> Array:
        logits = response_logits(model, params, rollout.prompt, rollout.response.token)
        return token_log_probs(tempered(logits, temperature), rollout.response.token)

    def prepare(state: StageState, rollout: Rollout) -> Minibatch:
        """Advantages and the mask of the tokens that carry loss."""
        reward_BxG, reference = rollout.reward, None
        mask = rollout.response.mask
        if cfg.kl_estimator != "none":
            temperature = state.hypers.temperature
            reference = log_probs(state.reference, rollout, temperature)
            if cfg.kl_in == "reward":
                kl = kl_estimate(rollout.response.log_prob, reference, cfg.kl_estimator)
                reward_BxG -= state.hypers.beta * jnp.where(mask, kl, 0).sum(-1)
        if cfg.mask_truncated_completions:
            mask &= has_ended(rollout.response.token)[..., None]
        if cfg.zero_std_groups != "keep":
            mask &= ~is_zero_std(rollout.reward)[:, None, None]
        return Minibatch(rollout, mask, advantages(reward_BxG, cfg), reference)

    def update(
        state: StageState, part: Minibatch, rollout_tokens: Array
    ) -> tuple[StageState, Metrics]:
        response = part.rollout.response
        target = policy_target(
            response.token,
            part.mask,
            response.log_prob,
            part.reference_log_prob,
            part.advantage,
            rollout_tokens,
            cfg.loss_type,
        )

        def loss_fn(logits: Array, target: PolicyTarget) -> tuple[Array, Metrics]:
            logits = tempered(logits, state.hypers.temperature)
            return policy_loss(logits, target, state.hypers, cfg)

        grads, loss, metrics = response_gradient(
            loss_fn, model, state.params, part.rollout.prompt, target, task.short_len
        )
        state, grad_norm = optim.apply(optimizer, state, grads)
        means = {"loss": Mean.over(loss), "grad_norm": Mean.over(grad_norm)}
        return state, metrics | means

    def step(state: StageState) -> tuple[StageState, Metrics]:
        rollout, effective_ratio = draw_rollout(cfg, sampler, state)
        batch = prepare(state, rollout)
        rollout_tokens = batch.mask.sum() / cfg.num_minibatches
        parts = jax.tree.map(
            lambda x: x.reshape(cfg.num_minibatches, -1, *x.shape[1:]), batch
        )

        def one_pass(state: StageState, _: None) -> tuple[StageState, Metrics]:
            return jax.lax.scan(lambda s, p: update(s, p, rollout_tokens), state, parts)

        state, metrics = jax.lax.scan(one_pass, state, length=cfg.num_iterations)
        metrics = jax.tree.map(jnp.sum, metrics)  # (total, count) of all updates
        metrics |= rollout_metrics(rollout, task) | {
            "effective_rollout_ratio": Mean.over(effective_ratio),
            "advantage_abs": Mean.over(jnp.abs(batch.advantage)),
            "updates": Mean.over(jnp.float32(cfg.num_iterations * cfg.num_minibatches)),
        }
        return state._replace(step=state.step + 1), metrics

    return Stage(
        init=make_init(model, optimizer, cfg.kl_estimator != "none"),
        step=step,
        evaluate=evaluator(evaluate),
        sequences_per_step=cfg.rollout.num_prompts * cfg.rollout.num_generations,
    )


def draw_rollout(
    cfg: PolicyGradientConfig, sampler: Sampler, state: StageState
) -> tuple[Rollout, Array]:
    """The rollout of a step, and the share of the drawn groups that it uses.

    zero_std_groups="resample" draws up to max_resamples further batches; their groups
    that carry signal take the places of those that do not.
    """
    keys = StepKeys.of(state)
    rollout = sampler(state, keys)
    if cfg.zero_std_groups != "resample":
        return rollout, jnp.float32(1)

    def wanting(carry: tuple[Rollout, Array]) -> Array:
        rollout, num_draws = carry
        return is_zero_std(rollout.reward).any() & (num_draws <= cfg.max_resamples)

    def replace(carry: tuple[Rollout, Array]) -> tuple[Rollout, Array]:
        old, num_draws = carry
        new = sampler(
            state, StepKeys(*(jax.random.fold_in(k, num_draws) for k in keys))
        )
        return fill_groups(old, new), num_draws + 1

    rollout, num_draws = jax.lax.while_loop(wanting, replace, (rollout, jnp.int32(1)))
    return rollout, 1 / num_draws.astype(jnp.float32)


def fill_groups(old: Rollout, new: Rollout) -> Rollout:
    """`old` with its zero-std groups replaced by groups of `new` that are not."""
    is_empty_B, is_useful_B = is_zero_std(old.reward), ~is_zero_std(new.reward)
    rank_B = (
        jnp.cumsum(is_empty_B) - 1
    )  # the empty place b takes useful group rank_B[b]
    source_B = jnp.argsort(~is_useful_B, stable=True)[rank_B]
    is_filled_B = is_empty_B & (rank_B < is_useful_B.sum())

    def fill(old: Array, new: Array) -> Array:
        is_filled = is_filled_B.reshape(-1, *[1] * (old.ndim - 1))
        return jnp.where(is_filled, new[source_B], old)

    return jax.tree.map(fill, old, new)
