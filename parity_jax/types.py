"""Shared types and the shape legend.

Letters in array names (`reward_BxG` is batch x group):
    P member   B batch (prompts)   G responses of one prompt   L prompt position
    T response position   V vocabulary   D width   H heads   K head size
    S key position   F MLP width   N layer
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax import Array

Key = Array  # a typed PRNG key, scalar
Params = Any  # a pytree of float arrays

PAD, EOS = 0, 1  # token ids common to all tasks; PAD never carries loss

# What a member is doing (`StageState.status`).
RUNNING, DIVERGED, NOTHING_KEPT = 0, 1, 2
STATUS_TEXT = {
    RUNNING: "running",
    DIVERGED: "diverged (non-finite loss or parameters)",
    NOTHING_KEPT: "stopped (a STaR round kept no sample)",
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hypers:
    """Everything that is only a number: traced, so any field can be a population axis.

    The first group describes the data, the second the training. Ranges are checked in
    `config.check_hypers`.
    """

    p_cot: Any = 0.25  # share of full chains among the demonstrations
    p_leap: Any = 0.0  # share of leap chains (every k-th running parity)
    emit_noise: Any = 0.0  # flip probability of a shown chain token, not propagated
    step_noise: Any = 0.0  # flip probability of a chain step, propagated
    short_noise: Any = 0.0  # flip probability of a short answer
    learning_rate: Any = 1e-3
    temperature: Any = 1.0  # of the responses that are sampled for training
    epsilon: Any = 0.2  # the probability ratio is clipped to [1 - epsilon, ..
    epsilon_high: Any = 0.2  # .. 1 + epsilon_high]
    delta: Any = 1e6  # cap of the unclipped ratio (two-sided clip); 1e6: none
    beta: Any = 0.0  # weight of the KL divergence to the reference
    entropy_coef: Any = 0.0  # weight of the entropy bonus
    length_price: Any = 0.0  # alpha, price of the longest response
    ridge: Any = 1e-3  # lambda of the linear model, (lambda / 2) |w|^2
    false_positive: Any = 0.0  # probability that a reward of 0 is seen as 1
    false_negative: Any = 0.0  # probability that a reward of 1 is seen as 0


class Batch(NamedTuple):
    """Demonstrations, the longest responses first."""

    prompt: Array  # BxL int
    response: Array  # BxT int, EOS ends it, PAD after
    mask: Array  # BxT bool, true up to and including EOS


class Response(NamedTuple):
    """Sampled responses, G for each prompt."""

    token: Array  # BxGxT int
    log_prob: Array  # BxGxT float32, of the sampled token at the sampling temperature
    mask: Array  # BxGxT bool, true on generated tokens up to and including EOS


class StageState(NamedTuple):
    """Everything a member is; saved and restored whole."""

    key: Key  # constant: step keys are fold_in(key, step)
    step: Array  # int32 scalar, steps done
    params: Params
    opt_state: Any
    hypers: Hypers
    status: Array  # int32 scalar, RUNNING or why the member is frozen
    reference: Params | None  # parameters the stage started from, if it needs them


# (prompt_BxL, response_BxGxT) -> reward_BxG in {0, 1}
Reward = Callable[[Array, Array], Array]

# By name a number of each response and whether the response has it, BxG both.
Diagnostics = dict[str, tuple[Array, Array]]


class Task(Protocol):
    """The contract between a task and everything else; its functions are jit-able."""

    vocab_size: int
    prompt_len: int  # L
    response_len: int  # T, the longest response with its EOS
    short_len: int  # length of a short response with its EOS
    rewards: dict[str, Reward]  # "e2e": the answer is right; "cot": every token is

    def sample_prompts(self, key: Key, num_prompts: int) -> Array:
        """Fresh prompts, prompt_BxL."""
        ...

    def demonstrate(self, key: Key, prompt_BxL: Array, hypers: Hypers) -> Batch:
        """One demonstration of each prompt from the mixture, longest first."""
        ...

    def is_long(self, response_BxGxT: Array) -> Array:
        """Whether a response shows its work, BxG."""
        ...

    def diagnostics(self, prompt_BxL: Array, response_BxGxT: Array) -> Diagnostics:
        """Further scores of responses that evaluation averages."""
        ...

    def to_text(self, token_T: Array | np.ndarray) -> str:
        """Tokens as a readable line (on the host)."""
        ...

    def from_text(self, text: str) -> Array:
        """The tokens of such a line; ValueError names what it cannot read."""
        ...

    def read_prompt(self, line: str) -> Array:
        """The prompt that a line of text begins with; ValueError says what is wrong."""
        ...
