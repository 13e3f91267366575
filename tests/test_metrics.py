"""Means that fill the metrics, and the lengths that many of them are of."""

import jax.numpy as jnp
import numpy as np

from parity_jax.metrics import Mean, masked_mean
from parity_jax.responses import has_ended, num_tokens
from parity_jax.tasks import ParityConfig


def test_mean_merges_by_weight():
    left, right = Mean.over(jnp.array([1.0, 2.0, 3.0])), Mean.over(jnp.array([10.0]))
    assert float(left.merge(right).value()) == 4.0
    empty = Mean.over(jnp.ones(3), jnp.zeros(3, bool))
    assert np.isnan(empty.value()) and float(empty.value(empty=7.0)) == 7.0
    assert float(left.merge(empty).value()) == 2.0


def test_mean_leaves_out_what_is_masked():
    x = jnp.array([[1.0, jnp.nan], [3.0, jnp.inf]])
    mask = jnp.array([[True, False], [True, False]])
    assert float(Mean.over(x, mask).value()) == 2.0
    assert float(masked_mean(x, mask)) == 2.0
    assert float(masked_mean(x, jnp.zeros_like(mask))) == 0.0
    row = Mean.over(x, jnp.array([[True], [False]]) & jnp.array([[True, False]]))
    assert (float(row.total), float(row.count)) == (1.0, 1.0)


def test_mean_of_integers_and_booleans_is_float32():
    for x in (jnp.array([1, 2]), jnp.array([True, False])):
        assert Mean.over(x).value().dtype == jnp.float32
    assert float(Mean.over(jnp.array([True, False])).value()) == 0.5


def test_length_counts_tokens_before_the_end():
    response, fmt = (
        jnp.array([[1, 0, 0], [3, 1, 0], [3, 4, 3], [3, 1, 3]]),
        ParityConfig(2).make().format,
    )
    assert num_tokens(response, fmt).tolist() == [0, 1, 3, 1]
    assert has_ended(response, fmt).tolist() == [True, True, False, True]
