"""The contract between a model and everything else, and its teacher-forced use."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from parity_jax.types import Key, Params

Context = Any  # what the responses need of their prompts; floats, B in front
Cache = Any  # what responses need of their earlier tokens; N = B G rows in front


class Model(NamedTuple):
    """Pure functions of parameters; a prompt is run once for all of its responses."""

    init: Callable[[Key], Params]
    # (params, prompt_BxL) -> logits_BxV of the first response token, context
    prompt_pass: Callable[[Params, Array], tuple[Array, Context]]
    # (params, token_BxGxT, context) -> logits_BxGxTxV of the token after each
    response_pass: Callable[[Params, Array, Context], Array]
    # (context, num_generations, response_len) -> cache of no token yet
    empty_cache: Callable[[Context, int, int], Cache]
    # (params, token_BxG, index, context, cache) -> logits_BxGxV of the next, cache
    decode_step: Callable[..., tuple[Array, Cache]]


def forced_logits(
    model: Model, params: Params, context: tuple[Array, Context], token_BxGxT: Array
) -> Array:
    """Teacher-forced logits of every response token, BxGxTxV, after a prompt pass."""
    first_BxV, prompt = context
    batch_size, num_generations, _ = token_BxGxT.shape
    shape = (batch_size, num_generations, 1, first_BxV.shape[-1])
    first_BxGx1xV = jnp.broadcast_to(first_BxV[:, None, None], shape)
    rest = model.response_pass(params, token_BxGxT[..., :-1], prompt)
    return jnp.concatenate([first_BxGx1xV, rest], 2)


def response_logits(
    model: Model, params: Params, prompt_BxL: Array, token_BxGxT: Array
) -> Array:
    """Teacher-forced logits of every response token, BxGxTxV."""
    context = model.prompt_pass(params, prompt_BxL)
    return forced_logits(model, params, context, token_BxGxT)
