"""Configs as plain data: strict construction, comparison, overrides, labels.

A config is a frozen dataclass beside what it configures. A bad value raises
`ConfigError`: one line with field, value and what is allowed.
"""

from parity_jax.config.checks import (
    MAX_SIZE,
    ConfigError,
    MissingCodeError,
    RunError,
    StoppedError,
    UserCodeError,
    early,
    expanded,
    in_code_of,
    is_finite,
    require,
    require_count,
    require_default,
    require_finite,
    require_float32,
    require_positive,
    under,
    unique,
    unknown_name,
    unknown_value,
)
from parity_jax.config.compare import differences, lines_of
from parity_jax.config.convert import (
    Configured,
    from_dict,
    import_object,
    kind_of,
    to_dict,
)
from parity_jax.config.labels import Label, label_text, number_text, parse_label

__all__ = [
    "MAX_SIZE",
    "ConfigError",
    "Configured",
    "Label",
    "MissingCodeError",
    "RunError",
    "StoppedError",
    "UserCodeError",
    "differences",
    "early",
    "expanded",
    "from_dict",
    "import_object",
    "in_code_of",
    "is_finite",
    "kind_of",
    "label_text",
    "lines_of",
    "number_text",
    "parse_label",
    "require",
    "require_count",
    "require_default",
    "require_finite",
    "require_float32",
    "require_positive",
    "to_dict",
    "under",
    "unique",
    "unknown_name",
    "unknown_value",
]
