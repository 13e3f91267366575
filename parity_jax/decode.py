"""Sampling with a cache: one prompt pass serves all responses of a prompt.

The policy that is sampled is softmax(logits / temperature); its log-probabilities are
what policy gradients train on, so the same temperature enters both.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.blocks import blocks_of, decode_rows, set_rows, take_rows
from parity_jax.models.model import Model, run_prompt
from parity_jax.policy import tempered, token_log_probs
from parity_jax.responses import is_end
from parity_jax.types import Key, Params, Prompt, Response, ResponseFormat


class _Rows(NamedTuple):
    """Responses on their way; leaves have BxG in front, those of the cache N = B G."""

    uniform: Array  # BxGxT in [0, 1), one for each token; of the response alone
    temperature: Array  # BxG
    done: Array  # BxG
    cache: Any
    response: Response


def sample(
    key: Key,
    model: Model,
    params: Params,
    prompt: Prompt,
    temperature_G: Array,
    fmt: ResponseFormat,
) -> Response:
    """G responses to each prompt, response g at temperature_G[g]; 0 is greedy.

    All go as far as fmt.short_len tokens together; those that have not ended then go on
    in blocks of rows, each until its rows have ended or have fmt.max_len tokens.
    """
    batch_size, num_generations = prompt.token.shape[0], temperature_G.shape[0]
    shape = (batch_size, num_generations)
    block_size = decode_rows(batch_size * num_generations)
    is_whole = block_size == batch_size * num_generations
    start_len = fmt.max_len if is_whole else min(fmt.short_len, fmt.max_len)
    first_BxV, context = run_prompt(model, params, prompt)
    first_BxGxV = jnp.broadcast_to(first_BxV[:, None], (*shape, first_BxV.shape[-1]))
    begun = _Rows(
        jax.vmap(jax.vmap(lambda k: jax.random.uniform(k, (fmt.max_len,))))(
            jax.random.split(key, shape)
        ),
        jnp.broadcast_to(temperature_G[None], shape),
        jnp.zeros(shape, bool),
        model.empty_cache(context, num_generations, start_len),
        empty_response(shape, start_len, fmt),
    )
    first = draw(begun, 0, first_BxGxV, fmt)
    rows = go_on(model, params, context, first, 1, start_len, fmt)
    if start_len == fmt.max_len:
        return rows.response
    return finish(model, params, context, rows, block_size, fmt)


def empty_response(
    shape: tuple[int, int], num_tokens: int, fmt: ResponseFormat
) -> Response:
    """A response of no token yet."""
    return Response(
        jnp.full((*shape, num_tokens), fmt.pad_id, jnp.int32),
        jnp.zeros((*shape, num_tokens), jnp.float32),
        jnp.zeros((*shape, num_tokens), bool),
    )


def draw(
    rows: _Rows, position: Array | int, logits_BxGxV: Array, fmt: ResponseFormat
) -> _Rows:
    """Append the token at `position` to the responses that have not ended.

    The token is the first whose cumulative probability exceeds the uniform number.
    """
    temperature_BxGx1 = rows.temperature[..., None]
    logits_BxGxV = tempered(logits_BxGxV, temperature_BxGx1)
    mass_BxGxV = jnp.cumsum(jax.nn.softmax(logits_BxGxV), -1)
    threshold_BxG = rows.uniform[..., position] * mass_BxGxV[..., -1]
    sampled_BxG = (mass_BxGxV <= threshold_BxG[..., None]).sum(-1)
    greedy_BxG = jnp.argmax(logits_BxGxV, -1)
    token_BxG = jnp.where(rows.temperature > 0, sampled_BxG, greedy_BxG)
    token_BxG = token_BxG.astype(jnp.int32)
    alive_BxG = ~rows.done
    new = Response(
        jnp.where(alive_BxG, token_BxG, fmt.pad_id),
        jnp.where(alive_BxG, token_log_probs(logits_BxGxV, token_BxG), 0.0),
        alive_BxG,
    )
    response = jax.tree.map(
        lambda old, x: old.at[..., position].set(x), rows.response, new
    )
    return rows._replace(done=rows.done | is_end(token_BxG, fmt), response=response)


def go_on(
    model: Model,
    params: Params,
    context: Any,
    rows: _Rows,
    start: int,
    stop: int,
    fmt: ResponseFormat,
) -> _Rows:
    """Append the tokens at start .. stop - 1, or until every response has ended."""

    def unfinished(carry: tuple[Array, _Rows]) -> Array:
        position, rows = carry
        return (position < stop) & ~rows.done.all()

    def body(carry: tuple[Array, _Rows]) -> tuple[Array, _Rows]:
        position, rows = carry
        last_BxG = rows.response.token[..., position - 1]
        hidden_BxGxD, cache = model.decode_step(
            params, last_BxG, position - 1, context, rows.cache
        )
        logits_BxGxV = model.unembed(params, hidden_BxGxD)
        rows = rows._replace(cache=cache)
        return position + 1, draw(rows, position, logits_BxGxV, fmt)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(start), rows))[1]


def finish(
    model: Model,
    params: Params,
    context: Any,
    rows: _Rows,
    block_size: int,
    fmt: ResponseFormat,
) -> Response:
    """The responses with those that have not ended run to the end, block by block."""
    batch_size, num_generations, start_len = rows.response.token.shape
    num_rows = batch_size * num_generations
    flat = rows._replace(cache=None)
    flat = jax.tree.map(lambda x: x.reshape(num_rows, 1, *x.shape[2:]), flat)
    flat = flat._replace(cache=rows.cache)
    blocks = blocks_of(~flat.done[:, 0], block_size)

    def start_of(whole: Array, x: Array) -> Array:
        """The whole with x in front: it has room for more tokens."""
        return jax.lax.dynamic_update_slice(whole, x, (0,) * x.ndim)

    def run_block(i: Array, response: Response) -> Response:
        row_R = blocks.row[i]
        block = take_rows(flat, row_R)
        context_R = take_rows(context, row_R // num_generations)
        empty = model.empty_cache(context_R, 1, fmt.max_len)
        block = block._replace(
            done=block.done | (row_R == num_rows)[:, None],
            cache=jax.tree.map(start_of, empty, block.cache),
            response=take_rows(response, row_R),
        )
        block = go_on(model, params, context_R, block, start_len, fmt.max_len, fmt)
        return set_rows(response, row_R, block.response)

    whole = empty_response((num_rows, 1), fmt.max_len, fmt)
    response = jax.tree.map(start_of, whole, flat.response)
    response = jax.lax.fori_loop(0, blocks.num, run_block, response)
    shape = (batch_size, num_generations, fmt.max_len)
    return jax.tree.map(lambda x: x.reshape(shape), response)
