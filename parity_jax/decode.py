"""Sampling with a cache: one prompt pass serves all responses of a prompt.

The policy that is sampled is softmax(logits / temperature); its log-probabilities are
what policy gradients train on, so the same temperature enters both.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.blocks import (
    at_most,
    blocks_of,
    decode_rows,
    largest,
    set_rows,
    take_rows,
)
from parity_jax.models.model import Model, run_prompt
from parity_jax.policy import tempered, token_log_probs
from parity_jax.responses import is_end
from parity_jax.rows import each_row
from parity_jax.types import Key, Params, Prompt, Response, ResponseFormat

# Vocabularies up to this size are sampled by one cumulative sum. Rounding moves 3e-5 of
# its mass here; at 128,256 tokens it moves 3e-3, and tails of 1e-3 are never drawn.
MAX_SUMMED = 1024
PIECE = 256  # tokens of a larger vocabulary that are summed before one is drawn


class _Rows(NamedTuple):
    """Responses on their way; leaves have BxG in front, those of the cache N = B G."""

    # Of the response alone: numbers in [0, 1), one for each token, BxGxT; or the keys
    # of a large vocabulary, BxG
    random: Array
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

    def part(rows: tuple[Key, Prompt]) -> Response:
        return _sample_rows(*rows, model, params, temperature_G, fmt)

    shape = (prompt.token.shape[0], temperature_G.shape[0])
    return each_row(part, (jax.random.split(key, shape), prompt))


def _sample_rows(
    key_BxG: Key,
    prompt: Prompt,
    model: Model,
    params: Params,
    temperature_G: Array,
    fmt: ResponseFormat,
) -> Response:
    """`sample` with a key for each response."""
    batch_size, num_generations = key_BxG.shape
    shape = (batch_size, num_generations)
    block_size = decode_rows(batch_size * num_generations)
    is_whole = block_size == batch_size * num_generations
    start_len = fmt.max_len if is_whole else min(fmt.short_len, fmt.max_len)
    first_BxV, context = run_prompt(model, params, prompt)
    params, context = model.for_decoding(params, context)
    first_BxGxV = jnp.broadcast_to(first_BxV[:, None], (*shape, first_BxV.shape[-1]))
    random = key_BxG
    if first_BxV.shape[-1] <= MAX_SUMMED:
        uniform = jax.vmap(jax.vmap(lambda k: jax.random.uniform(k, (fmt.max_len,))))
        random = uniform(random)
    begun = _Rows(
        random,
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
    """Append the token at `position` to the responses that have not ended."""
    logits_BxGxV = tempered(logits_BxGxV, rows.temperature[..., None])
    if logits_BxGxV.shape[-1] <= MAX_SUMMED:
        token_BxG = summed_draw(
            rows.random[..., position], logits_BxGxV, rows.temperature
        )
        log_prob_BxG = token_log_probs(logits_BxGxV, token_BxG)
    else:
        fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
        token_BxG, log_prob_BxG = jax.vmap(jax.vmap(piecewise_draw))(
            fold_in(rows.random, position), logits_BxGxV, rows.temperature
        )
    alive_BxG = ~rows.done
    new = Response(
        jnp.where(alive_BxG, token_BxG, fmt.pad_id),
        jnp.where(alive_BxG, log_prob_BxG, 0.0),
        alive_BxG,
    )
    response = jax.tree.map(
        lambda old, x: old.at[..., position].set(x.astype(old.dtype)),
        rows.response,
        new,
    )
    return rows._replace(done=rows.done | is_end(token_BxG, fmt), response=response)


def summed_draw(uniform_BxG: Array, logits_BxGxV: Array, temperature: Array) -> Array:
    """The first token whose cumulative probability exceeds the uniform number, BxG."""
    mass_BxGxV = jnp.cumsum(jax.nn.softmax(logits_BxGxV), -1)
    threshold_BxG = uniform_BxG * mass_BxGxV[..., -1]
    sampled_BxG = (mass_BxGxV <= threshold_BxG[..., None]).sum(-1)
    greedy_BxG = jnp.argmax(logits_BxGxV, -1)
    token_BxG = jnp.where(temperature > 0, sampled_BxG, greedy_BxG)
    return token_BxG.astype(jnp.int32)


def piecewise_draw(
    key: Key, logits_V: Array, temperature: Array
) -> tuple[Array, Array]:
    """A token and its log-probability; first its piece of the vocabulary is drawn.

    Both draws are by Gumbel noise, so that probabilities as small as 1e-12 are right to
    some 1e-6 of themselves, and noise is made for few of the tokens only.
    """
    k_piece, k_token = jax.random.split(key)

    def draw_one(key: Key, greedy: Array, sampled: Array) -> Array:
        noise = jax.random.gumbel(key, sampled.shape, mode="high")
        return jnp.argmax(jnp.where(temperature > 0, sampled + noise, greedy))

    pad = -logits_V.size % PIECE
    pieces = jnp.pad(logits_V, (0, pad), constant_values=-jnp.inf).reshape(-1, PIECE)
    log_mass = jax.nn.logsumexp(pieces, -1)
    piece = draw_one(k_piece, pieces.max(-1), log_mass)
    within = pieces[piece]
    token = draw_one(k_token, within, within)
    log_prob = within[token] - jax.nn.logsumexp(log_mass)
    return (piece * PIECE + token).astype(jnp.int32), log_prob


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
        return (position < stop) & largest(~rows.done.all())

    def body(carry: tuple[Array, _Rows]) -> tuple[Array, _Rows]:
        position, rows = carry
        last_BxG = rows.response.token[..., position - 1]
        hidden_BxGxD, cache = model.decode_step(
            params, last_BxG, position - 1, context, rows.cache
        )
        logits_BxGxV = model.unembed(params, hidden_BxGxD)
        rows = rows._replace(cache=cache)
        return position + 1, draw(rows, position, logits_BxGxV, fmt)

    with at_most(stop - start):
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
    with at_most(len(blocks.row)):
        response = jax.lax.fori_loop(0, blocks.num, run_block, response)
    shape = (batch_size, num_generations, fmt.max_len)
    return jax.tree.map(lambda x: x.reshape(shape), response)
