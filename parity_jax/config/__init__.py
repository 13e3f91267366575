"""Static configuration: frozen, hashable dataclasses, strict from end to end.

What changes shapes or the program stands here; what is only a number stands in
`types.Hypers`. A bad value raises `ConfigError`: one line with field, value and what is
allowed, before anything is compiled or written.
"""

from parity_jax.config.checks import (
    AXES,
    HYPER_BOUNDS,
    ConfigError,
    check_hyper,
    check_hypers,
    require,
    require_positive,
    unknown_name,
    unknown_value,
)
from parity_jax.config.convert import (
    from_dict,
    to_config_dict,
    to_dict,
)
from parity_jax.config.experiment import (
    EvaluateConfig,
    Experiment,
    PopulationConfig,
    RunConfig,
    check_axes,
)
from parity_jax.config.model import (
    LinearConfig,
    MultiplicationConfig,
    ParityConfig,
    TaskConfig,
    TransformerConfig,
    gpt2,
    mistral,
)
from parity_jax.config.stage import (
    LinearPretrainConfig,
    LinearStarConfig,
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    SgdConfig,
    StageConfig,
    StarConfig,
    dapo,
    dr_grpo,
    gspo,
    reinforce,
    rloo,
)

__all__ = [
    "AXES",
    "HYPER_BOUNDS",
    "ConfigError",
    "EvaluateConfig",
    "Experiment",
    "LinearConfig",
    "LinearPretrainConfig",
    "LinearStarConfig",
    "MultiplicationConfig",
    "ParityConfig",
    "PolicyGradientConfig",
    "PopulationConfig",
    "PretrainConfig",
    "RolloutConfig",
    "RunConfig",
    "SgdConfig",
    "StageConfig",
    "StarConfig",
    "TaskConfig",
    "TransformerConfig",
    "check_axes",
    "check_hyper",
    "check_hypers",
    "dapo",
    "dr_grpo",
    "from_dict",
    "gpt2",
    "gspo",
    "mistral",
    "reinforce",
    "require",
    "require_positive",
    "rloo",
    "to_config_dict",
    "to_dict",
    "unknown_name",
    "unknown_value",
]
