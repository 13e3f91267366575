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
    hidden_NxD: Array,
    token_N: Array,
    num_pieces: int,
) -> TokenScores:
    """score(hidden, token) over rows, in pieces that a gradient computes again.

    No array of all rows times the vocabulary exists then, forward or backward.
    """
    num_rows = token_N.shape[0]
    size = -(-num_rows // num_pieces)
    pad = num_pieces * size - num_rows
    hidden = jnp.pad(hidden_NxD, ((0, pad), (0, 0))).reshape(num_pieces, size, -1)
    token = jnp.pad(token_N, (0, pad)).reshape(num_pieces, size)
    scores = jax.lax.map(jax.checkpoint(lambda piece: score(*piece)), (hidden, token))
    return TokenScores(*(x.reshape(-1)[:num_rows] for x in scores))
