"""Shared types and the shape legend.

Letters in array names (`reward_BxG` is batch x group):
    P member   B batch (prompts)   G responses of one prompt   N rows, B x G of them
    L prompt position   T response position   S key position   V vocabulary
    D width   F MLP width   H heads   J key-value heads   K head size
    Q queries of a key-value head: (H / J) x T   R rows of a block   U updates
    Z blocks of a transformer that are stacked
    M steps of a chain, or ways to work a solution out
    I, O digits of a factor, of a product
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax import Array

from parity_jax.hypers import Hypers

Key = Array  # a typed PRNG key, scalar
Params = Any  # a pytree of float arrays

# What a member is doing (`StageState.status`).
RUNNING, DIVERGED, NOTHING_KEPT = 0, 1, 2
STATUS_TEXT = {
    RUNNING: "running",
    DIVERGED: "diverged (non-finite loss, gradient or parameters)",
    NOTHING_KEPT: "stopped (a STaR round kept no sample)",
}


@dataclass(frozen=True)
class ResponseFormat:
    """How the responses of a task end; its functions are in `responses`."""

    pad_id: int  # behind the end; never an end; there it carries no loss
    end_ids: tuple[int, ...]  # any of them ends a response, and carries loss
    max_len: int  # T, tokens of the longest response with its end
    # So many tokens are run for all responses together; those that are longer go on
    # in blocks of rows. The length of a short response with its end, if there is one.
    short_len: int


class Prompt(NamedTuple):
    """Prompts; shorter ones are padded on the left, so that all end at L - 1."""

    token: Array  # BxL int
    mask: Array | None = None  # BxL bool, true on tokens; None: no prompt is padded
    row: Array | None = None  # B int, rows of the task's data; None: it has none


class Batch(NamedTuple):
    """Demonstrations: a response to each prompt. Their order carries no meaning."""

    prompt: Prompt
    response: Array  # BxT int, padded behind the end
    mask: Array  # BxT bool, true up to and including the end


class Response(NamedTuple):
    """Sampled responses, G for each prompt."""

    token: Array  # BxGxT int
    log_prob: Array  # BxGxT float32, of the sampled token at the sampling temperature
    mask: Array  # BxGxT bool, true on generated tokens up to and including the end


class Data(NamedTuple):
    """What all members of a run share: an argument of its programs, no constant."""

    task: Any = ()  # a pytree of arrays that the task owns
    eval_prompts: Prompt | None = None  # None: evaluation draws fresh ones


class StageState(NamedTuple):
    """Everything a member is; saved and restored whole."""

    key: Key  # constant: step keys are fold_in(key, step)
    step: Array  # int32 scalar, steps done
    params: Params
    opt_state: Any
    hypers: Hypers
    status: Array  # int32 scalar, RUNNING or why the member is frozen
    reference: Params | None  # parameters the stage started from, if it needs them


def path_text(path: Any) -> str:
    """The path of a leaf of a pytree: "params.blocks_0.mlp.up.kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator=".")
