"""Sampling with a cache: one prompt pass serves all responses of a prompt.

The policy that is sampled is softmax(logits / temperature); its log-probabilities are
what policy gradients train on, so the same temperature enters both.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.models import Model
from parity_jax.objectives import token_log_probs
from parity_jax.rows import blocks_of, decode_rows, set_rows, take_rows
from parity_jax.types import EOS, PAD, Key, Params, Response


def tempered(logits: Array, temperature: Array) -> Array:
    """Logits of the sampled policy; temperature 0 (greedy) leaves them as they are."""
    return logits / jnp.where(temperature > 0, temperature, 1.0)


class _Rows(NamedTuple):
    """Responses on their way; every leaf has BxG in front."""

    key: Key  # BxG, of the response: its noise depends on nothing else
    temperature: Array  # BxG
    done: Array  # BxG
    cache: Any
    response: Response


def sample(
    key: Key,
    model: Model,
    params: Params,
    prompt_BxL: Array,
    temperature_G: Array,
    response_len: int,
    short_len: int,
) -> Response:
    """G responses to each prompt, response g at temperature_G[g]; 0 is greedy.

    All go as far as short_len tokens together; those that have not ended then go on in
    blocks of rows, each until its rows have ended or have response_len tokens.
    """
    batch_size, num_generations = prompt_BxL.shape[0], temperature_G.shape[0]
    shape = (batch_size, num_generations)
    block_size = decode_rows(batch_size * num_generations)
    is_whole = block_size == batch_size * num_generations
    start_len = response_len if is_whole else min(short_len, response_len)
    first_BxV, context = model.prompt_pass(params, prompt_BxL)
    first_BxGxV = jnp.broadcast_to(first_BxV[:, None], (*shape, first_BxV.shape[-1]))
    start = _Rows(
        jax.random.split(key, shape),
        jnp.broadcast_to(temperature_G[None], shape),
        jnp.zeros(shape, bool),
        model.empty_cache(context, num_generations, start_len),
        Response(
            jnp.full((*shape, start_len), PAD, jnp.int32),
            jnp.zeros((*shape, start_len), jnp.float32),
            jnp.zeros((*shape, start_len), bool),
        ),
    )
    rows = go_on(model, params, context, draw(start, 0, first_BxGxV), 1, start_len)
    if start_len == response_len:
        return rows.response
    return finish(model, params, context, rows, response_len, block_size)


def draw(rows: _Rows, position: Array | int, logits_BxGxV: Array) -> _Rows:
    """Append the token at `position` to the responses that have not ended."""
    temperature_BxGx1 = rows.temperature[..., None]
    logits_BxGxV = tempered(logits_BxGxV, temperature_BxGx1)

    def noise(key: Key) -> Array:
        shape = logits_BxGxV.shape[-1:]
        return jax.random.gumbel(jax.random.fold_in(key, position), shape)

    noise_BxGxV = jax.vmap(jax.vmap(noise))(rows.key)
    noise_BxGxV = jnp.where(temperature_BxGx1 > 0, noise_BxGxV, 0.0)
    token_BxG = jnp.argmax(logits_BxGxV + noise_BxGxV, -1).astype(jnp.int32)
    alive_BxG = ~rows.done
    new = Response(
        jnp.where(alive_BxG, token_BxG, PAD),
        jnp.where(alive_BxG, token_log_probs(logits_BxGxV, token_BxG), 0.0),
        alive_BxG,
    )
    response = jax.tree.map(
        lambda old, x: old.at[..., position].set(x), rows.response, new
    )
    return rows._replace(done=rows.done | (token_BxG == EOS), response=response)


def go_on(
    model: Model, params: Params, context: Any, rows: _Rows, start: int, stop: int
) -> _Rows:
    """Append the tokens at start .. stop - 1, or until every response has ended."""

    def unfinished(carry: tuple[Array, _Rows]) -> Array:
        position, rows = carry
        return (position < stop) & ~rows.done.all()

    def body(carry: tuple[Array, _Rows]) -> tuple[Array, _Rows]:
        position, rows = carry
        last_BxG = rows.response.token[..., position - 1]
        logits_BxGxV, cache = model.decode_step(
            params, last_BxG, position - 1, context, rows.cache
        )
        return position + 1, draw(rows._replace(cache=cache), position, logits_BxGxV)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(start), rows))[1]


def finish(
    model: Model,
    params: Params,
    context: Any,
    rows: _Rows,
    response_len: int,
    block_size: int,
) -> Response:
    """The responses with those that have not ended run to the end, block by block."""
    batch_size, num_generations, start_len = rows.response.token.shape
    num_rows = batch_size * num_generations
    flat = jax.tree.map(lambda x: x.reshape(num_rows, 1, *x.shape[2:]), rows)
    blocks = blocks_of(~flat.done[:, 0], block_size)

    def longer(x: Array) -> Array:
        """Room for the whole response."""
        room = [(0, 0)] * x.ndim
        room[2] = (0, response_len - start_len)
        return jnp.pad(x, room)

    def run_block(i: Array, response: Response) -> Response:
        row_R = blocks.row[i]
        block = take_rows(flat, row_R)
        block = block._replace(
            done=block.done | (row_R == num_rows)[:, None],
            cache=jax.tree.map(longer, block.cache),
            response=take_rows(response, row_R),
        )
        context_R = take_rows(context, row_R // num_generations)
        block = go_on(model, params, context_R, block, start_len, response_len)
        return set_rows(response, row_R, block.response)

    response = jax.tree.map(longer, flat.response)
    response = jax.lax.fori_loop(0, blocks.num, run_block, response)
    shape = (batch_size, num_generations, response_len)
    return jax.tree.map(lambda x: x.reshape(shape), response)
