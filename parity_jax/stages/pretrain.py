"""Next-token prediction on fresh demonstrations (paper section 3).

    for every step:
        x ~ prompts;  y ~ D(p_cot) given x
        loss = mean over sequences of  sum_j -log pi(y_j | x, y_<j)
        params <- AdamW(params, grad loss)

Start here: the other stages have the same shape.
"""

import jax
import jax.numpy as jnp
from jax import Array
from scipy.stats import binom

from parity_jax import optim
from parity_jax.config import PretrainConfig
from parity_jax.evaluate import Evaluate
from parity_jax.masked import Mean, Metrics
from parity_jax.models import Model
from parity_jax.objectives import next_token_loss, token_log_probs
from parity_jax.stages.stage import Stage, StepKeys, evaluator, make_init
from parity_jax.types import Batch, Params, StageState, Task


def make_pretrain(
    cfg: PretrainConfig, task: Task, model: Model, evaluate: Evaluate, p_long: float
) -> Stage:
    """The stage for members whose share of long demonstrations is at most p_long."""
    optimizer = optim.adamw(cfg.weight_decay)
    schedule = optim.cosine_decay(cfg.decay_steps, cfg.final_lr_ratio)
    num_long = max_long_rows(cfg.batch_size, p_long)

    def loss_fn(params: Params, batch: Batch) -> tuple[Array, Metrics]:
        log_prob_BxT = demonstration_log_probs(
            model, params, batch, num_long, task.short_len
        )
        loss = next_token_loss(log_prob_BxT, batch.mask, cfg.batch_size)
        return loss, {
            "loss": Mean.over(loss),
            "token_loss": Mean.over(-log_prob_BxT, batch.mask),
        }

    def step(state: StageState) -> tuple[StageState, Metrics]:
        k_prompt, k_demonstration = jax.random.split(StepKeys.of(state).data)
        prompt_BxL = task.sample_prompts(k_prompt, cfg.batch_size)
        batch = task.demonstrate(k_demonstration, prompt_BxL, state.hypers)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch)
        state, grad_norm = optim.apply(optimizer, state, grads, schedule(state.step))
        metrics["grad_norm"] = Mean.over(grad_norm)
        return state._replace(step=state.step + 1), metrics

    return Stage(
        init=make_init(model, optimizer),
        step=step,
        evaluate=evaluator(evaluate),
        sequences_per_step=cfg.batch_size,
    )


def max_long_rows(batch_size: int, p_long: float, overflow: float = 1e-9) -> int:
    """Rows that can hold more than a short response, up to probability `overflow`.

    The number of long demonstrations of a batch is Binomial(batch_size, p_long). A
    batch that has more loses the tokens behind the short length in the rows too many.
    """
    return int(binom.isf(overflow, batch_size, p_long)) if p_long < 1 else batch_size


def demonstration_log_probs(
    model: Model, params: Params, batch: Batch, num_long: int, short_len: int
) -> Array:
    """Teacher-forced log-probabilities of the demonstrations, BxT.

    The prompt pass serves all rows. Of the responses only the first num_long rows are
    run to their full length, the others (the batch is sorted) to short_len tokens:
    about (1 + p_cot) L positions per sequence instead of 2 L. What is not run is 0.
    """
    first_BxV, context = model.prompt_pass(params, batch.prompt)
    log_prob_Bx1 = token_log_probs(first_BxV, batch.response[:, 0])[:, None]

    def rest(rows: slice, length: int) -> Array:
        """Log-probabilities of tokens 2 .. length, padded to all T - 1."""
        response = batch.response[rows]
        context_rows = jax.tree.map(lambda x: x[rows], context)
        logits = model.response_pass(
            params, response[:, None, : length - 1], context_rows
        )
        log_prob = token_log_probs(logits[:, 0], response[:, 1:length])
        return jnp.pad(log_prob, ((0, 0), (0, response.shape[1] - length)))

    batch_size, response_len = batch.response.shape
    parts = []
    if num_long > 0:
        parts.append(rest(slice(0, num_long), response_len))
    if num_long < batch_size:
        parts.append(rest(slice(num_long, batch_size), short_len))
    return jnp.concatenate([log_prob_Bx1, jnp.concatenate(parts)], 1)
