"""Whether a task's functions return what everything else relies on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.config import ConfigError, in_code_of, kind_of, require
from parity_jax.hypers import Hypers
from parity_jax.responses import response_mask
from parity_jax.tasks.task import BINARY, Reward, Solution, Task, TaskConfig
from parity_jax.types import Batch, Prompt

B, G = 3, 2  # sizes that cannot be taken for each other
NUM_DRAWN = 32  # prompts whose values are looked at


def check_task(cfg: TaskConfig, task: Task) -> None:
    """ConfigError unless all arrays have the shapes and types of the contract.

    Of a task of the user's own a few values are drawn as well; else only shapes are
    computed. An exception in the task's own code is a UserCodeError.
    """
    name, fmt = kind_of(type(cfg)), task.format
    require(bool(fmt.end_ids), f"{name} end_ids", (), "must name at least one")
    allowed = "must be in [0, vocab_size) and differ from the pad id"
    for end_id in fmt.end_ids:
        inside = 0 <= end_id < task.vocab_size and end_id != fmt.pad_id
        require(inside, f"{name} end_ids", end_id, allowed)
    allowed = f"must be in [2, max_len={fmt.max_len}]: a token and the end"
    inside = 2 <= fmt.short_len <= fmt.max_len
    require(inside, f"{name} short_len", fmt.short_len, allowed)
    for reward in BINARY:
        required = "must have the rewards 'e2e' and 'cot'"
        require(reward in task.rewards, f"{name} rewards", [*task.rewards], required)

    def shape_of(method: str, f: Callable[..., Any], *args: Any) -> Any:
        with in_code_of(f"{name}.{method}"):
            return jax.eval_shape(f, *args)

    def sampled(key: Array, data: Any) -> Prompt:
        return task.sample_prompts(key, B, data)

    key, T = jax.random.key(0), fmt.max_len
    prompt = shape_of("sample_prompts", sampled, key, task.data)
    require_type(f"{name}.sample_prompts", prompt, Prompt)
    with named(f"{name}.sample_prompts"):
        chex.assert_shape(prompt.token, (B, task.prompt_len))
        chex.assert_type(prompt.token, int)
    numbers = Hypers()
    batch = shape_of("demonstrate", task.demonstrate, key, prompt, numbers, task.data)
    require_type(f"{name}.demonstrate", batch, Batch)
    with named(f"{name}.demonstrate"):
        chex.assert_shape([batch.response, batch.mask], (B, T))
        chex.assert_type([batch.response, batch.mask], [int, bool])
    solution = shape_of("solution", task.solution, prompt, task.data)
    require_type(f"{name}.solution", solution, Solution)
    with named(f"{name}.solution"):
        chex.assert_shape(solution.short, (B, T))
        chex.assert_shape(solution.worked, (B, None, T))
    response = shape_of_responses(task)
    with named(f"{name}.is_long"):
        is_long = shape_of("is_long", task.is_long, response)
        chex.assert_shape(is_long, (B, G))
        chex.assert_type(is_long, bool)
    for reward, function in task.rewards.items():
        check_reward(f"{name}.rewards[{reward!r}]", function, task)
    found = shape_of("diagnostics", task.diagnostics, prompt, response, task.data)
    where = f"{name}.diagnostics"
    require_type(where, found, dict)
    for score, pair in found.items():
        is_pair = isinstance(score, str) and isinstance(pair, tuple) and len(pair) == 2
        allowed = "must be named by a text, a pair of numbers and whether they count"
        require(is_pair, f"{where}[{score!r}]", pair, allowed)
    with named(where):
        chex.assert_shape([x for pair in found.values() for x in pair], (B, G))
    if ":" in name:
        check_values(name, task)


def require_type(where: str, value: Any, kind: type) -> None:
    """ConfigError for a result that is no `kind`."""
    allowed = f"must be a {kind.__name__}"
    require(isinstance(value, kind), where, type(value).__name__, allowed)


def check_values(name: str, task: Task) -> None:
    """ConfigError unless drawn tokens, masks and rewards are what they must be."""
    fmt = task.format

    def draw(key: Array, data: Any) -> Any:
        k_prompt, k_batch, k_response = jax.random.split(key, 3)
        prompt = task.sample_prompts(k_prompt, NUM_DRAWN, data)
        batch = task.demonstrate(k_batch, prompt, Hypers(p_cot=0.5), data)
        solution = task.solution(prompt, data)
        shape = batch.response.shape
        drawn_BxT = jax.random.randint(k_response, shape, 0, task.vocab_size)
        both_BxGxT = jnp.stack([batch.response, drawn_BxT], 1)
        tokens = {
            "sample_prompts": prompt.token,
            "demonstrate": batch.response,
            "solution": (solution.short, solution.worked),
        }
        rewards = {r: task.rewards[r](prompt, both_BxGxT, data) for r in BINARY}
        is_mask = batch.mask == response_mask(batch.response, fmt)
        return tokens, rewards, is_mask

    with in_code_of(name):
        drawn = jax.jit(draw)(jax.random.key(0), task.data)
    tokens, rewards, is_mask = jax.device_get(drawn)
    allowed = f"must be tokens in [0, vocab_size={task.vocab_size})"
    for method, arrays in tokens.items():
        found = np.unique(np.concatenate([x.ravel() for x in jax.tree.leaves(arrays)]))
        wrong = [v for v in found.tolist() if not 0 <= v < task.vocab_size]
        require(not wrong, f"{name}.{method}", wrong[:3], allowed)
    allowed = "must be true up to and including the end of a response, and false behind"
    require(bool(is_mask.all()), f"{name}.demonstrate mask", "another", allowed)
    for reward, value in rewards.items():
        wrong = [v for v in np.unique(value).tolist() if v not in (0, 1)]
        require(not wrong, f"{name}.rewards[{reward!r}]", wrong, "must be 0 or 1")
    for reward, function in task.rewards.items():
        if reward not in BINARY:
            check_finite(f"{name}.rewards[{reward!r}]", function, task)


def shape_of_responses(task: Task) -> jax.ShapeDtypeStruct:
    """Responses of the contract's sizes."""
    return jax.ShapeDtypeStruct((B, G, task.format.max_len), jnp.int32)


def check_reward(where: str, reward: Reward, task: Task) -> None:
    """ConfigError unless a reward is one float of each response; shapes only."""

    def rewarded(key: Array, response_BxGxT: Array, data: Any) -> Array:
        prompt = task.sample_prompts(key, B, data)
        with in_code_of(where):
            return reward(prompt, response_BxGxT, data)

    key = jax.random.key(0)
    value = jax.eval_shape(rewarded, key, shape_of_responses(task), task.data)
    with named(where):
        chex.assert_shape(value, (B, G))
        chex.assert_type(value, float)


def check_finite(where: str, reward: Reward, task: Task) -> None:
    """ConfigError unless a reward of the user's own is finite on a few responses.

    They are demonstrations and random tokens.
    """

    def rewarded(key: Array, data: Any) -> Array:
        prompt, both_BxGxT = few_responses(task, key, data)
        return reward(prompt, both_BxGxT, data)

    with in_code_of(where):
        value = np.asarray(jax.jit(rewarded)(jax.random.key(0), task.data))
    wrong = value[~np.isfinite(value)]
    allowed = f"must be finite for every response, not {[*map(float, wrong[:1])]}"
    require(not wrong.size, "rollout.rewards", where, allowed)


def few_responses(task: Task, key: Array, data: Any) -> tuple[Prompt, Array]:
    """Prompts, and for each a demonstration and random tokens to an end, Bx2xT."""
    k_prompt, k_batch, k_response = jax.random.split(key, 3)
    prompt = task.sample_prompts(k_prompt, NUM_DRAWN, data)
    right_BxT = task.demonstrate(k_batch, prompt, Hypers(p_cot=0.5), data).response
    shape = right_BxT.shape
    random_BxT = jax.random.randint(k_response, shape, 0, task.vocab_size)
    is_sampled_BxT = response_mask(random_BxT, task.format)
    random_BxT = jnp.where(is_sampled_BxT, random_BxT, task.format.pad_id)
    return prompt, jnp.stack([right_BxT, random_BxT], 1)


@contextmanager
def named(where: str) -> Iterator[None]:
    """A failed assertion as a ConfigError of one line."""
    try:
        yield
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = " ".join(lines).removeprefix("[Chex] ")
        sizes = f"B={B} prompts, G={G} responses of each"
        raise ConfigError(where, "its result", f"{text} ({sizes})") from None
