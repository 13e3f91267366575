"""An algorithm of one's own: imitate worked solutions, by next-token prediction."""

from dataclasses import dataclass, field

from parity_jax.gradient import response_gradient
from parity_jax.metrics import Mean
from parity_jax.objectives import Target, next_token_loss
from parity_jax.optim import OptimizerConfig
from parity_jax.responses import response_mask
from parity_jax.stages import Stage, StageConfig
from parity_jax.stages.stage import StepKeys, evaluator, make_init


@dataclass(frozen=True)
class ImitateConfig(StageConfig):
    """Imitation of batch_size worked solutions a step."""

    batch_size: int = 8
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    @property
    def sequences_per_step(self):
        return self.batch_size

    def make(self, task, model, evaluate):
        optimizer = self.optimizer.make()

        def loss_fn(scores, target):
            return next_token_loss(scores, target, self.batch_size)

        def step(state, data):
            key = StepKeys.of(state).data
            prompt = task.sample_prompts(key, self.batch_size, data.task)
            token = task.solution(prompt, data.task).worked[:, :1]
            target = Target(token, response_mask(token, task.format))
            grads, loss, metrics = response_gradient(
                loss_fn, model, state.params, prompt, target, task.format.short_len
            )
            state, _ = optimizer.apply(state, grads)
            metrics["loss"] = Mean.over(loss)
            return state._replace(step=state.step + 1), metrics

        init = make_init(model, optimizer.transformation)
        return Stage(init, step, evaluator(evaluate))
