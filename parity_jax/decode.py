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
from parity_jax.types import EOS, PAD, Key, Params, Response


def tempered(logits: Array, temperature: Array) -> Array:
    """Logits of the sampled policy; temperature 0 (greedy) leaves them as they are."""
    return logits / jnp.where(temperature > 0, temperature, 1.0)


class _Carry(NamedTuple):
    position: Array  # of the response token that is drawn next
    logits_BxGxV: Array
    done_BxG: Array
    cache: Any
    response: Response


def sample(
    key: Key,
    model: Model,
    params: Params,
    prompt_BxL: Array,
    temperature_G: Array,
    response_len: int,
) -> Response:
    """G responses to each prompt, response g at temperature_G[g]; 0 is greedy.

    Stops when every response has ended or has response_len tokens.
    """
    batch_size, num_generations = prompt_BxL.shape[0], temperature_G.shape[0]
    shape = (batch_size, num_generations, response_len)
    logits_BxV, context = model.prompt_pass(params, prompt_BxL)
    temperature_1xGx1 = temperature_G[None, :, None]

    def draw(carry: _Carry) -> tuple[Array, Array]:
        """The token of the next position and its log-probability, BxG each."""
        logits_BxGxV = tempered(carry.logits_BxGxV, temperature_1xGx1)
        k_token = jax.random.fold_in(key, carry.position)
        noise_BxGxV = jax.random.gumbel(k_token, logits_BxGxV.shape)
        noise_BxGxV = jnp.where(temperature_1xGx1 > 0, noise_BxGxV, 0.0)
        token_BxG = jnp.argmax(logits_BxGxV + noise_BxGxV, -1)
        return token_BxG, token_log_probs(logits_BxGxV, token_BxG)

    def write(carry: _Carry, token_BxG: Array, log_prob_BxG: Array) -> Response:
        alive_BxG = ~carry.done_BxG
        new = Response(
            jnp.where(alive_BxG, token_BxG, PAD),
            jnp.where(alive_BxG, log_prob_BxG, 0.0),
            alive_BxG,
        )
        return jax.tree.map(
            lambda old, x: old.at[..., carry.position].set(x.astype(old.dtype)),
            carry.response,
            new,
        )

    def unfinished(carry: _Carry) -> Array:
        return (carry.position < response_len) & ~carry.done_BxG.all()

    def body(carry: _Carry) -> _Carry:
        token_BxG, log_prob_BxG = draw(carry)
        response = write(carry, token_BxG, log_prob_BxG)
        logits_BxGxV, cache = model.decode_step(
            params, token_BxG, carry.position, context, carry.cache
        )
        done_BxG = carry.done_BxG | (token_BxG == EOS)
        return _Carry(carry.position + 1, logits_BxGxV, done_BxG, cache, response)

    start = _Carry(
        jnp.int32(0),
        jnp.broadcast_to(logits_BxV[:, None], (*shape[:2], logits_BxV.shape[-1])),
        jnp.zeros(shape[:2], bool),
        model.empty_cache(context, num_generations, response_len),
        Response(
            jnp.full(shape, PAD, jnp.int32),
            jnp.zeros(shape, jnp.float32),
            jnp.zeros(shape, bool),
        ),
    )
    return jax.lax.while_loop(unfinished, body, start).response
