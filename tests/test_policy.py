"""Scores of tokens of a large vocabulary, whose logits never exist all at once."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny_gpt2

from parity_jax.models import model as models_model
from parity_jax.models.model import forced_scores, run_prompt
from parity_jax.models.transformer import make_transformer
from parity_jax.policy import in_pieces, token_scores, truncated
from parity_jax.types import Prompt

VOCAB, SHAPE, TEMPERATURE = 1000, (2, 4, 6), 1.3  # BxGxT


def test_pieces_are_the_whole_whether_they_divide_it_or_not():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    kernel = rng.normal(size=(4, 7)).astype(np.float32)
    token = rng.integers(0, 7, hidden.shape[:-1])
    whole = jax.jit(token_scores)(hidden @ kernel, token)
    for max_logits in (5 * 7, 4 * 7, 1, 10**6):  # of 30 tokens: 6 x 5, 8 x 4, ..
        sizes = []

        def score(hidden_RxD, token_R, sizes=sizes):
            sizes.append(len(token_R))
            return token_scores(hidden_RxD @ kernel, token_R)

        pieces = partial(in_pieces, score, num_logits=token.size * 7)
        scores = jax.jit(partial(pieces, max_logits=max_logits))(hidden, token)
        assert 7 * max(sizes) <= max(max_logits, 7)
        for a, b in zip(scores, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def largest_array(compiled):
    """Numbers in the largest array of a compiled program."""
    shapes = re.findall(r"\w+\[([\d,]*)\]", compiled.as_text())
    return max(math.prod(map(int, filter(None, s.split(",")))) for s in shapes)


def test_a_large_vocabulary_changes_neither_scores_nor_gradients(monkeypatch):
    """And no array of tokens times vocabulary is in the program, forward or back."""
    model = make_transformer(tiny_gpt2().resolved(), VOCAB, 3 + SHAPE[-1])
    params, rng = random_params(model), np.random.default_rng(1)
    prompt = Prompt(rng.integers(0, VOCAB, (SHAPE[0], 3)))
    token = jnp.array(rng.integers(0, VOCAB, SHAPE))
    weights = rng.normal(size=(2, *SHAPE)).astype(np.float32)

    def gradient():
        def loss(params):
            begun = run_prompt(model, params, prompt)
            scores = forced_scores(model, params, begun, token, TEMPERATURE)
            return sum(
                (w * x).sum() for w, x in zip(weights, scores, strict=True)
            ), scores

        return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params).compile()

    plain = gradient()
    max_logits = 4 * VOCAB
    monkeypatch.setattr(models_model, "MAX_LOGITS", max_logits)
    pieces = gradient()
    for a, b in zip(
        *map(jax.tree.leaves, (plain(params), pieces(params))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    num_params = max(x.size for x in jax.tree.leaves(params))
    assert largest_array(plain) >= math.prod(SHAPE) * VOCAB
    assert largest_array(pieces) <= max(max_logits, num_params)


@pytest.mark.parametrize("top_k", [0, 1, 5, VOCAB, 2 * VOCAB])
@pytest.mark.parametrize("top_p", [1.0, 0.999, 0.9, 0.3, 1e-6])
def test_truncated_as_in_hugging_face(top_k, top_p):
    """top_k first; top_p of what it leaves. Some logits are excluded before."""
    torch = pytest.importorskip("torch")
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    rng = np.random.default_rng(0)
    logits_NxV = rng.normal(0, [[0.5], [3.0], [10.0]], (3, VOCAB)).astype(np.float32)
    logits_NxV[1, rng.random(VOCAB) < 0.5] = -np.inf
    expected = torch.tensor(logits_NxV)
    if top_k > 0:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    found = truncated(jnp.array(logits_NxV), top_k, top_p)
    np.testing.assert_array_equal(found, expected)
    left_N = np.isfinite(found).sum(-1)
    assert left_N.min() >= 1
    assert top_k > 0 or top_p == 1 or left_N.max() < VOCAB
