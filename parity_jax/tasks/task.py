"""The contract between a task and everything else."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.config import Configured, UserCodeError
from parity_jax.hypers import Hypers
from parity_jax.types import Batch, Key, Prompt, ResponseFormat

# (prompt, response_BxGxT, the task's data) -> reward_BxG
Reward = Callable[[Prompt, Array, Any], Array]
BINARY = ("e2e", "cot")  # rewards that every task has, 0 or 1

# By name a number of each response and whether the response has it, BxG both.
Diagnostics = dict[str, tuple[Array, Array]]


class Solution(NamedTuple):
    """Right responses to each prompt; those to hold an answer against."""

    short: Array  # BxT, without any work shown
    worked: Array  # BxMxT, the ways to work it out; the first is the full chain


@runtime_checkable
class ManyWays(Protocol):
    """A task that has more right responses than `solution` can list."""

    def num_begun(self, prompt: Prompt, response_BxGxT: Array, data: Any) -> Array:
        """How many tokens begin one of the right ones, BxG; T: it is one."""
        ...


def num_begun(task: "Task", prompt: Prompt, response_BxGxT: Array, data: Any) -> Array:
    """How many tokens of a response begin a way to work it out, BxG; T: it is one."""
    if isinstance(task, ManyWays):
        return task.num_begun(prompt, response_BxGxT, data)
    return num_same(response_BxGxT, task.solution(prompt, data).worked)


def num_same(response_BxGxT: Array, worked_BxMxT: Array) -> Array:
    """How many tokens begin the way that is followed furthest, BxG."""
    same_BxGxMxT = response_BxGxT[:, :, None] == worked_BxMxT[:, None]
    return jnp.cumprod(same_BxGxMxT, -1).sum(-1).max(-1)


class Task(Protocol):
    """What is learned: its functions of arrays are jit-able, those of text are not."""

    vocab_size: int
    prompt_len: int  # L, of the longest prompt
    format: ResponseFormat
    rewards: dict[str, Reward]  # "e2e": the answer is right; "cot": every token is that
    # of a worked solution, or of the short one
    data: Any  # a pytree of arrays, passed back as `data`; () if there is none

    def sample_prompts(self, key: Key, num_prompts: int, data: Any) -> Prompt:
        """Independent prompts."""
        ...

    def demonstrate(self, key: Key, prompt: Prompt, hypers: Hypers, data: Any) -> Batch:
        """One demonstration of each prompt from the mixture."""
        ...

    def solution(self, prompt: Prompt, data: Any) -> Solution:
        """The right responses to each prompt, as shown without noise."""
        ...

    def is_long(self, response_BxGxT: Array) -> Array:
        """Whether a response shows its work, BxG."""
        ...

    def diagnostics(
        self, prompt: Prompt, response_BxGxT: Array, data: Any
    ) -> Diagnostics:
        """Further scores of responses that evaluation averages."""
        ...

    def to_text(self, token_T: Array | np.ndarray) -> str:
        """Tokens as a readable line (on the host), unknown ones as their ids."""
        ...

    def from_text(self, text: str) -> np.ndarray:
        """The tokens of such a line; ValueError names what it cannot read."""
        ...

    def read_prompt(self, line: str) -> np.ndarray:
        """The prompt that a line of text begins with; ValueError says what is wrong."""
        ...


@runtime_checkable
class FiniteTask(Task, Protocol):
    """A task of rows: they are trained on epoch by epoch, others are for evaluation."""

    num_train: int
    eval_prompts: Prompt  # of the rows that nothing is trained on
    may_fail: bool  # whether a reward is code of a user's own that runs on the host
    # Whether processes on the host judge answers: what is late for one device may not
    # be for another.
    is_judged_on_host: bool

    def epoch_prompts(
        self, key: Key, step: Array, num_prompts: int, data: Any
    ) -> Prompt:
        """The prompts of a step: the next ones in an order that only key and epoch
        decide.
        """
        ...

    def flags(self, prompt: Prompt, response_BxGxT: Array) -> dict[str, Array]:
        """By name whether a response could not be judged, 0 or 1, BxG each."""
        ...


class TaskConfig(Configured):
    """A frozen dataclass that makes a task."""

    def make(self) -> Task:
        """The task."""
        raise NotImplementedError

    def check(self, hypers: Hypers) -> None:
        """ConfigError for numbers that mean nothing in this task."""


def typed_prompt(task: Task, line: str) -> np.ndarray:
    """`task.read_prompt`; ValueError too for a length that prompts do not have.

    UserCodeError for anything else that it raises.
    """
    try:
        token_L = task.read_prompt(line)
    except ValueError:
        raise
    except Exception as error:
        raise UserCodeError(f"{type(task).__name__}.read_prompt", error) from error
    is_whole = isinstance(task, FiniteTask) or len(token_L) == task.prompt_len
    if not is_whole:
        raise ValueError(f"must have {task.prompt_len} tokens, not {len(token_L)}")
    return token_L


def texts_of(symbols: np.ndarray, token_T: Array | np.ndarray) -> list[str]:
    """The text of every token; <48> for one that only a model of more tokens knows."""
    tokens = np.asarray(token_T).tolist()
    return [symbols[t] if t < len(symbols) else f"<{t}>" for t in tokens]


def vocabulary(task: Task) -> list[str]:
    """The text of every token."""
    return [task.to_text(np.array([v])).strip() for v in range(task.vocab_size)]
