"""Training stages: one file an algorithm, its config beside it."""

from parity_jax.stages.linear import (
    LinearPretrainConfig,
    LinearStarConfig,
    SgdConfig,
)
from parity_jax.stages.policy_gradient import (
    PolicyGradientConfig,
    dapo,
    dr_grpo,
    gspo,
    reinforce,
    rloo,
)
from parity_jax.stages.pretrain import PretrainConfig
from parity_jax.stages.rollout import RolloutConfig
from parity_jax.stages.stage import Stage, StageConfig
from parity_jax.stages.star import StarConfig

__all__ = [
    "LinearPretrainConfig",
    "LinearStarConfig",
    "PolicyGradientConfig",
    "PretrainConfig",
    "RolloutConfig",
    "SgdConfig",
    "Stage",
    "StageConfig",
    "StarConfig",
    "dapo",
    "dr_grpo",
    "gspo",
    "reinforce",
    "rloo",
]
