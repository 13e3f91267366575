"""Log-probabilities and entropies of tokens under softmax(logits / temperature).

The temperature of sampling enters here and nowhere else: the policy that is trained is
the one that is sampled.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class TokenScores(NamedTuple):
    """What a loss reads of the model: two numbers of every token."""

    log_prob: Array  # of the token itself
    entropy: Array  # of the distribution that it was drawn from, in nats


def tempered(logits: Array, temperature: Array | float) -> Array:
    """Logits of the sampled policy; temperature 0 (greedy) leaves them as they are."""
    return logits / jnp.where(temperature > 0, temperature, 1.0)


def truncated(logits: Array, top_k: int = 0, top_p: float = 1.0) -> Array:
    """Logits with -inf for unlikely tokens, as in Hugging Face.

    The top_k likeliest stay (0: all), of these the fewest that hold top_p of the mass,
    and whatever is as likely as the last of them.
    """
    if top_k > 0:
        lowest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    if top_p < 1:
        falling = -jnp.sort(-logits)
        probs = jax.nn.softmax(falling)
        is_kept = jnp.cumsum(probs, -1) - probs < top_p
        lowest = jnp.where(is_kept, falling, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    return logits


def token_log_probs(logits: Array, token: Array) -> Array:
    """log softmax(logits) at each token; logits have a vocabulary axis behind it."""
    log_probs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_probs, token[..., None], -1)[..., 0]


def token_entropy(logits: Array) -> Array:
    """Entropy of softmax(logits) in nats, without the vocabulary axis."""
    log_probs = jax.nn.log_softmax(logits)
    return -(jnp.exp(log_probs) * log_probs).sum(-1)


def token_scores(logits: Array, token: Array) -> TokenScores:
    """Both, of logits that are divided by the temperature already."""
    return TokenScores(token_log_probs(logits, token), token_entropy(logits))


def in_pieces(
    score: Callable[[Array, Array], TokenScores],
    hidden: Array,
    token: Array,
    num_logits: int,
    max_logits: int,
) -> TokenScores:
    """score(hidden_RxD, token_R) over all tokens, in pieces that a gradient repeats.

    So many pieces that none has more than max_logits logits, forward or backward.
    """
    num_pieces = -(-num_logits // max_logits)
    hidden_NxD, token_N = hidden.reshape(-1, hidden.shape[-1]), token.ravel()
    size = -(-token.size // num_pieces)
    pad = num_pieces * size - token.size
    pieces = (
        jnp.pad(hidden_NxD, ((0, pad), (0, 0))).reshape(num_pieces, size, -1),
        jnp.pad(token_N, (0, pad)).reshape(num_pieces, size),
    )
    scores = jax.lax.map(jax.checkpoint(lambda piece: score(*piece)), pieces)
    return TokenScores(*(x.ravel()[: token.size].reshape(token.shape) for x in scores))
