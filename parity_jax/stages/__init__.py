"""Training stages: init, step and evaluate of one member."""

from parity_jax.config import (
    LinearPretrainConfig,
    LinearStarConfig,
    PolicyGradientConfig,
    PretrainConfig,
    StageConfig,
    StarConfig,
)
from parity_jax.evaluate import Evaluate
from parity_jax.models import Model
from parity_jax.stages.linear import make_linear_pretrain, make_linear_star
from parity_jax.stages.policy_gradient import make_policy_gradient
from parity_jax.stages.pretrain import make_pretrain
from parity_jax.stages.stage import Stage
from parity_jax.stages.star import make_star
from parity_jax.types import Task

__all__ = ["Stage", "make_stage"]


def make_stage(cfg: StageConfig, task: Task, model: Model, evaluate: Evaluate) -> Stage:
    """The stage of a config."""
    match cfg:
        case PretrainConfig():
            return make_pretrain(cfg, task, model, evaluate)
        case PolicyGradientConfig():
            return make_policy_gradient(cfg, task, model, evaluate)
        case StarConfig():
            return make_star(cfg, task, model, evaluate)
        case LinearPretrainConfig():
            return make_linear_pretrain(cfg, task, model, evaluate)
        case LinearStarConfig():
            return make_linear_star(cfg, task, model, evaluate)
