"""Next-token prediction: which tokens carry loss, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import tiny_gpt2, tiny_stage

from parity_jax.gradient import response_gradient
from parity_jax.hypers import Hypers
from parity_jax.models.transformer import Transformer
from parity_jax.objectives import Target, next_token_loss
from parity_jax.policy import token_log_probs
from parity_jax.stages import PretrainConfig
from parity_jax.tasks import ParityConfig
from parity_jax.types import Data

BATCH = 8


def test_only_response_tokens_carry_loss():
    """Loss and gradient are those of a forward pass that weighs response tokens alone.

    Position j predicts token j + 1: prompt tokens have weight 0, the response through
    its EOS has weight 1 (its first token is predicted by the separator), PAD has 0.
    """
    task, cfg = ParityConfig(4).make(), tiny_gpt2().resolved()
    model = cfg.make(task)
    params = jax.jit(model.init)(jax.random.key(0))
    prompt = task.sample_prompts(jax.random.key(1), BATCH)
    demonstrate = jax.jit(task.demonstrate)
    long, short = (
        demonstrate(jax.random.key(2), prompt, Hypers(p_cot=p)) for p in (1.0, 0.0)
    )
    is_long = (np.arange(BATCH) < 3)[:, None]
    batch = jax.tree.map(lambda a, b: np.where(is_long, a, b), long, short)

    @jax.jit
    def step_gradient(params):
        """Loss and gradient as the stage computes them."""
        target = Target(batch.response[:, None], batch.mask[:, None])
        grads, loss, _ = response_gradient(
            lambda scores, target: next_token_loss(scores, target, BATCH),
            model,
            params,
            batch.prompt,
            target,
            task.format.short_len,
        )
        return loss, grads

    @jax.jit
    @jax.value_and_grad
    def whole_sequence_loss(params, weight_BxL):
        """Weighted next-token loss of one forward pass over prompt and response."""
        token = jnp.concatenate([prompt.token, batch.response], 1)
        module = Transformer(cfg, task.vocab_size, token.shape[1])
        logits = module.apply({"params": params}, token)[:, :-1]
        log_prob = token_log_probs(logits, token[:, 1:])
        return -(log_prob * weight_BxL).sum() / BATCH

    first = task.prompt_len - 1
    weight_BxL = np.zeros((BATCH, first + task.format.max_len))
    for row, response in enumerate(np.asarray(batch.response)):
        end = task.to_text(response).index(".")
        weight_BxL[row, first : first + end + 1] = 1
    loss, gradient = jax.device_get(step_gradient(params))
    expected = whole_sequence_loss(params, weight_BxL)
    for a, b in zip(*map(jax.tree.leaves, ((loss, gradient), expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for column in (0, first - 1):  # any prompt token would show
        weight = weight_BxL.copy()
        weight[:, column] = 1
        other_loss, other = jax.device_get(whole_sequence_loss(params, weight))
        assert abs(other_loss - loss) > 0.1
        difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), other, gradient)
        assert max(jax.tree.leaves(difference)) > 1e-2


def test_learns_two_bits():
    """Full chains of 2 bits: guessing the bits costs 2 ln 2 = 1.39 nats."""
    stage = tiny_stage(PretrainConfig(batch_size=32), num_bits=2)
    hypers = Hypers(p_cot=1.0, learning_rate=3e-3)

    @jax.jit
    def learn(key):
        def step(state, _):
            return stage.step(state, Data())

        state, metrics = jax.lax.scan(step, stage.init(key, hypers, None), length=260)
        return metrics["loss"].value(), stage.evaluate(state, Data())

    for seed in (0, 1):
        loss, scores = learn(jax.random.key(seed))
        assert loss[0] > 1.0
        assert loss[-10:].mean() < 0.1
        assert scores["greedy/accuracy"].value() == 1
