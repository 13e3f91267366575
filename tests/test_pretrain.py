"""Next-token prediction: which tokens carry loss, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_gpt2, tiny_stage

from parity_jax.config import ParityConfig, PopulationConfig, PretrainConfig
from parity_jax.gradient import response_gradient
from parity_jax.models import make_model
from parity_jax.models.transformer import Transformer
from parity_jax.objectives import Target, next_token_loss, token_log_probs
from parity_jax.population import make_population
from parity_jax.tasks import make_task
from parity_jax.types import Hypers

BATCH = 8
TASK = make_task(ParityConfig(4))
MODEL = make_model(tiny_gpt2(), TASK)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def demonstrations(num_long):
    """A batch with exactly num_long long responses."""
    prompt = TASK.sample_prompts(jax.random.key(1), BATCH)
    key = jax.random.key(2)
    long = TASK.demonstrate(key, prompt, Hypers(p_cot=1.0))
    short = TASK.demonstrate(key, prompt, Hypers(p_cot=0.0))
    is_long = (jnp.arange(BATCH) < num_long)[:, None]
    return jax.tree.map(lambda a, b: jnp.where(is_long, a, b), long, short)


def step_gradient(params, batch):
    """Loss and gradient as the stage computes them."""
    target = Target(batch.response[:, None], batch.mask[:, None])
    grads, loss, _ = response_gradient(
        lambda logits, target: next_token_loss(logits, target, BATCH),
        MODEL,
        params,
        batch.prompt,
        target,
        TASK.short_len,
    )
    return loss, grads


def whole_sequence_loss(params, batch, weight_BxL):
    """Weighted next-token loss of one forward pass over prompt and response."""
    token = jnp.concatenate([batch.prompt, batch.response], 1)
    module = Transformer(tiny_gpt2(), TASK.vocab_size, token.shape[1])
    logits = module.apply({"params": params}, token)[:, :-1]
    log_prob = token_log_probs(logits, token[:, 1:])
    return -(log_prob * weight_BxL).sum() / BATCH


def assert_same(value_and_grad, expected):
    for a, b in zip(*map(jax.tree.leaves, (value_and_grad, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_only_response_tokens_carry_loss(params):
    """Loss and gradient are those of a forward pass that weighs response tokens alone.

    Position j predicts token j + 1: prompt tokens have weight 0, the response through
    its EOS has weight 1 (its first token is predicted by the separator), PAD has 0.
    """
    batch = demonstrations(3)
    response_BxL = np.zeros((BATCH, TASK.prompt_len + TASK.response_len - 1))
    for row, response in enumerate(np.asarray(batch.response)):
        end = TASK.to_text(response).index(".")
        first = TASK.prompt_len - 1
        response_BxL[row, first : first + end + 1] = 1
    expected = jax.jit(jax.value_and_grad(whole_sequence_loss))
    loss, gradient = jax.device_get(jax.jit(step_gradient)(params, batch))
    assert_same((loss, gradient), expected(params, batch, response_BxL))
    for column in (0, TASK.prompt_len - 2):  # any prompt token would show
        weight = response_BxL.copy()
        weight[:, column] = 1
        other_loss, other = jax.device_get(expected(params, batch, weight))
        assert abs(other_loss - loss) > 0.1
        difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), other, gradient)
        assert max(jax.tree.leaves(difference)) > 1e-2


def test_learns_two_bits():
    """Full chains of 2 bits: guessing the bits costs 2 ln 2 = 1.39 nats."""
    stage = tiny_stage(PretrainConfig(batch_size=32), num_bits=2)
    hypers = Hypers(p_cot=1.0, learning_rate=3e-3)
    population = make_population(
        PopulationConfig(1, 1), stage, {"seed": (0, 1)}, hypers
    )
    states, first = population.run(population.init(None), 1)
    assert (first["loss"].value() > 1.0).all()
    states, _ = population.run(states, 250)
    states, last = population.run(states, 10)
    assert (last["loss"].value() < 0.1).all()
    scores = population.evaluate(states)
    assert (scores["greedy/accuracy"].value() == 1).all()
