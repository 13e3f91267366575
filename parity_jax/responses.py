"""Where a response ends: the one place that builds its mask.

Prompt tokens never carry loss, the end token does, what stands behind it does not.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.types import Prompt, ResponseFormat


def is_end(token: Array, fmt: ResponseFormat) -> Array:
    """Whether a token ends its response; the shape of `token`."""
    found = token == fmt.end_ids[0]
    for end_id in fmt.end_ids[1:]:
        found |= token == end_id
    return found


def has_ended(response_BxGxT: Array, fmt: ResponseFormat) -> Array:
    """Whether a response contains an end, BxG."""
    return is_end(response_BxGxT, fmt).any(-1)


def num_tokens(response_BxGxT: Array, fmt: ResponseFormat) -> Array:
    """Number of tokens before the end, BxG int: the length of a response."""
    return (jnp.cumsum(is_end(response_BxGxT, fmt), -1) == 0).sum(-1)


def response_mask(response_BxGxT: Array, fmt: ResponseFormat) -> Array:
    """True up to and including the first end, BxGxT; of any leading shape."""
    ends = is_end(response_BxGxT, fmt)
    return jnp.cumsum(ends, -1) - ends == 0


def left_padded(prompts: list[np.ndarray], fmt: ResponseFormat) -> Prompt:
    """Prompts of any length as one; without a mask if all are as long."""
    lengths = np.array([len(prompt) for prompt in prompts])
    token_BxL = np.full((len(prompts), lengths.max()), fmt.pad_id, np.int32)
    for row, prompt in zip(token_BxL, prompts, strict=True):
        row[len(row) - len(prompt) :] = prompt
    if (lengths == lengths.max()).all():
        return Prompt(jnp.array(token_BxL))
    position_1xL = np.arange(token_BxL.shape[1])[None]
    mask_BxL = position_1xL >= token_BxL.shape[1] - lengths[:, None]
    return Prompt(jnp.array(token_BxL), jnp.array(mask_BxL))
