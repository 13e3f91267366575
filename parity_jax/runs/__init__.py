"""Runs: from an experiment to directories that continue exactly."""

from parity_jax.config import RunError
from parity_jax.runs.directory import ExperimentDirectory, RunDirectory
from parity_jax.runs.execute import completed, run_experiment
from parity_jax.runs.resolve import ResolvedRun, make_program, resolve

__all__ = [
    "ExperimentDirectory",
    "ResolvedRun",
    "RunDirectory",
    "RunError",
    "completed",
    "make_program",
    "resolve",
    "run_experiment",
]
