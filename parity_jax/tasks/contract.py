"""Whether a task's functions return what everything else relies on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.config import ConfigError, in_code_of, kind_of, require
from parity_jax.hypers import Hypers
from parity_jax.tasks.task import Task, TaskConfig
from parity_jax.types import Prompt

B, G = 3, 2  # sizes that cannot be taken for each other


def check_task(cfg: TaskConfig, task: Task) -> None:
    """ConfigError unless all arrays have the shapes and types of the contract.

    Only shapes are computed. An exception in the task's own code is a UserCodeError.
    """
    name, fmt = kind_of(type(cfg)), task.format
    allowed = "must be in [0, vocab_size) and differ from the pad id"
    for end_id in fmt.end_ids:
        inside = 0 <= end_id < task.vocab_size and end_id != fmt.pad_id
        require(inside, f"{name} end_ids", end_id, allowed)
    allowed = f"must be in [1, max_len={fmt.max_len}]"
    inside = 1 <= fmt.short_len <= fmt.max_len
    require(inside, f"{name} short_len", fmt.short_len, allowed)
    for reward in ("e2e", "cot"):
        required = "must have the rewards 'e2e' and 'cot'"
        require(reward in task.rewards, f"{name} rewards", [*task.rewards], required)

    def shape_of(method: str, f: Callable[..., Any], *args: Any) -> Any:
        with in_code_of(f"{name}.{method}"):
            return jax.eval_shape(f, *args)

    def sampled(key: Array, data: Any) -> Prompt:
        return task.sample_prompts(key, B, data)

    key, T = jax.random.key(0), fmt.max_len
    prompt = shape_of("sample_prompts", sampled, key, task.data)
    with named(f"{name}.sample_prompts"):
        chex.assert_shape(prompt.token, (B, task.prompt_len))
        chex.assert_type(prompt.token, int)
    numbers = Hypers()
    batch = shape_of("demonstrate", task.demonstrate, key, prompt, numbers, task.data)
    with named(f"{name}.demonstrate"):
        chex.assert_shape([batch.response, batch.mask], (B, T))
        chex.assert_type([batch.response, batch.mask], [int, bool])
    solution = shape_of("solution", task.solution, prompt, task.data)
    with named(f"{name}.solution"):
        chex.assert_shape(solution.short, (B, T))
        chex.assert_shape(solution.worked, (B, None, T))
    response = jax.ShapeDtypeStruct((B, G, T), jnp.int32)
    with named(f"{name}.is_long"):
        is_long = shape_of("is_long", task.is_long, response)
        chex.assert_shape(is_long, (B, G))
        chex.assert_type(is_long, bool)
    for reward, function in task.rewards.items():
        value = shape_of(f"rewards[{reward!r}]", function, prompt, response, task.data)
        with named(f"{name}.rewards[{reward!r}]"):
            chex.assert_shape(value, (B, G))
            chex.assert_type(value, float)
    found = shape_of("diagnostics", task.diagnostics, prompt, response, task.data)
    with named(f"{name}.diagnostics"):
        chex.assert_shape([x for pair in found.values() for x in pair], (B, G))


@contextmanager
def named(where: str) -> Iterator[None]:
    """A failed assertion as a ConfigError of one line."""
    try:
        yield
    except AssertionError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = " ".join(lines).removeprefix("[Chex] ")
        sizes = f"B={B} prompts, G={G} responses of each"
        raise ConfigError(where, "its result", f"{text} ({sizes})") from None
