"""Losses and estimators: pure functions of arrays, each named after what it computes.

Names and formulas follow TRL where it has them. Shapes: rewards and advantages BxG,
everything per token BxGxT.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.hypers import Hypers
from parity_jax.metrics import Mean, Metrics
from parity_jax.policy import TokenScores

Baseline = Literal["none", "batch", "group", "leave_one_out"]
Spread = Literal["none", "batch", "group"]  # whose standard deviation divides
LossType = Literal["grpo", "bnpo", "dapo", "dr_grpo", "reinforce"]
Level = Literal["token", "sequence"]
KlEstimator = Literal["none", "k1", "k2", "k3"]
LengthPrice = Literal["additive", "multiplicative"]

# Bounds of log-ratios before they are exponentiated. Beyond them a token has no
# gradient: that biases, where the exponential would overflow or dwarf all other tokens.
MAX_LOG_RATIO, MAX_KL_LOG_RATIO = 20.0, 10.0


class Target(NamedTuple):
    """What the next-token loss reads beside the scores."""

    token: Array  # BxGxT int
    mask: Array  # BxGxT bool, tokens that carry loss


class PolicyTarget(NamedTuple):
    """What `policy_loss` reads beside the scores; made by `policy_target`."""

    token: Array  # BxGxT int
    mask: Array  # BxGxT bool, tokens that carry loss
    weight: Array  # BxGxT, of a token's loss: one over what loss_type divides by
    entropy_weight: Array  # BxGxT, one over the number of tokens
    advantage: Array  # BxGxT
    # BxGxT, before the first update; None: this is the first, so they are its own
    old_log_prob: Array | None
    reference_log_prob: Array | None  # BxGxT


def next_token_loss(
    scores: TokenScores, target: Target, num_sequences: Array | int
) -> tuple[Array, Metrics]:
    """Mean over sequences of sum_j -log pi(y_j | x, y_<j) (paper section 3)."""
    loss_BxGxT = -scores.log_prob
    loss = jnp.where(target.mask, loss_BxGxT, 0).sum() / num_sequences
    return loss, {"token_loss": Mean.over(loss_BxGxT, target.mask)}


def priced_reward(
    correct_BxG: Array,
    num_tokens_BxG: Array,
    max_tokens: int,
    price: Array,
    form: LengthPrice,
) -> Array:
    """Reward less the price of length; num_tokens does not count EOS.

    additive: r - price * |y| / max_tokens; multiplicative: r * (1 - price * |y| / max).
    """
    cost_BxG = price * num_tokens_BxG / max_tokens
    if form == "additive":
        return correct_BxG - cost_BxG
    return correct_BxG * (1 - cost_BxG)


def advantages(
    reward_BxG: Array, baseline: Baseline, scale_by: Spread, ddof: int, eps: float
) -> Array:
    """(reward - baseline) / (std + eps), BxG; the std is of the batch or the group.

    Where the std is 0 nothing is divided. Mean and std are taken of what lies above the
    least reward: equal rewards then give exactly 0, which rounding would not. NaN where
    the std is not finite, as of rewards whose squares overflow.
    """
    centred_BxG = reward_BxG - _baseline(reward_BxG, baseline)
    if scale_by == "none":
        return centred_BxG
    axis = None if scale_by == "batch" else -1
    above_BxG = reward_BxG - reward_BxG.min(axis, keepdims=True)
    std = above_BxG.std(axis, ddof=ddof, keepdims=True)
    scale = jnp.where(jnp.isfinite(std), jnp.where(std > 0, std + eps, 1), jnp.nan)
    return centred_BxG / scale


def _baseline(reward_BxG: Array, baseline: Baseline) -> Array:
    if baseline == "none":
        return jnp.zeros_like(reward_BxG)
    axis = None if baseline == "batch" else -1
    least = reward_BxG.min(axis, keepdims=True)
    above_BxG = reward_BxG - least
    if baseline != "leave_one_out":
        return least + above_BxG.mean(axis, keepdims=True)
    others_BxG = above_BxG.sum(-1, keepdims=True) - above_BxG
    return least + others_BxG / (reward_BxG.shape[-1] - 1)


def is_zero_std(reward_BxG: Array) -> Array:
    """Whether all rewards of a group are equal, B."""
    return reward_BxG.max(-1) == reward_BxG.min(-1)


def kl_estimate(
    log_prob: Array, reference_log_prob: Array, estimator: KlEstimator
) -> Array:
    """Per-token estimate of KL(policy || reference) from samples of the policy.

    With x = log_prob - reference: k1 = x; k2 = x^2 / 2; k3 = exp(-x) + x - 1, with x
    bounded by MAX_KL_LOG_RATIO.
    """
    x = log_prob - reference_log_prob
    if estimator == "k1":
        return x
    if estimator == "k2":
        return x**2 / 2
    x = jnp.clip(x, -MAX_KL_LOG_RATIO, MAX_KL_LOG_RATIO)
    return jnp.expm1(-x) + x  # near 0 it is x^2 / 2, below the rounding of exp


def token_weights(
    mask_BxGxT: Array, loss_type: LossType, rollout_tokens: Array | float
) -> Array:
    """Weights of the tokens in a loss, BxGxT: one over what loss_type divides by.

    grpo       mean over responses of the mean over their tokens
    bnpo       sum / number of tokens of this minibatch
    dapo       sum / mean number of tokens of a minibatch of this rollout
               (`rollout_tokens`)
    dr_grpo    sum / (number of responses * longest possible response T)
    reinforce  sum / number of responses
    Responses whose mask is empty count in the denominators that count responses.
    """
    num_responses = mask_BxGxT.shape[0] * mask_BxGxT.shape[1]
    denominator = {
        "grpo": num_responses * jnp.maximum(mask_BxGxT.sum(-1, keepdims=True), 1),
        "bnpo": mask_BxGxT.sum(),
        "dapo": rollout_tokens,
        "dr_grpo": num_responses * mask_BxGxT.shape[-1],
        "reinforce": num_responses,
    }[loss_type]
    return jnp.where(mask_BxGxT, 1 / jnp.maximum(denominator, 1), 0.0)


def policy_target(
    token_BxGxT: Array,
    mask_BxGxT: Array,
    old_log_prob_BxGxT: Array | None,
    reference_log_prob_BxGxT: Array | None,
    advantage_BxG: Array,
    rollout_tokens: Array | float,
    loss_type: LossType,
) -> PolicyTarget:
    """The target of one minibatch; every denominator is known before its loss is."""
    return PolicyTarget(
        token_BxGxT,
        mask_BxGxT,
        token_weights(mask_BxGxT, loss_type, rollout_tokens),
        token_weights(mask_BxGxT, "bnpo", rollout_tokens),
        jnp.broadcast_to(advantage_BxG[..., None], mask_BxGxT.shape),
        old_log_prob_BxGxT,
        reference_log_prob_BxGxT,
    )


def policy_loss(
    scores: TokenScores,
    target: PolicyTarget,
    hypers: Hypers,
    level: Level = "token",
    kl_estimator: KlEstimator = "none",
    is_kl_in_loss: bool = True,
) -> tuple[Array, Metrics]:
    """Clipped surrogate with optional KL and entropy terms, and its diagnostics.

    Per token -min(min(c, delta) A, clip(c, 1 - epsilon, 1 + epsilon_high) A), where c
    is the probability ratio to the policy before the first update on these responses,
    exactly 1 in that update: exp(log_ratio) of the token, or
    of the mean over the response's tokens (level="sequence"). The scores are those at
    the sampling temperature: the policy that is trained is the one that was sampled. A
    sum over responses: those of a minibatch may come in parts.
    """
    mask_BxGxT, advantage_BxGxT = target.mask, target.advantage
    log_prob_BxGxT, entropy_BxGxT = scores
    old_BxGxT = target.old_log_prob
    if old_BxGxT is None:
        old_BxGxT = jax.lax.stop_gradient(log_prob_BxGxT)
    log_ratio_BxGxT = jnp.where(mask_BxGxT, log_prob_BxGxT - old_BxGxT, 0)
    if level == "sequence":
        num_tokens_BxGx1 = jnp.maximum(mask_BxGxT.sum(-1, keepdims=True), 1)
        mean_BxGx1 = log_ratio_BxGxT.sum(-1, keepdims=True) / num_tokens_BxGx1
        log_ratio_BxGxT = jnp.broadcast_to(mean_BxGx1, log_ratio_BxGxT.shape)
    ratio_BxGxT = jnp.exp(jnp.minimum(log_ratio_BxGxT, MAX_LOG_RATIO))
    low, high = 1 - hypers.epsilon, 1 + hypers.epsilon_high
    free_BxGxT = jnp.minimum(ratio_BxGxT, hypers.delta) * advantage_BxGxT
    clipped_BxGxT = jnp.clip(ratio_BxGxT, low, high) * advantage_BxGxT
    loss_BxGxT = -jnp.minimum(free_BxGxT, clipped_BxGxT)

    is_low = (ratio_BxGxT < low) & (advantage_BxGxT < 0)
    is_high = (ratio_BxGxT > high) & (advantage_BxGxT > 0)
    metrics = {
        "entropy": Mean.over(entropy_BxGxT, mask_BxGxT),
        "clip_ratio/low_mean": Mean.over(is_low, mask_BxGxT),
        "clip_ratio/high_mean": Mean.over(is_high, mask_BxGxT),
        "clip_ratio/region_mean": Mean.over(is_low | is_high, mask_BxGxT),
    }
    if target.reference_log_prob is not None:
        # A token outside the mask may be impossible: its k3 would be infinite.
        reference_BxGxT = target.reference_log_prob
        own_BxGxT = jnp.where(mask_BxGxT, log_prob_BxGxT, reference_BxGxT)
        kl_BxGxT = kl_estimate(own_BxGxT, reference_BxGxT, kl_estimator)
        metrics["kl"] = Mean.over(kl_BxGxT, mask_BxGxT)
        if is_kl_in_loss:
            loss_BxGxT += hypers.beta * kl_BxGxT
    bonus_BxGxT = hypers.entropy_coef * target.entropy_weight * entropy_BxGxT
    loss_BxGxT = target.weight * loss_BxGxT - bonus_BxGxT
    return jnp.where(mask_BxGxT, loss_BxGxT, 0).sum(), metrics
