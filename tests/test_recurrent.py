"""The gated recurrence: by a loop, causal, the same in every pass, and sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params

from parity_jax.decode import sample
from parity_jax.models import RecurrentConfig, response_logits
from parity_jax.models.recurrent import Recurrent, recurrence
from parity_jax.policy import token_log_probs
from parity_jax.tasks import ParityConfig
from parity_jax.types import Prompt

TASK = ParityConfig(4).make()
CFG = RecurrentConfig(depth=2, width=8)
MAX_LEN = TASK.prompt_len + TASK.format.max_len


def test_the_scan_is_the_loop():
    rng = np.random.default_rng(0)
    keep, value, state = (
        rng.random((3, 5, 2)),
        rng.normal(size=(3, 5, 2)),
        rng.normal(size=(3, 2)),
    )
    expected, h = [], state
    for t in range(5):
        h = keep[:, t] * h + (1 - keep[:, t]) * value[:, t]
        expected.append(h)
    found = recurrence(*map(jnp.array, (keep, value, state)))
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-5, atol=1e-6)


class Sampled:
    """A random model, and its samples for a few prompts."""

    def __init__(self):
        self.model = CFG.make(TASK)
        self.params = random_params(self.model)
        self.prompt = TASK.sample_prompts(jax.random.key(1), 16)

        @jax.jit
        def run(params):
            temperature_G = jnp.array([1.0, 1.0, 0.0])
            response = sample(
                jax.random.key(2),
                self.model,
                params,
                self.prompt,
                temperature_G,
                TASK.format,
            )
            return response, response_logits(
                self.model, params, self.prompt, response.token
            )

        self.response, self.logits = jax.tree.map(np.asarray, run(self.params))


@pytest.fixture(scope="module")
def sampled():
    return Sampled()


def test_steps_responses_and_whole_sequences_give_the_same(sampled):
    token_BxGxT = sampled.response.token
    log_prob = np.asarray(token_log_probs(sampled.logits, token_BxGxT))
    mask = sampled.response.mask & (np.arange(3) < 2)[None, :, None]  # not greedy
    assert mask.sum() > 50 and np.std(log_prob[mask]) > 0.1
    found = sampled.response.log_prob[mask]
    np.testing.assert_allclose(found, log_prob[mask], rtol=1e-4, atol=1e-5)

    prompt_BxL = np.asarray(sampled.prompt.token)
    whole = np.concatenate([prompt_BxL, token_BxGxT[:, 0]], 1)
    module = Recurrent(CFG, TASK.vocab_size, MAX_LEN, TASK.prompt_len)
    full = jax.jit(lambda p, x: module.apply({"params": p}, x))(sampled.params, whole)
    first = TASK.prompt_len - 1
    np.testing.assert_allclose(
        full[:, first:-1], sampled.logits[:, 0], rtol=1e-4, atol=1e-5
    )
    other = whole.copy()
    other[:, first + 2] = (other[:, first + 2] + 1) % TASK.vocab_size
    changed = jax.jit(lambda p, x: module.apply({"params": p}, x))(
        sampled.params, other
    )
    change_T = np.abs(np.asarray(full - changed)).max((0, 2))
    assert (change_T[: first + 2] == 0).all()  # causal
    assert (change_T[first + 2 :] > 1e-4).all()  # and nothing is forgotten at once


def test_padded_prompts_are_refused():
    model, prompt = CFG.make(TASK), TASK.sample_prompts(jax.random.key(1), 2)
    padded = Prompt(prompt.token, jnp.ones_like(prompt.token, bool))
    with pytest.raises(ValueError, match="must be of one length"):
        jax.eval_shape(model.prompt_pass, random_params(model), padded)
