"""The only host loop: chunk of steps -> metrics -> evaluation -> checkpoint."""

import time

import numpy as np

from parity_jax.checkpoint import Checkpoints
from parity_jax.config import RunConfig
from parity_jax.population import Population
from parity_jax.progress import Report
from parity_jax.results import MetricsFile
from parity_jax.types import RUNNING, STATUS_TEXT, StageState


def train(
    run: RunConfig,
    population: Population,
    states: StageState,
    step: int,
    checkpoints: Checkpoints,
    metrics_file: MetricsFile,
    report: Report,
) -> StageState:
    """Run all members from `step` (-1: a fresh run) until the end or none is running.

    Metrics up to a step are on disk before its checkpoint is, so a run that continues
    from any checkpoint finds all earlier records.
    """
    stopped = np.zeros(len(population.labels), bool)
    for target in boundaries(run, step):
        started = time.monotonic()
        metrics = {}
        if target > 0:
            states, metrics = population.run(states, target - max(step, 0))
            metrics_file.append("train", target, time.monotonic() - started, metrics)
        if is_due(target, run.eval_every, run):
            scores = population.evaluate(states)
            metrics_file.append("eval", target, time.monotonic() - started, scores)
            metrics = metrics | scores
        step = target
        stopped = tell_stopped(population, states, stopped, report)
        if stopped.all() or is_due(step, run.checkpoint_every, run):
            checkpoints.save(step, states)
        report.update(step, metrics, population.sequences_per_step * len(stopped))
        if stopped.all():
            break
    checkpoints.wait()
    return states


def boundaries(run: RunConfig, start: int) -> list[int]:
    """The steps after `start` at which the loop returns to the host."""
    every = [run.log_every, run.eval_every, run.checkpoint_every or run.num_steps]
    steps = {step for n in every for step in range(0, run.num_steps, n)}
    steps |= {run.num_steps}
    return sorted(step for step in steps if step > start)


def is_due(step: int, every: int, run: RunConfig) -> bool:
    """Whether something is due that is done every so many steps, first and last."""
    return step in (0, run.num_steps) or (every > 0 and step % every == 0)


def tell_stopped(
    population: Population, states: StageState, known_P: np.ndarray, report: Report
) -> np.ndarray:
    """Which members are frozen; those not known before are reported."""
    status_P, step_P = np.asarray(states.status), np.asarray(states.step)
    stopped_P = status_P != RUNNING
    for i in np.flatnonzero(stopped_P & ~known_P):
        label = ", ".join(f"{k}={v:g}" for k, v in population.labels[i].items())
        text = STATUS_TEXT[int(status_P[i])]
        report.warn(
            f"member {label} {text} after step {step_P[i]}; it stays frozen there"
        )
    return stopped_P
