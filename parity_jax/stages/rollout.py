"""Prompts, sampled responses and their rewards, for every post-training stage."""

import inspect
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.config import (
    MAX_SIZE,
    ConfigError,
    import_object,
    in_code_of,
    require,
    require_count,
    require_positive,
    unknown_value,
)
from parity_jax.decode import sample
from parity_jax.hypers import Hypers
from parity_jax.metrics import Mean, Metrics
from parity_jax.models.model import Model
from parity_jax.objectives import LengthPrice, is_zero_std, priced_reward
from parity_jax.responses import has_ended, num_tokens
from parity_jax.stages.stage import StepKeys, step_prompts
from parity_jax.tasks.contract import check_finite, check_reward
from parity_jax.tasks.task import BINARY, FiniteTask, Reward, Task
from parity_jax.types import Data, Key, Prompt, Response, StageState

MAX_POOL = 2**20  # unique prompts, of which 8 times as many are drawn at once
POOL = 0x9E3779B9  # folded into the member's key: the fixed pool is outside all steps


@dataclass(frozen=True)
class RolloutConfig:
    """What post-training samples and how it is rewarded."""

    num_prompts: int = 64  # prompts of a step, B
    num_generations: int = 8  # responses of a prompt, G
    # Names of the task's rewards, or `package.module:function` of your own with the
    # signature of `tasks.Reward`; what is trained on is their weighted sum.
    rewards: tuple[str, ...] = ("e2e",)
    reward_weights: tuple[float, ...] = (1.0,)
    length_price_form: LengthPrice = "additive"  # the price is hypers.length_price
    num_unique_prompts: int = 0  # size of a fixed pool of prompts; 0: always fresh

    def __post_init__(self) -> None:
        require_positive(self, "num_prompts", "num_generations")
        allowed = f"times num_prompts={self.num_prompts} must be at most {MAX_SIZE}"
        few = self.num_responses <= MAX_SIZE
        require(few, "num_generations", self.num_generations, allowed)
        require(bool(self.rewards), "rewards", (), "must name at least one reward")
        allowed = f"must give one weight for each of rewards={self.rewards}"
        matches = len(self.reward_weights) == len(self.rewards)
        require(matches, "reward_weights", self.reward_weights, allowed)
        allowed, are_finite = "must be finite", all(map(isfinite, self.reward_weights))
        require(are_finite, "reward_weights", self.reward_weights, allowed)
        is_felt = any(self.weights.values())
        allowed = "must not all be 0: nothing would be rewarded"
        require(is_felt, "reward_weights", self.reward_weights, allowed)
        require_count(self, "num_unique_prompts", "fresh")
        num, allowed = self.num_unique_prompts, f"must be at most {MAX_POOL}"
        require(num <= MAX_POOL, "num_unique_prompts", num, allowed)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each reward, which may be named more than once."""
        totals = dict.fromkeys(self.rewards, 0.0)
        for name, weight in zip(self.rewards, self.reward_weights, strict=True):
            totals[name] += weight
        return totals

    @property
    def num_responses(self) -> int:
        """Responses of one step, B G."""
        return self.num_prompts * self.num_generations


class Rollout(NamedTuple):
    """G sampled responses to each of B prompts."""

    prompt: Prompt
    response: Response
    reward: Array  # BxG, what is trained on: weighted, noisy, priced
    correct: Array  # BxG, the task's end-to-end reward itself
    flags: dict[str, Array] = {}  # BxG each, why a response could not be judged


def resolve_rewards(cfg: RolloutConfig, task: Task) -> list[Reward]:
    """The functions behind the names of the config."""
    functions = []
    for name in cfg.rewards:
        if name in task.rewards:
            functions.append(task.rewards[name])
        elif ":" in name:
            function = import_object(name, "rollout.rewards")
            require(callable(function), "rollout.rewards", name, "must name a function")
            functions.append(own_reward(name, function))
            check_reward(name, functions[-1], task)
            check_finite(name, functions[-1], task)
        else:
            raise unknown_value("rollout.rewards", name, task.rewards)
    return functions


def own_reward(name: str, function: Reward) -> Reward:
    """A user's function whose result must be one real number of each response.

    Broadcasting a reward of another shape would pay responses for their neighbours.
    """

    def reward(prompt: Prompt, response_BxGxT: Array, data: Any) -> Array:
        with in_code_of(name):
            value = function(prompt, response_BxGxT, data)
        field, expected = "rollout.rewards", response_BxGxT.shape[:2]
        if inspect.iscoroutine(value):
            value.close()
            raise ConfigError(field, name, "must be a function that is not async")
        try:
            is_complex = jnp.iscomplexobj(value)
            value = jnp.asarray(value, None if is_complex else jnp.float32)
            kind = str(value.dtype)
        except (TypeError, ValueError):
            is_complex, kind = True, type(value).__name__
        allowed = f"must return real numbers, not {kind}"
        require(not is_complex, field, name, allowed)
        allowed = f"must return an array of shape {expected}, one reward a response"
        require(value.shape == expected, field, name, f"{allowed}, not {value.shape}")
        return value

    return reward


def check_noise(cfg: RolloutConfig, hypers: Hypers) -> None:
    """ConfigError for noise on rewards that need not be 0 or 1."""
    others = [name for name in cfg.rewards if name not in BINARY]
    allowed = f"must be 0 with the reward {', '.join(others)}: noise flips 0 and 1, "
    allowed += f"which only {' and '.join(BINARY)} must be"
    for name in ("false_positive", "false_negative"):
        value = getattr(hypers, name)
        require(value == 0 or not others, name, value, allowed)


def training_prompts(
    cfg: RolloutConfig,
    task: Task,
    state: StageState,
    key: Key,
    data: Data,
    is_further: bool = False,
) -> Prompt:
    """Prompts of one step: fresh, or drawn from the member's fixed pool.

    Further ones than those of the step are drawn independently, if a task has rows.

    The pool holds num_unique_prompts distinct prompts; a step takes none of them twice
    while the pool allows.
    """
    if not cfg.num_unique_prompts:
        if is_further:
            return task.sample_prompts(key, cfg.num_prompts, data.task)
        return step_prompts(task, state, key, cfg.num_prompts, data)
    k_pool = jax.random.fold_in(state.key, POOL)
    pool = distinct_prompts(k_pool, task, cfg.num_unique_prompts, data.task)
    with_replacement = cfg.num_prompts > cfg.num_unique_prompts
    chosen_B = jax.random.choice(
        key, cfg.num_unique_prompts, (cfg.num_prompts,), with_replacement
    )
    return jax.tree.map(lambda x: x[chosen_B], pool)


def distinct_prompts(key: Key, task: Task, num_prompts: int, data: Any) -> Prompt:
    """So many prompts of which no two are alike, unless 8 times as many draws have not
    so many different ones (a pool of nearly all prompts there are).
    """
    drawn = task.sample_prompts(key, 8 * num_prompts + 64, data)
    num_drawn = drawn.token.shape[0]
    _, first_N = jnp.unique(
        drawn.token, axis=0, size=num_drawn, fill_value=-1, return_index=True
    )
    is_first_N = jnp.zeros(num_drawn, bool).at[first_N].set(True, mode="drop")
    order_N = jnp.argsort(~is_first_N, stable=True)[:num_prompts]
    return jax.tree.map(lambda x: x[order_N], drawn)


def check_pool(num_prompts: int, task: Task) -> None:
    """ConfigError for a pool of more prompts than a task has, a few draws aside."""
    pool = distinct_prompts(jax.random.key(0), task, num_prompts, task.data)
    num_found = len(np.unique(np.asarray(pool.token), axis=0))
    allowed = f"must be of different prompts: the task has {num_found}"
    is_pool = num_found >= 0.99 * num_prompts
    require(is_pool, "rollout.num_unique_prompts", num_prompts, allowed)


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

    def __call__(
        self,
        state: StageState,
        keys: StepKeys,
        data: Data,
        is_further: bool = False,
    ) -> Rollout:
        """Sample at hypers.temperature and score."""
        cfg, hypers, task = self.cfg, state.hypers, self.task
        prompt = training_prompts(cfg, task, state, keys.data, data, is_further)
        temperature_G = jnp.full(cfg.num_generations, hypers.temperature)
        response = sample(
            keys.sample, self.model, state.params, prompt, temperature_G, task.format
        )
        reward_BxG = self._reward(keys.reward, prompt, response, hypers, data)
        correct_BxG = task.rewards["e2e"](prompt, response.token, data.task)
        flags = {}
        if isinstance(task, FiniteTask):
            flags = task.flags(prompt, response.token)
        return Rollout(prompt, response, reward_BxG, correct_BxG, flags)

    def _reward(
        self, key: Key, prompt: Prompt, response: Response, hypers: Hypers, data: Data
    ) -> Array:
        cfg, fmt = self.cfg, self.task.format
        total_BxG = jnp.zeros(response.token.shape[:2])
        for i, (reward, weight) in enumerate(
            zip(self.rewards, cfg.reward_weights, strict=True)
        ):
            clean_BxG = reward(prompt, response.token, data.task)
            k_reward = jax.random.fold_in(key, i)
            total_BxG += weight * noisy_reward(k_reward, clean_BxG, hypers)
        return priced_reward(
            total_BxG,
            num_tokens(response.token, fmt),
            fmt.max_len - 1,
            hypers.length_price,
            cfg.length_price_form,
        )


def make_sampler(cfg: RolloutConfig, task: Task, model: Model) -> Sampler:
    """The sampler of a config; ConfigError for what the task does not have."""
    if cfg.num_unique_prompts:
        check_pool(cfg.num_unique_prompts, task)
    return Sampler(cfg, task, model, resolve_rewards(cfg, task))


def rollout_metrics(rollout: Rollout, task: Task) -> Metrics:
    """What TRL logs of its completions, under its names; lengths do not count the end.

    Lengths are of the responses as sampled, before any loss mask.
    """
    token, reward_BxG = rollout.response.token, rollout.reward
    length_BxG = num_tokens(token, task.format).astype(jnp.float32)
    ended_BxG, correct_BxG = has_ended(token, task.format), rollout.correct > 0
    is_long_BxG = task.is_long(token)
    num_prompts, num_generations = reward_BxG.shape
    flags = {k: Mean.over(flag, ended_BxG) for k, flag in rollout.flags.items()}
    return flags | {
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
