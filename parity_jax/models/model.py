"""The contract between a model and everything else, and its teacher-forced use."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.config import Configured
from parity_jax.policy import TokenScores, in_pieces, tempered, token_scores
from parity_jax.tasks.task import Task, TaskConfig
from parity_jax.types import Key, Params, Prompt

# So many logits of a loss are held at once; where there are more they come in pieces.
MAX_LOGITS = 2**24

Context = Any  # what the responses need of their prompts; floats, B in front
Cache = Any  # what responses need of their earlier tokens; N = B G rows in front


class Model(NamedTuple):
    """Pure functions of parameters; a prompt is run once for all of its responses.

    Hidden states and their unembedding are apart: where the vocabulary is large, the
    logits of a whole batch never exist.
    """

    init: Callable[[Key], Params]
    # (params, prompt) -> hidden_BxD that predicts the first response token, context
    prompt_pass: Callable[[Params, Prompt], tuple[Array, Context]]
    # (params, token_BxGxT, context) -> hidden_BxGxTxD that predicts the token after
    response_pass: Callable[[Params, Array, Context], Array]
    # (context, num_generations, response_len) -> cache of no token yet
    empty_cache: Callable[[Context, int, int], Cache]
    # (params, token_BxG, index, context, cache) -> hidden_BxGxD of the next, cache
    decode_step: Callable[..., tuple[Array, Cache]]
    # (params, hidden, any shape x D) -> float32 logits, the same shape x V
    unembed: Callable[[Params, Array], Array]


class ModelConfig(Configured):
    """A frozen dataclass that makes a model."""

    def make(self, task: Task) -> Model:
        """The model for the vocabulary and the lengths of a task."""
        raise NotImplementedError

    def check(self, task: TaskConfig) -> None:
        """ConfigError if the model cannot learn this task at all."""


def forced_logits(
    model: Model, params: Params, context: tuple[Array, Context], token_BxGxT: Array
) -> Array:
    """Teacher-forced logits of every response token, BxGxTxV, after a prompt pass."""
    first_BxD, prompt = context
    first_BxV = model.unembed(params, first_BxD)
    shape = (*token_BxGxT.shape[:2], 1, first_BxV.shape[-1])
    first_BxGx1xV = jnp.broadcast_to(first_BxV[:, None, None], shape)
    rest = model.response_pass(params, token_BxGxT[..., :-1], prompt)
    return jnp.concatenate([first_BxGx1xV, model.unembed(params, rest)], 2)


def forced_scores(
    model: Model,
    params: Params,
    context: tuple[Array, Context],
    token_BxGxT: Array,
    temperature: Array | float = 1.0,
) -> TokenScores:
    """Teacher-forced `TokenScores` of every response token, BxGxT each.

    No array of all tokens times the vocabulary exists where that would be large.
    """
    first_BxD, prompt = context
    first_BxV = jax.eval_shape(model.unembed, params, first_BxD)
    num_logits = token_BxGxT.size * first_BxV.shape[-1]
    if num_logits <= MAX_LOGITS:
        logits = forced_logits(model, params, context, token_BxGxT)
        return token_scores(tempered(logits, temperature), token_BxGxT)
    shape = (*token_BxGxT.shape[:2], 1, first_BxD.shape[-1])
    first_BxGx1xD = jnp.broadcast_to(first_BxD[:, None, None], shape)
    rest = model.response_pass(params, token_BxGxT[..., :-1], prompt)
    hidden_NxD = jnp.concatenate([first_BxGx1xD, rest], 2).reshape(-1, shape[-1])

    def score(hidden_RxD: Array, token_R: Array) -> TokenScores:
        logits_RxV = model.unembed(params, hidden_RxD)
        return token_scores(tempered(logits_RxV, temperature), token_R)

    num_pieces = -(-num_logits // MAX_LOGITS)
    flat = in_pieces(score, hidden_NxD, token_BxGxT.ravel(), num_pieces)
    return TokenScores(*(x.reshape(token_BxGxT.shape) for x in flat))


def response_logits(
    model: Model, params: Params, prompt: Prompt, token_BxGxT: Array
) -> Array:
    """Teacher-forced logits of every response token, BxGxTxV."""
    context = model.prompt_pass(params, prompt)
    return forced_logits(model, params, context, token_BxGxT)


def response_scores(
    model: Model,
    params: Params,
    prompt: Prompt,
    token_BxGxT: Array,
    temperature: Array | float = 1.0,
) -> TokenScores:
    """Teacher-forced `TokenScores` of every response token, BxGxT each."""
    context = model.prompt_pass(params, prompt)
    return forced_scores(model, params, context, token_BxGxT, temperature)
