"""Prompts, sampled responses and their rewards, for every post-training stage."""

import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.config import ConfigError, RolloutConfig, require, unknown_value
from parity_jax.decode import sample
from parity_jax.masked import Mean, Metrics, has_ended, num_tokens
from parity_jax.models import Model
from parity_jax.objectives import is_zero_std, priced_reward
from parity_jax.stages.stage import StepKeys
from parity_jax.types import Hypers, Key, Response, Reward, StageState, Task

POOL = 0x9E3779B9  # folded into the member's key: the fixed pool is outside all steps


class Rollout(NamedTuple):
    """G sampled responses to each of B prompts."""

    prompt: Array  # BxL int
    response: Response
    reward: Array  # BxG, what is trained on: weighted, noisy, priced
    correct: Array  # BxG, the task's end-to-end reward itself


def resolve_rewards(cfg: RolloutConfig, task: Task) -> list[Reward]:
    """The functions behind the names of the config."""
    functions = []
    for name in cfg.rewards:
        if ":" in name:
            functions.append(_own_reward(name))
        elif name in task.rewards:
            functions.append(task.rewards[name])
        else:
            raise unknown_value("rewards", name, task.rewards)
    return functions


def _own_reward(name: str) -> Reward:
    """The function that `package.module:function` names."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError("rewards", name, str(error)) from None
    require(callable(function), "rewards", name, "must name a function")
    return function


def training_prompts(
    cfg: RolloutConfig, task: Task, state: StageState, key: Key
) -> Array:
    """Prompts of one step: fresh, or drawn from the member's fixed pool.

    The pool holds num_unique_prompts independent draws (distinct unless the task has
    hardly more prompts than that); a step takes no prompt twice while the pool allows.
    """
    if not cfg.num_unique_prompts:
        return task.sample_prompts(key, cfg.num_prompts)
    k_pool = jax.random.fold_in(state.key, POOL)
    pool_NxL = task.sample_prompts(k_pool, cfg.num_unique_prompts)
    with_replacement = cfg.num_prompts > cfg.num_unique_prompts
    return jax.random.choice(key, pool_NxL, (cfg.num_prompts,), with_replacement)


def noisy_reward(key: Key, reward_BxG: Array, hypers: Hypers) -> Array:
    """A binary reward seen through false positives and false negatives."""
    flip_prob = jnp.where(reward_BxG > 0, hypers.false_negative, hypers.false_positive)
    flip_BxG = jax.random.bernoulli(key, flip_prob)
    return jnp.where(flip_BxG, 1 - reward_BxG, reward_BxG)


class Sampler(NamedTuple):
    """Draws rollouts for a stage; `rewards` come from `resolve_rewards`."""

    cfg: RolloutConfig
    task: Task
    model: Model
    rewards: list[Reward]

    def __call__(self, state: StageState, keys: StepKeys) -> Rollout:
        """Sample at hypers.temperature and score."""
        cfg, hypers = self.cfg, state.hypers
        prompt_BxL = training_prompts(cfg, self.task, state, keys.data)
        temperature_G = jnp.full(cfg.num_generations, hypers.temperature)
        response = sample(
            keys.sample,
            self.model,
            state.params,
            prompt_BxL,
            temperature_G,
            self.task.response_len,
            self.task.short_len,
        )
        reward_BxG = self._reward(keys.reward, prompt_BxL, response, hypers)
        correct_BxG = self.task.rewards["e2e"](prompt_BxL, response.token)
        return Rollout(prompt_BxL, response, reward_BxG, correct_BxG)

    def _reward(
        self, key: Key, prompt_BxL: Array, response: Response, hypers: Hypers
    ) -> Array:
        cfg = self.cfg
        total_BxG = jnp.zeros(response.token.shape[:2])
        for i, (reward, weight) in enumerate(
            zip(self.rewards, cfg.reward_weights, strict=True)
        ):
            clean_BxG = reward(prompt_BxL, response.token)
            k_reward = jax.random.fold_in(key, i)
            total_BxG += weight * noisy_reward(k_reward, clean_BxG, hypers)
        return priced_reward(
            total_BxG,
            num_tokens(response.token),
            self.task.response_len - 1,
            hypers.length_price,
            cfg.length_price,
        )


def rollout_metrics(rollout: Rollout, task: Task) -> Metrics:
    """What TRL logs of its completions, under its names; lengths do not count EOS.

    Lengths are of the responses as sampled, before any loss mask.
    """
    token, reward_BxG = rollout.response.token, rollout.reward
    length_BxG = num_tokens(token).astype(jnp.float32)
    ended_BxG, correct_BxG = has_ended(token), rollout.correct > 0
    is_long_BxG = task.is_long(token)
    num_prompts, num_generations = reward_BxG.shape
    return {
        "reward": Mean.over(reward_BxG),
        "reward_std": Mean.over(reward_BxG.std(-1)),
        "frac_reward_zero_std": Mean.over(is_zero_std(reward_BxG)),
        "accuracy": Mean.over(correct_BxG),
        "p_long": Mean.over(is_long_BxG),
        "completions/mean_length": Mean.over(length_BxG),
        "completions/min_length": Mean.over(length_BxG.min()),
        "completions/max_length": Mean.over(length_BxG.max()),
        "completions/mean_terminated_length": Mean.over(length_BxG, ended_BxG),
        "completions/mean_correct_length": Mean.over(length_BxG, correct_BxG),
        "completions/mean_wrong_length": Mean.over(length_BxG, ~correct_BxG),
        "completions/clipped_ratio": Mean.over(~ended_BxG),
        "rollouts": Mean.over(jnp.float32(num_prompts * num_generations)),
        "tokens": Mean.over(rollout.response.mask.sum().astype(jnp.float32)),
    }
