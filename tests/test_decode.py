"""Sampling: its log-probabilities, masks, frequencies, and where it stops."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2
from small_worlds import as_they_are
from tiny import tiny_gpt2, tiny_mistral

from parity_jax.blocks import decode_rows
from parity_jax.decode import MAX_SUMMED, piecewise_draw, sample, summed_draw
from parity_jax.models import LinearConfig, Model, RecurrentConfig, response_logits
from parity_jax.models.model import run_prompt
from parity_jax.models.transformer import Transformer
from parity_jax.policy import token_log_probs
from parity_jax.tasks import ParityConfig
from parity_jax.tasks.parity import EOS, PAD
from parity_jax.types import Prompt, ResponseFormat

TEMPERATURES = (0.0, 0.5, 1.0, 1.7)

draw_samples = jax.jit(sample, static_argnames=("model", "fmt"))


def table_model(logits_by_position, count=lambda: None):
    """A model whose logits are a table TxV, whatever the tokens are."""

    def prompt_pass(params, prompt):
        return jnp.broadcast_to(params[0], (len(prompt.token), params.shape[1])), None

    def decode_step(params, token_BxG, index, context, cache):
        jax.debug.callback(count)
        row_V = params[jnp.minimum(index + 1, len(params) - 1)]
        return jnp.broadcast_to(row_V, (*token_BxG.shape, row_V.size)), cache

    nothing = [lambda *_: None] * 2
    model = Model(lambda key: None, prompt_pass, *nothing, decode_step, as_they_are)
    return model, jnp.array(logits_by_position, jnp.float32)


def prompts(num):
    return Prompt(jnp.zeros((num, 3), jnp.int32))


def format_of(max_len, short_len=2, end_ids=(EOS,)):
    return ResponseFormat(PAD, end_ids, max_len, short_len)


class Sampled:
    """Prompts, a random transformer and its samples; more than a block goes on."""

    def __init__(self):
        self.task = ParityConfig(4).make()
        self.model = tiny_gpt2().make(self.task)
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        self.prompt = self.task.sample_prompts(jax.random.key(1), 32)
        self.response = self.draw(jax.random.key(2))

    def draw(self, key, temperatures=TEMPERATURES, **overrides):
        fmt = replace(self.task.format, **overrides)
        temperature_G = jnp.array(temperatures)
        return draw_samples(
            key, self.model, self.params, self.prompt, temperature_G, fmt
        )


@pytest.fixture(scope="module")
def sampled():
    return Sampled()


def test_log_probs_equal_teacher_forcing_at_every_temperature(sampled):
    response = sampled.response
    divisor_G = np.array([t or 1.0 for t in TEMPERATURES])[None, :, None, None]

    @jax.jit
    def forced(params):
        logits = response_logits(sampled.model, params, sampled.prompt, response.token)
        return token_log_probs(logits / divisor_G, response.token)

    expected, mask = np.asarray(forced(sampled.params)), np.asarray(response.mask)
    found = np.asarray(response.log_prob)
    np.testing.assert_allclose(found[mask], expected[mask], rtol=1e-5, atol=1e-5)
    for g in range(len(TEMPERATURES)):
        assert np.std(expected[:, g][mask[:, g]]) > 0.1


def test_greedy_is_the_argmax_of_the_full_forward(sampled):
    token = np.asarray(sampled.response.token)[:, 0]
    mask = np.asarray(sampled.response.mask)[:, 0]
    whole = np.concatenate([sampled.prompt.token, token], 1)
    cfg = tiny_gpt2().resolved()
    module = Transformer(cfg, sampled.task.vocab_size, whole.shape[1])
    logits = jax.jit(module.apply)({"params": sampled.params}, whole)
    best = np.asarray(logits).argmax(-1)[:, sampled.task.prompt_len - 1 : -1]
    np.testing.assert_array_equal(token[mask], best[mask])
    assert len(np.unique(token[mask])) > 1


def test_greedy_ignores_the_key_and_samples_do_not(sampled):
    token = np.asarray(sampled.response.token)
    again, same = (np.asarray(sampled.draw(jax.random.key(k)).token) for k in (3, 2))
    np.testing.assert_array_equal(again[:, 0], token[:, 0])
    assert (again[:, 1:] != token[:, 1:]).any((0, 2)).all()
    np.testing.assert_array_equal(same, token)


def test_mask_is_exactly_the_generated_tokens_through_eos(sampled):
    response = jax.device_get(sampled.response)
    ended = 0
    for token, log_prob, mask in zip(
        *(x.reshape(-1, x.shape[-1]) for x in response), strict=True
    ):
        is_end = token == EOS
        length = int(is_end.argmax()) + 1 if is_end.any() else len(token)
        ended += is_end.any()
        assert mask.tolist() == [i < length for i in range(len(token))]
        assert (token[length:] == PAD).all() and (log_prob[length:] == 0).all()
        assert (log_prob[:length] < 0).all()
    assert 0 < ended < response.token.shape[0] * response.token.shape[1]


def test_first_tokens_have_their_frequencies_and_samples_of_a_prompt_differ(sampled):
    num_samples, temperatures = 4000, (0.5, 1.0, 2.0)
    prompt = Prompt(np.asarray(sampled.prompt.token)[:1])
    begun = jax.jit(lambda params: run_prompt(sampled.model, params, prompt))
    first_V = np.asarray(begun(sampled.params).first_BxV[0], float)
    response = draw_samples(
        jax.random.key(6),
        sampled.model,
        sampled.params,
        prompt,
        np.repeat(np.float32(temperatures), num_samples),
        format_of(2),
    )
    token = np.asarray(response.token).reshape(len(temperatures), num_samples, 2)
    for temperature, first in zip(temperatures, token[..., 0], strict=True):
        expected_V = np.exp(first_V / temperature) / np.exp(first_V / temperature).sum()
        count_V = np.bincount(first, minlength=len(expected_V))
        sigma_V = np.sqrt(expected_V * (1 - expected_V) / num_samples)
        assert (np.abs(count_V / num_samples - expected_V) <= 4 * sigma_V).all()
        assert expected_V.max() < 0.9
    assert len(np.unique(token[1], axis=0)) >= 16  # to one and the same prompt


def test_a_response_ends_at_once_or_never():
    """And without an end its tokens are drawn independently, place by place."""
    model, always = table_model([[0, 50, 0, 0, 0]] * 3)
    never, num_samples = table_model([[-50, -50, 0, 0, 0]] * 3)[1], 4000

    def draw(table, temperature):
        temperature_G = np.full(num_samples, temperature, np.float32)
        key, fmt = jax.random.key(7), format_of(3)
        found = draw_samples(key, model, table, prompts(1), temperature_G, fmt)
        return jax.device_get(jax.tree.map(lambda x: x[0], found))

    for temperature in (0.0, 1.0):
        response = draw(always, temperature)
        assert (response.token == [EOS, PAD, PAD]).all()
        assert (response.mask == [True, False, False]).all()
        assert np.abs(response.log_prob).max() < 1e-6
    response = draw(never, 1.0)
    assert response.mask.all()
    token = response.token
    assert set(token.ravel().tolist()) == {2, 3, 4}  # never what has no probability
    sigma = np.sqrt(1 / 3 * 2 / 3 / num_samples)
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert abs((token[:, i] == token[:, j]).mean() - 1 / 3) <= 4 * sigma


def test_blocks_of_rows_change_nothing(sampled):
    """The longer responses, in blocks, are those of all rows at once."""
    long = np.asarray(sampled.response.mask)[..., sampled.task.format.short_len]
    block = decode_rows(long.size)
    assert block < long.sum() < long.size and long.sum() % block  # one is part full
    whole = sampled.draw(jax.random.key(2), short_len=sampled.task.format.max_len)
    np.testing.assert_array_equal(sampled.response.token, whole.token)
    np.testing.assert_array_equal(sampled.response.mask, whole.mask)
    np.testing.assert_allclose(
        sampled.response.log_prob, whole.log_prob, rtol=1e-5, atol=1e-5
    )


def test_stops_with_the_last_response():
    """Each block runs until its longest response has ended, and no step further."""
    for num_generations in (3, 35):
        steps = []
        model, table = table_model(
            [[0, 0, 0, 0, 0]] * 40, lambda steps=steps: steps.append(1)
        )
        key, temperature_G = jax.random.key(8), jnp.ones(num_generations)
        fmt = format_of(40)
        response = draw_samples(key, model, table, prompts(2), temperature_G, fmt)
        jax.effects_barrier()
        length_N = np.asarray(response.mask).sum(-1).ravel()
        assert len(set(length_N)) > 2 and length_N.max() < 40
        size = decode_rows(len(length_N))
        is_whole = size == len(length_N)
        long_N = length_N if is_whole else length_N[length_N > 2]
        assert is_whole or len(long_N) > size  # two blocks
        blocks = np.array_split(long_N, np.arange(size, len(long_N), size))
        start = 1 if is_whole else 2  # the first token needs no step of the model
        assert len(steps) == sum(max(block) - start for block in blocks) + start - 1


def test_any_of_several_ends_stops_a_response():
    """Against cutting the same tokens, drawn without an end, one by one."""
    model, table = table_model(np.random.default_rng(0).normal(size=(8, 5)))
    key, temperature_G, never = jax.random.key(9), jnp.array([0.0, *[1.0] * 40]), 99

    def draw(end_ids):
        fmt = format_of(8, end_ids=end_ids)
        return draw_samples(key, model, table, prompts(2), temperature_G, fmt)

    whole, response = (jax.device_get(draw(ids)) for ids in ((never,), (1, 3)))
    assert whole.mask.all()
    last = set()
    for b, g in np.ndindex(whole.token.shape[:2]):
        token = whole.token[b, g].tolist()
        length = next((n for n, v in enumerate(token, 1) if v in (1, 3)), 8)
        last.add(token[length - 1])
        expected = token[:length] + [PAD] * (8 - length)
        assert response.token[b, g].tolist() == expected
        assert response.mask[b, g].tolist() == [n < length for n in range(8)]
        np.testing.assert_allclose(
            response.log_prob[b, g], whole.log_prob[b, g] * response.mask[b, g]
        )
    assert last >= {1, 3}


LARGE = 128_256  # tokens of Llama 3
NUM_DRAWS, NUM_BINS = 2**14, 50


def large_logits(name):
    """Float32 logits of a large vocabulary."""
    rng, place_V = np.random.default_rng(0), np.arange(LARGE)
    if name == "flat":  # without some tokens, whole pieces among them
        weight_V = (place_V > 64_000).astype(float)
    elif name == "zipf":
        weight_V = rng.permutation(1 / (place_V + 1))
    else:  # 0.9 at one token, 0.095 at some, the rest at those of 5e-8 each
        weight_V = np.where(place_V > 100_000, rng.lognormal(0, 2, LARGE), 0.0)
        weight_V = 0.095 * weight_V / weight_V.sum() + 5e-8
        weight_V[70_000] = 0.9
    with np.errstate(divide="ignore"):
        return np.log(weight_V).astype(np.float32)


def probabilities(logits_V):
    weight_V = np.exp(logits_V.astype(float) - logits_V.max())
    return weight_V / weight_V.sum()


@jax.jit
def draw_many(key_NxN, logits_V):
    one = jax.vmap(piecewise_draw, (0, None, None))
    return jax.lax.map(lambda key_N: one(key_N, logits_V, 1.0), key_NxN)


@cache
def large_draws(name):
    """Tokens and log-probabilities of many draws, which share their logits."""
    keys = jax.random.split(jax.random.key(1), (NUM_DRAWS // 256, 256))
    return [np.asarray(x).ravel() for x in draw_many(keys, large_logits(name))]


def bins_of(probability_V, order_V):
    """Bins of about equal mass, with the tokens in this order."""
    middle_V = np.cumsum(probability_V[order_V]) - probability_V[order_V] / 2
    bin_V = np.empty(LARGE, int)
    bin_V[order_V] = np.minimum(middle_V * NUM_BINS, NUM_BINS - 1)
    return bin_V


def p_value(token_N, probability_V, bin_V):
    """Of the counts of the bins, by chi-square."""
    expected = np.bincount(bin_V, probability_V) * len(token_N)
    found = np.bincount(bin_V[token_N], minlength=len(expected))
    is_some = expected > 0
    square = (found - expected)[is_some] ** 2 / expected[is_some]
    return chi2.sf(square.sum(), is_some.sum() - 1)


@pytest.mark.parametrize("name", ["flat", "zipf", "peaked"])
def test_draws_from_a_large_vocabulary_have_their_probabilities(name):
    probability_V = probabilities(large_logits(name))
    token, log_prob = large_draws(name)
    by_size, by_place = np.argsort(probability_V, kind="stable"), np.arange(LARGE)
    within_piece = np.argsort(by_place % 256, kind="stable")
    for order_V in (by_size, by_place, within_piece):
        bin_V = bins_of(probability_V, order_V)
        assert p_value(token, probability_V, bin_V) > 1e-3
    assert (probability_V[token] > 0).all()
    np.testing.assert_allclose(log_prob, np.log(probability_V[token]), atol=1e-5)


def test_one_cumulative_sum_would_not_have_them():
    """The way of small vocabularies fails the same test, by the tokens it never draws.

    Their probabilities add up to 3e-3.
    """
    logits_V = large_logits("peaked")
    probability_V, token = probabilities(logits_V), large_draws("peaked")[0]
    mass_V = np.asarray(jnp.cumsum(jax.nn.softmax(jnp.array(logits_V))))

    def summed(uniform_N):
        return np.searchsorted(mass_V, uniform_N * mass_V[-1], side="right")

    uniform_N = np.asarray(jax.random.uniform(jax.random.key(2), (NUM_DRAWS,)))
    few = jax.jit(summed_draw)(uniform_N[:16], np.tile(logits_V, (16, 1)), 1.0)
    np.testing.assert_array_equal(few, summed(uniform_N[:16]))
    every_uniform = np.arange(2**23, dtype=np.float32) / np.float32(2**23)
    its_own_V = np.bincount(summed(every_uniform), minlength=LARGE) / 2**23
    bin_V = (its_own_V == 0).astype(int)
    assert p_value(summed(uniform_N), probability_V, bin_V) < 1e-6
    assert p_value(token, probability_V, bin_V) > 1e-3


def test_a_large_vocabulary_greedy_and_certain():
    """Temperature 0 takes the first of the largest; a certain token is always drawn."""
    draw = jax.jit(jax.vmap(piecewise_draw, (0, 0, None)))
    keys = jax.random.split(jax.random.key(3), 8)
    logits_NxV = np.random.default_rng(1).normal(size=(8, LARGE)).astype(np.float32)
    logits_NxV[0, [90_000, 90_001, 120_000]] = 9.0
    token, log_prob = draw(keys, logits_NxV, 0.0)
    np.testing.assert_array_equal(token, logits_NxV.argmax(-1))
    expected = [np.log(probabilities(x).max()) for x in logits_NxV]
    np.testing.assert_allclose(log_prob, expected, atol=1e-5)
    certain = [0, 255, 256, 1000, 64_000, LARGE - 257, LARGE - 2, LARGE - 1]
    for other in (-np.inf, -100.0):
        logits_NxV = np.full((8, LARGE), other, np.float32)
        logits_NxV[np.arange(8), certain] = 0
        token, log_prob = draw(keys, logits_NxV, 1.0)
        np.testing.assert_array_equal(token, certain)
        np.testing.assert_array_equal(log_prob, 0)


def test_samples_of_a_large_vocabulary():
    """They are their responses' alone, in blocks or not, with their log-probabilities.

    A vocabulary that is no whole number of pieces; EOS at once, later and never.
    """
    vocab_size, num_prompts, temperatures = MAX_SUMMED + 300, 8, [0.0, *[0.7] * 7]
    table = np.random.default_rng(2).normal(0, 2, (6, vocab_size))
    table[:, EOS] += 6
    table[0, PAD] = 20
    model, params = table_model(table)

    def draw(short_len, num_prompts=num_prompts):
        key, temperature_G = jax.random.key(4), jnp.array(temperatures)
        fmt = format_of(6, short_len)
        return jax.device_get(
            draw_samples(key, model, params, prompts(num_prompts), temperature_G, fmt)
        )

    response, whole = draw(2), draw(6)
    assert decode_rows(response.mask[..., 0].size) < response.mask[..., 2].sum()
    for a, b in zip(response, whole, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(np.unique(response.token[:, 1:], axis=1)) > 1
    mask_BxGxT, greedy_BxT = response.mask, response.token[:, 0]
    best_T = table.argmax(-1)
    assert (greedy_BxT == np.where(mask_BxGxT[:, 0], best_T, PAD)).all()
    divisor_Gx1 = np.array([t or 1.0 for t in temperatures])[:, None]
    for t in range(6):
        log_probs_GxV = table[t] / divisor_Gx1
        log_probs_GxV -= np.log(np.exp(log_probs_GxV).sum(-1, keepdims=True))
        expected = np.take_along_axis(log_probs_GxV.T, response.token[..., t], 0)
        found = response.log_prob[..., t]
        is_on = mask_BxGxT[..., t]
        np.testing.assert_allclose(found[is_on], expected[is_on], atol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "cfg",
    [tiny_gpt2(), tiny_mistral(scan=True), RecurrentConfig(1, 16), LinearConfig()],
    ids=lambda cfg: type(cfg).__name__,
)
def test_models_are_sampled_where_numbers_are_float64(cfg):
    """As of a run that began with JAX_ENABLE_X64; models of layers stay float32."""
    with jax.enable_x64(True):
        task = ParityConfig(4).make()
        model = cfg.make(task)
        params = jax.jit(model.init)(jax.random.key(0))
        prompt = task.sample_prompts(jax.random.key(1), 4)
        temperature_G = jnp.ones(2)
        sampled = draw_samples(
            jax.random.key(2), model, params, prompt, temperature_G, task.format
        )
        logits = response_logits(model, params, prompt, sampled.token)
    kind = jnp.float64 if isinstance(cfg, LinearConfig) else jnp.float32
    assert {x.dtype for x in jax.tree.leaves((params, logits))} == {jnp.dtype(kind)}
    assert sampled.log_prob.dtype == jnp.float32
