"""Rewards that are scored on the host, from inside of a compiled program.

Texts are judged in processes that can be killed: an answer that takes too long is wrong
and is counted. That depends on the clock, as nothing else does: where it happens, a run
that is continued may differ from one that was not interrupted.
"""

import atexit
import json
import logging
import selectors
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.tasks.text.verify import HERE, State, Verdict
from parity_jax.types import Prompt

WORKER = Path(__file__).with_name("worker.py")
MAX_CACHED = 65_536
GRACE = 1.0  # seconds after which a process is killed that has not ended by itself
START = 60.0  # seconds that its first answer may take longer: it imports packages
STATES: tuple[State, ...] = ("judged", "unreadable", "timeout", "died")


# JAX logs the traceback of a callback that raises; the run tells the error in a line.
logging.getLogger("jax._src.callback").addFilter(lambda record: False)


class RewardError(RuntimeError):
    """A reward function of the user's own that raised or returned no number."""


def reward_error(text: str) -> str | None:
    """The line of a `RewardError` in the text of an error of a compiled program."""
    lines = [line.partition("RewardError: ")[2] for line in text.splitlines()]
    return next((line.strip() for line in reversed(lines) if line), None)


class Job(NamedTuple):
    """What a judge is asked."""

    name: str  # "math" or package.module:function
    prompt: str
    response: str
    answer: str


class _Worker:
    """A process, what it works on, and since when."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the run alone
        )
        self.known: set[str] = set()  # names that it has imported
        self.started, self.seconds = 0.0, 0.0
        self.index: int | None = None

    def ask(self, index: int, job: Job, seconds: float) -> None:
        is_first = job.name not in self.known
        self.index, self.started = index, time.monotonic()
        self.seconds = seconds + START * is_first
        self.known.add(job.name)
        texts = [job.prompt, job.response, job.answer]
        told = {"name": job.name, "texts": texts, "path": sys.path}
        line = json.dumps(told | {"seconds": self.seconds}) + "\n"
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode())
        self.process.stdin.flush()

    def read(self) -> dict[str, Any] | None:
        """Its answer; None if it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    @property
    def is_late(self) -> bool:
        return time.monotonic() - self.started > self.seconds + GRACE

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class ProcessPool:
    """Processes that judge; started when they are first needed."""

    def __init__(self, num_processes: int, seconds: float):
        self.num_processes, self.seconds = num_processes, seconds
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()  # devices call from threads of their own
        atexit.register(self.close)

    @staticmethod
    @lru_cache(maxsize=8)
    def shared(num_processes: int, seconds: float) -> "ProcessPool":
        """One for all tasks of a process."""
        return ProcessPool(num_processes, seconds)

    def close(self) -> None:
        """End all processes."""
        while self._workers:
            self._workers.pop().kill()

    def judge(self, jobs: Sequence[Job]) -> list[Verdict]:
        """A verdict on every job; RewardError if a function of one's own failed."""
        with self._lock:
            return self._judge(jobs)

    def _judge(self, jobs: Sequence[Job]) -> list[Verdict]:
        verdicts: dict[int, Verdict] = {}
        waiting = list(range(len(jobs)))[::-1]
        tried: set[int] = set()
        busy: list[_Worker] = []
        idle, self._workers = self._workers, []
        with selectors.DefaultSelector() as selector:

            def give() -> None:
                while waiting and len(busy) < self.num_processes:
                    worker = idle.pop() if idle else _Worker()
                    index = waiting.pop()
                    try:
                        worker.ask(index, jobs[index], self.seconds)
                    except BrokenPipeError:  # it was killed while it was idle
                        worker.kill()
                        waiting.append(index)
                        continue
                    busy.append(worker)
                    assert worker.process.stdout is not None
                    selector.register(
                        worker.process.stdout, selectors.EVENT_READ, worker
                    )

            def settle(worker: _Worker, found: dict[str, Any] | None) -> None:
                index = worker.index
                assert index is not None
                assert worker.process.stdout is not None
                selector.unregister(worker.process.stdout)
                busy.remove(worker)
                if found is not None:
                    idle.append(worker)
                    if "error" in found:
                        raise RewardError(f"{jobs[index].name}: {found['error']}")
                    verdicts[index] = Verdict(found["value"], found["state"])
                    return
                took = time.monotonic() - worker.started
                worker.kill()
                if took >= worker.seconds:
                    verdicts[index] = Verdict(0.0, "timeout")
                elif index in tried:
                    verdicts[index] = Verdict(0.0, "died")
                else:  # once more, in another process
                    tried.add(index)
                    waiting.append(index)

            try:
                give()
                while busy:
                    for key, _ in selector.select(timeout=0.1):
                        settle(key.data, key.data.read())
                    for worker in [w for w in busy if w.is_late]:
                        settle(worker, None)
                    give()
            finally:
                for worker in busy:
                    worker.kill()
                self._workers = idle
        return [verdicts[i] for i in range(len(jobs))]


class HostReward:
    """A verifier or a function of the user's own on the texts of responses."""

    def __init__(
        self,
        name: str,
        pool: ProcessPool,
        answer_text: Callable[[list[int]], str | None],
        questions: list[str],
        answers: list[str],
    ):
        self.name, self._pool, self._text = name, pool, answer_text
        self._questions, self._answers = questions, answers
        self._known: OrderedDict[Job, Verdict] = OrderedDict()

    def reward(self, prompt: Prompt, response_BxGxT: Array, data: Any) -> Array:
        """Rewards; 0 for responses that have not ended, BxG."""
        return self._call(self.values, prompt, response_BxGxT)[0]

    def flags(self, prompt: Prompt, response_BxGxT: Array) -> dict[str, Array]:
        """Whether a response could not be read, took too long, or ended its judge."""
        state_BxG = self._call(self.values, prompt, response_BxGxT)[1]
        return {
            name: (state_BxG == i).astype(jnp.float32)
            for i, name in enumerate(STATES)
            if i > 0
        }

    def _call(
        self, function: Any, prompt: Prompt, response_BxGxT: Array
    ) -> tuple[Array, Array]:
        shape = response_BxGxT.shape[:2]
        out = (
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.int32),
        )
        row_BxG = jnp.broadcast_to(jnp.asarray(prompt.row)[:, None], shape)
        found: tuple[Array, Array] = jax.pure_callback(
            function, out, row_BxG, response_BxGxT, vmap_method="broadcast_all"
        )
        return found

    def values(self, row: Any, token: Any) -> tuple[np.ndarray, np.ndarray]:
        """Rewards and places in STATES of responses, whatever the shape before T."""
        rows, tokens = np.asarray(row), np.asarray(token)
        flat = tokens.reshape(-1, tokens.shape[-1])
        texts = [self._text(one) for one in flat.tolist()]
        found = self.verdicts(rows.ravel().tolist(), texts)
        value = np.array([v.value for v in found], np.float32)
        state = np.array([STATES.index(v.state) for v in found], np.int32)
        return value.reshape(rows.shape), state.reshape(rows.shape)

    def verdicts(
        self, rows: Sequence[int], texts: Sequence[str | None]
    ) -> list[Verdict]:
        """A verdict on the text of every response; None is one that has not ended."""
        jobs = [
            Job(self.name, self._questions[row], text or "", self._answers[row])
            for row, text in zip(rows, texts, strict=True)
        ]
        ended = {job for job, text in zip(jobs, texts, strict=True) if text is not None}
        known = self._judged(ended)
        return [
            Verdict(0.0) if text is None else known[job]
            for job, text in zip(jobs, texts, strict=True)
        ]

    def _judged(self, jobs: set[Job]) -> dict[Job, Verdict]:
        """Verdicts on different jobs; those of before are remembered."""
        if self.name in HERE:
            judge = HERE[self.name]
            return {job: judge(job.answer, job.response) for job in jobs}
        found = {job: self._known[job] for job in jobs if job in self._known}
        new = sorted(jobs - {*found})
        found |= dict(zip(new, self._pool.judge(new), strict=True))
        for job in new:
            self._known[job] = found[job]
        while len(self._known) > MAX_CACHED:
            self._known.popitem(last=False)
        return found
