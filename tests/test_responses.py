"""Where responses end, against Python that reads them token by token."""

import jax
import numpy as np

from parity_jax.responses import (
    has_ended,
    is_end,
    left_padded,
    num_tokens,
    response_mask,
)
from parity_jax.types import ResponseFormat


def test_responses_with_several_ends_are_read_token_by_token():
    """Whatever stands behind the first end: more ends, other tokens, padding."""
    token = np.random.default_rng(0).integers(0, 6, (8, 16, 5))
    for end_ids in ((1, 3), (3,)):
        fmt = ResponseFormat(0, end_ids, max_len=5, short_len=2)
        functions = (is_end, has_ended, num_tokens, response_mask)
        found = [
            np.asarray(jax.jit(f, static_argnums=1)(token, fmt)) for f in functions
        ]
        for b, g in np.ndindex(8, 16):
            row = token[b, g].tolist()
            ends = [t for t, v in enumerate(row) if v in end_ids]
            length = ends[0] if ends else 5
            expected = (
                [v in end_ids for v in row],
                bool(ends),
                length,
                [t <= length for t in range(5)],
            )
            assert tuple(np.asarray(x)[b, g].tolist() for x in found) == expected


def test_prompts_of_several_lengths_end_together():
    fmt = ResponseFormat(pad_id=0, end_ids=(1,), max_len=5, short_len=2)
    prompt = left_padded([np.array([7]), np.array([8, 9, 8]), np.array([7, 0])], fmt)
    assert prompt.token.tolist() == [[0, 0, 7], [8, 9, 8], [0, 7, 0]]
    assert prompt.mask.tolist() == [
        [False, False, True],
        [True] * 3,
        [False, True, True],
    ]
    same = left_padded([np.array([7, 8]), np.array([8, 9])], fmt)
    assert same.mask is None and same.token.tolist() == [[7, 8], [8, 9]]
