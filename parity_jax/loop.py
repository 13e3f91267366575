"""The only host loop: chunk of steps -> metrics -> evaluation -> checkpoint."""

import time
from collections.abc import Callable

import jax
import numpy as np

from parity_jax.checkpoint import Checkpoints
from parity_jax.config import RunConfig
from parity_jax.interrupt import StoppedError
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
    should_stop: Callable[[], bool],
) -> StageState:
    """Run all members from `step` (-1: a fresh run) until the end or none is running.

    Metrics up to a step are on disk before its checkpoint is, so a run that continues
    from any checkpoint finds all earlier records. Asked to stop, it saves the states at
    the end of the chunk and raises StoppedError.
    """
    nobody = np.zeros(len(population.labels), bool)
    stopped = tell_stopped(population, states, nobody, report)
    for target in boundaries(run, step):
        if stopped.all():
            break
        started = time.monotonic()
        metrics = {}
        if target > 0:
            chunk = population.run(states, target - max(step, 0))
            states, metrics = jax.block_until_ready(chunk)  # to measure its seconds
            metrics_file.append("train", target, time.monotonic() - started, metrics)
        if is_evaluated(target, run):
            scores = jax.block_until_ready(population.evaluate(states))
            metrics_file.append("eval", target, time.monotonic() - started, scores)
            metrics = metrics | scores
        step = target
        stopped = tell_stopped(population, states, stopped, report)
        asked = should_stop() and step < run.num_steps
        if asked or stopped.all() or step in run.scheduled_steps():
            save(run, checkpoints, step, states)
        report.update(step, metrics, population.sequences_per_step * len(stopped))
        if asked:
            settle(run, checkpoints)
            raise StoppedError(f"stopped at step {step} and saved")
    settle(run, checkpoints)
    return states


def save(
    run: RunConfig, checkpoints: Checkpoints, step: int, states: StageState
) -> None:
    """Start to save a step; older checkpoints go when a newer one is on disk.

    Step 0 is on disk before anything is trained: what has trained has a checkpoint.
    """
    settle(run, checkpoints)
    checkpoints.save(step, states)
    if step == 0:
        checkpoints.wait()


def settle(run: RunConfig, checkpoints: Checkpoints) -> None:
    """Wait for the last save, then delete the checkpoints that are not to be kept."""
    checkpoints.wait()
    checkpoints.keep_only(run.kept_steps(checkpoints.steps()))


def boundaries(run: RunConfig, start: int) -> list[int]:
    """The steps after `start` at which the loop returns to the host."""
    steps = set(run.scheduled_steps())  # the last one among them
    for every in (run.log_every, run.eval_every):
        steps |= set(range(0, run.num_steps, every))
    return sorted(step for step in steps if step > start)


def is_evaluated(step: int, run: RunConfig) -> bool:
    """Whether a step is evaluated: every so many, the first and the last."""
    return step == run.num_steps or step % run.eval_every == 0


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
