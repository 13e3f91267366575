"""Sampling: its log-probabilities, masks, frequencies, and where it stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_gpt2

from parity_jax import decode
from parity_jax.config import ParityConfig
from parity_jax.decode import sample, tempered
from parity_jax.models import Model, make_model, response_logits
from parity_jax.models.transformer import Transformer
from parity_jax.objectives import token_log_probs
from parity_jax.tasks import make_task
from parity_jax.types import EOS, PAD

TEMPERATURES = (0.0, 0.5, 1.0, 1.7)

draw_samples = jax.jit(sample, static_argnames=("model", "response_len", "short_len"))


def table_model(logits_by_position, count=lambda: None):
    """A model whose logits are a table TxV, whatever the tokens are."""

    def decode_step(params, token_BxG, index, context, cache):
        jax.debug.callback(count)
        row_V = params[jnp.minimum(index + 1, len(params) - 1)]
        return jnp.broadcast_to(row_V, (*token_BxG.shape, row_V.size)), cache

    model = Model(
        init=lambda key: None,
        prompt_pass=lambda params, prompt: (
            jnp.broadcast_to(params[0], (len(prompt), params.shape[1])),
            None,
        ),
        response_pass=lambda *_: None,
        empty_cache=lambda *_: None,
        decode_step=decode_step,
    )
    return model, jnp.array(logits_by_position, jnp.float32)


class Sampled:
    """Prompts, a random transformer and its samples."""

    def __init__(self):
        self.task = make_task(ParityConfig(4))
        self.model = make_model(tiny_gpt2(), self.task)
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        self.prompt_BxL = self.task.sample_prompts(jax.random.key(1), 16)
        self.draw = jax.jit(self.sample)
        self.response = self.draw(jax.random.key(2))

    def sample(self, key):
        task, temperature_G = self.task, jnp.array(TEMPERATURES)
        lengths = (task.response_len, task.short_len)
        return sample(
            key, self.model, self.params, self.prompt_BxL, temperature_G, *lengths
        )


@pytest.fixture(scope="module")
def sampled():
    return Sampled()


def test_log_probs_equal_teacher_forcing_at_every_temperature(sampled):
    response = sampled.response
    logits = jax.jit(response_logits, static_argnums=0)(
        sampled.model, sampled.params, sampled.prompt_BxL, response.token
    )
    for g, temperature in enumerate(TEMPERATURES):
        divided = logits[:, g] / (temperature or 1.0)
        expected = token_log_probs(divided, response.token[:, g])
        mask = np.asarray(response.mask[:, g])
        np.testing.assert_allclose(
            response.log_prob[:, g][mask], expected[mask], rtol=1e-5, atol=1e-5
        )
        assert np.std(expected[mask]) > 0.1


def test_tempered_leaves_greedy_logits_alone():
    logits = jnp.array([1.0, -2.0])
    np.testing.assert_array_equal(tempered(logits, jnp.float32(0)), logits)
    np.testing.assert_array_equal(tempered(logits, jnp.float32(2)), logits / 2)


def test_greedy_is_the_argmax_of_the_full_forward(sampled):
    token = np.asarray(sampled.response.token[:, 0])
    mask = np.asarray(sampled.response.mask[:, 0])
    whole = jnp.concatenate([sampled.prompt_BxL, token], 1)
    module = Transformer(tiny_gpt2(), sampled.task.vocab_size, whole.shape[1])
    logits = module.apply({"params": sampled.params}, whole)
    best = np.asarray(logits.argmax(-1))[:, sampled.prompt_BxL.shape[1] - 1 : -1]
    np.testing.assert_array_equal(token[mask], best[mask])
    assert len(np.unique(token[mask])) > 1


def test_greedy_ignores_the_key_and_samples_do_not(sampled):
    again = sampled.draw(jax.random.key(3))
    same = sampled.draw(jax.random.key(2))
    np.testing.assert_array_equal(again.token[:, 0], sampled.response.token[:, 0])
    assert (again.token[:, 1:] != sampled.response.token[:, 1:]).any((0, 2)).all()
    np.testing.assert_array_equal(same.token, sampled.response.token)


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


def test_eos_first():
    model, table = table_model([[0, 50, 0, 0, 0]] * 3)
    prompt = jnp.zeros((2, 3), jnp.int32)
    response = draw_samples(
        jax.random.key(0), model, table, prompt, jnp.array([0.0, 1.0]), 3, 2
    )
    assert response.token.tolist() == [[[EOS, PAD, PAD]] * 2] * 2
    assert response.mask.tolist() == [[[True, False, False]] * 2] * 2
    assert np.abs(response.log_prob).max() < 1e-6


def test_a_response_that_never_ends_fills_its_length():
    model, table = table_model([[0, -50, 0, 0, 0]] * 4)
    prompt = jnp.zeros((2, 3), jnp.int32)
    response = draw_samples(
        jax.random.key(0), model, table, prompt, jnp.array([1.0]), 4, 2
    )
    assert bool(response.mask.all()) and not bool((response.token == EOS).any())


def test_samples_of_a_prompt_differ(sampled):
    prompt = jnp.repeat(sampled.prompt_BxL[:1], 2, 0)
    response = draw_samples(
        jax.random.key(5), sampled.model, sampled.params, prompt, jnp.ones(6), 5, 2
    )
    rows = {tuple(row) for row in response.token.reshape(-1, 5).tolist()}
    assert len(rows) >= 6  # 12 responses to one and the same prompt


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_of_the_first_token(sampled, temperature):
    num_samples = 4000
    prompt = sampled.prompt_BxL[:1]
    logits_1xV, _ = sampled.model.prompt_pass(sampled.params, prompt)
    expected_V = np.asarray(jax.nn.softmax(logits_1xV[0] / temperature))
    temperature_G = jnp.full(num_samples, temperature)
    response = draw_samples(
        jax.random.key(6), sampled.model, sampled.params, prompt, temperature_G, 1, 2
    )
    count_V = np.bincount(np.asarray(response.token).ravel(), minlength=len(expected_V))
    sigma_V = np.sqrt(expected_V * (1 - expected_V) / num_samples)
    assert (np.abs(count_V / num_samples - expected_V) <= 4 * sigma_V).all()
    assert expected_V.max() < 0.9


def test_positions_are_drawn_independently():
    num_samples, model_and_table = 4000, table_model([[-50, -50, 0, 0, 0]] * 3)
    prompt = jnp.zeros((1, 3), jnp.int32)
    temperature_G = jnp.ones(num_samples)
    response = draw_samples(
        jax.random.key(7), *model_and_table, prompt, temperature_G, 3, 2
    )
    token = np.asarray(response.token[0])
    assert set(token.ravel().tolist()) == {2, 3, 4}  # never what has no probability
    sigma = np.sqrt(1 / 3 * 2 / 3 / num_samples)
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert abs((token[:, i] == token[:, j]).mean() - 1 / 3) <= 4 * sigma


@pytest.mark.parametrize("block_size", [1, 7, 16])
def test_blocks_of_rows_change_nothing(sampled, monkeypatch, block_size):
    """However the longer responses are grouped, they are those of all rows at once."""
    monkeypatch.setattr(decode, "decode_rows", lambda num_rows: block_size)
    response = jax.jit(sampled.sample)(jax.random.key(2))
    is_long = np.asarray(sampled.response.mask[..., sampled.task.short_len])
    assert 0 < is_long.sum() < is_long.size
    np.testing.assert_array_equal(response.token, sampled.response.token)
    np.testing.assert_array_equal(response.mask, sampled.response.mask)
    np.testing.assert_allclose(
        response.log_prob, sampled.response.log_prob, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("block_size", [2, 6])
def test_stops_with_the_last_response(monkeypatch, block_size):
    """Each block runs until its longest response has ended, and no step further."""
    steps = []
    model, table = table_model([[0, -1, 0, 0, 0]] * 20, lambda: steps.append(1))
    prompt = jnp.zeros((2, 3), jnp.int32)
    monkeypatch.setattr(decode, "decode_rows", lambda num_rows: block_size)
    response = sample(jax.random.key(8), model, table, prompt, jnp.ones(3), 20, 2)
    jax.effects_barrier()
    length_N = np.asarray(response.mask.sum(-1)).ravel()
    assert len(set(length_N)) > 2 and length_N.max() < 20
    long_N = length_N[(length_N > 2) | (block_size == 6)]
    blocks = np.array_split(long_N, np.arange(block_size, len(long_N), block_size))
    start = 1 if block_size == 6 else 2  # the first token needs no step of the model
    expected = sum(max(block) - start for block in blocks) + (start - 1)
    assert len(steps) == expected
