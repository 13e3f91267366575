"""The only host loop: chunk of steps -> metrics -> evaluation -> checkpoint."""

import time
from collections.abc import Callable, Collection

import jax
import numpy as np

from parity_jax.config import RunError, StoppedError, label_text
from parity_jax.experiment import Schedule
from parity_jax.hosts import any_of, of_first, on_host
from parity_jax.metrics import Metrics
from parity_jax.population import Population
from parity_jax.runs.checkpoint import Checkpoints, by_path, digest
from parity_jax.runs.metrics_file import MetricsFile
from parity_jax.runs.progress import Report
from parity_jax.tasks.text import callback_error, reward_error
from parity_jax.types import RUNNING, STATUS_TEXT, StageState


class Training:
    """A run in progress: its states, and the files that they go to."""

    def __init__(
        self,
        stage: str,  # its kind
        schedule: Schedule,
        population: Population,
        checkpoints: Checkpoints,
        metrics_file: MetricsFile,
        report: Report,
        kept: Collection[int] = (),  # steps whose checkpoints stay in any case
    ):
        self.stage, self.schedule, self.population = stage, schedule, population
        self.checkpoints, self.metrics_file = checkpoints, metrics_file
        self.report, self.pace = report, Pace(schedule.chunk_seconds)
        self.kept = {*kept}

    def run(
        self,
        states: StageState,
        metrics: Metrics,
        step: int,
        recorded: int,
        should_stop: Callable[[], bool],
    ) -> StageState:
        """All members from `step` (-1: a fresh run) until the end or none is running.

        `metrics` are those since the last record. Metrics up to a step are on disk
        before its checkpoint is, so a run that continues from any checkpoint finds all
        earlier records. Asked to stop, it saves what it has at the end of the chunk and
        raises StoppedError.
        """
        self.check_members(max(step, 0), states, "init" if step < 0 else "a step of it")
        stopped_P = self.tell_stopped(states, np.zeros(len(states.step), bool))
        if step == self.schedule.num_steps:  # where one that was to end later stopped
            known = {r.split for r in self.metrics_file.read() if r.step == step}
            self.record(step, states, metrics, 0.0, known)
        while step < self.schedule.num_steps and not (
            stopped_P.all() and step == recorded
        ):
            target = self.schedule.next_record(step)
            seconds = 0.0
            while max(step, 0) < target:
                if any_of(should_stop()) and step >= 0:
                    self.stop(step, states, metrics, recorded)
                num_steps = of_first(self.pace.chunk(target - max(step, 0)))
                started = time.monotonic()
                try:
                    new = self.population.advance(states, metrics, num_steps)
                    jax.block_until_ready(new)
                except jax.errors.JaxRuntimeError as error:
                    told, failed = reward_error(str(error)), callback_error(str(error))
                    if told is not None:
                        self.keep(step, states, metrics, recorded)
                        raise RunError(f"{told}; step {step} is saved") from None
                    raise (error if failed is None else RunError(failed)) from None
                states, metrics = new
                self.pace.measured(num_steps, time.monotonic() - started)
                seconds += time.monotonic() - started
                step = max(step, 0) + num_steps
                self.check_members(step, states, "a step of it")
            stopped_P = self.tell_stopped(states, stopped_P)
            is_end = bool(stopped_P.all())
            shown = self.record(target, states, metrics, seconds, is_end=is_end)
            step = recorded = target
            metrics = self.population.no_metrics()
            if stopped_P.all() or step in self.schedule.saved_steps():
                self.save(step, states, {}, recorded)
            self.report.update(step, shown)
            if any_of(should_stop()) and step < self.schedule.num_steps:
                self.stop(step, states, {}, recorded)
        self.settle()
        self.tell_alike(states)
        return states

    def check_members(self, step: int, states: StageState, who: str) -> None:
        """RunError for a stage that does not count its steps or ends for no reason."""
        where = f"{self.stage}: {who} left"
        step_P, status_P = on_host((states.step, states.status))
        for own, status in zip(step_P.tolist(), status_P.tolist(), strict=True):
            if status not in STATUS_TEXT:
                known = ", ".join(map(str, STATUS_TEXT))
                raise RunError(f"{where} status={status}: must be one of {known}")
            if status == RUNNING and own != step:
                allowed = f"must be {step}: it counts the steps, from 0"
                raise RunError(f"{where} step={own}: {allowed}")

    def record(
        self,
        step: int,
        states: StageState,
        metrics: Metrics,
        seconds: float,
        known: Collection[str] = (),
        is_end: bool = False,
    ) -> Metrics:
        """Write the metrics of the steps until this one, and its evaluation.

        known   what of them is written already: "train", "eval"
        is_end  no member goes on from here, wherever the run was to end
        """
        shown: Metrics = {}
        metrics = on_host(metrics)
        if step > 0 and "train" not in known:
            self.metrics_file.append("train", step, seconds, metrics)
            shown |= metrics
        is_due = self.schedule.is_evaluated(step) or is_end
        if is_due and "eval" not in known:
            started = time.monotonic()
            scores = jax.block_until_ready(self.population.scores(states))
            scores = on_host(scores)
            seconds = time.monotonic() - started
            self.metrics_file.append("eval", step, seconds, scores)
            shown |= scores
        return shown

    def keep(
        self, step: int, states: StageState, metrics: Metrics, recorded: int
    ) -> None:
        """Have a step on disk."""
        if step not in self.checkpoints.steps():
            self.save(step, states, metrics, recorded)
        self.settle()

    def stop(
        self, step: int, states: StageState, metrics: Metrics, recorded: int
    ) -> None:
        """Save and say so."""
        self.keep(step, states, metrics, recorded)
        raise StoppedError(f"stopped at step {step} and saved")

    def save(
        self, step: int, states: StageState, metrics: Metrics, recorded: int
    ) -> None:
        """Start to save a step; older checkpoints go when a newer one is on disk.

        Step 0 is on disk before anything is trained: what has trained has a checkpoint.
        """
        self.settle()
        self.checkpoints.save(step, states, metrics, recorded)
        if step == 0:
            self.checkpoints.wait()

    def settle(self) -> None:
        """Wait for the last save, then delete the checkpoints that are not kept."""
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        kept = {*self.schedule.kept_steps(steps)} | (self.kept & {*steps})
        self.checkpoints.keep_only(sorted(kept))

    def tell_stopped(self, states: StageState, known_P: np.ndarray) -> np.ndarray:
        """Which members are frozen; those not known before are reported."""
        ends = on_host((states.status, states.step))
        status_P, step_P = (np.asarray(x) for x in ends)
        stopped_P = status_P != RUNNING
        for i in np.flatnonzero(stopped_P & ~known_P):
            who = label_text(self.population.labels[i])
            text = STATUS_TEXT[int(status_P[i])]
            self.report.warn(
                f"member {who} {text} after step {step_P[i]}; it stays frozen there"
            )
        return stopped_P

    def tell_alike(self, states: StageState) -> None:
        """Members that trained to the same parameters: what differs did nothing."""
        labels = self.population.labels
        if len(labels) == 1 or self.schedule.num_steps == 0:
            return
        params, status_P = on_host((by_path(states.params), states.status))
        arrays = {name: np.asarray(x) for name, x in params.items()}
        first = dict[str, str]()
        pairs = list[str]()
        for i in np.flatnonzero(np.asarray(status_P) == RUNNING).tolist():
            who, own = label_text(labels[i]), {k: x[i] for k, x in arrays.items()}
            other = first.setdefault(digest(own), who)
            if other != who:
                pairs.append(f"{who} as {other}")
        if pairs:
            more = f"; and {len(pairs) - 3} more" if len(pairs) > 3 else ""
            told = f"members trained to the same parameters: {'; '.join(pairs[:3])}"
            self.report.warn(told + more)


class Pace:
    """How many steps fit into some seconds; no result depends on it."""

    def __init__(self, max_seconds: float):
        self.max_seconds, self.last, self.step_seconds = max_seconds, 0, 0.0

    def chunk(self, wanted: int) -> int:
        """At most `wanted` steps: few at first, then twice as many as before."""
        if self.max_seconds == 0:
            return wanted
        most = 2 * self.last or 1
        if self.step_seconds > 0:
            most = min(most, int(self.max_seconds / self.step_seconds))
        return max(1, min(wanted, most))

    def measured(self, num_steps: int, seconds: float) -> None:
        """What a chunk took."""
        self.last = max(self.last, num_steps)
        self.step_seconds = seconds / num_steps
