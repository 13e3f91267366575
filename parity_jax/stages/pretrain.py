"""Next-token prediction on fresh demonstrations (paper section 3).

    for every step:
        x ~ prompts;  y ~ D(p_cot) given x
        loss = mean over sequences of  sum_j -log pi(y_j | x, y_<j)
        params <- AdamW(params, grad loss)

Start here: the other stages have the same shape.
"""

import jax
from jax import Array

from parity_jax import optim
from parity_jax.config import PretrainConfig
from parity_jax.evaluate import Evaluate
from parity_jax.gradient import response_gradient
from parity_jax.masked import Mean, Metrics
from parity_jax.models import Model
from parity_jax.objectives import Target, next_token_loss
from parity_jax.stages.stage import Stage, StepKeys, evaluator, make_init
from parity_jax.types import StageState, Task


def make_pretrain(
    cfg: PretrainConfig, task: Task, model: Model, evaluate: Evaluate
) -> Stage:
    """The stage of a config."""
    optimizer = optim.adamw(cfg.weight_decay)
    schedule = optim.cosine_decay(cfg.decay_steps, cfg.final_lr_ratio)

    def loss_fn(logits: Array, target: Target) -> tuple[Array, Metrics]:
        return next_token_loss(logits, target, cfg.batch_size)

    def step(state: StageState) -> tuple[StageState, Metrics]:
        k_prompt, k_demonstration = jax.random.split(StepKeys.of(state).data)
        prompt_BxL = task.sample_prompts(k_prompt, cfg.batch_size)
        batch = task.demonstrate(k_demonstration, prompt_BxL, state.hypers)
        target = Target(batch.response[:, None], batch.mask[:, None])  # G = 1
        grads, loss, metrics = response_gradient(
            loss_fn, model, state.params, prompt_BxL, target, task.short_len
        )
        state, grad_norm = optim.apply(optimizer, state, grads, schedule(state.step))
        metrics |= {"loss": Mean.over(loss), "grad_norm": Mean.over(grad_norm)}
        return state._replace(step=state.step + 1), metrics

    return Stage(
        init=make_init(model, optimizer),
        step=step,
        evaluate=evaluator(evaluate),
        sequences_per_step=cfg.batch_size,
    )
