"""What experiments and notebooks import: metrics, claims, figures."""

from parity_jax.analysis.claims import Answer, Check, Claim
from parity_jax.analysis.results import Results, load_metrics
from parity_jax.analysis.scores import (
    by_member,
    first_step,
    is_solved,
    is_stuck,
    last,
    mean_interval,
)
from parity_jax.analysis.sweeps import load_sweep

__all__ = [
    "Answer",
    "Check",
    "Claim",
    "Results",
    "by_member",
    "first_step",
    "is_solved",
    "is_stuck",
    "last",
    "load_metrics",
    "load_sweep",
    "mean_interval",
]
