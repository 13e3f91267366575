"""Processes that judge texts and can be killed.

An answer that takes too long is wrong and is counted. That depends on the clock, as
nothing else does: where it happens, a run that is continued may differ from one that
was not interrupted.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from parity_jax.tasks.text.verify import Verdict

WORKER = Path(__file__).with_name("worker.py")
GRACE = 1.0  # seconds after which a process is killed that has not ended by itself
START = 60.0  # seconds that the import of a judge may take


class RewardError(RuntimeError):
    """A reward function of the user's own that raised or returned no number."""


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
        assert self.process.stdout is not None
        self.pipe = self.process.stdout.fileno()
        self.known: set[str] = set()  # names that it has imported
        self.started, self.seconds = 0.0, 0.0
        self.index = 0
        self.begun = b""  # of a line that is not whole yet

    def ask(self, index: int, job: Job, seconds: float) -> None:
        is_first = job.name not in self.known
        self.index, self.started = index, time.monotonic()
        self.seconds = START if is_first else seconds
        self.known.add(job.name)
        texts = [job.prompt, job.response, job.answer]
        told = {"name": job.name, "texts": texts, "path": sys.path, "seconds": seconds}
        line = json.dumps(told | ({"start": START} if is_first else {})) + "\n"
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode())
        self.process.stdin.flush()

    def read(self) -> list[dict[str, Any] | None]:
        """What it says; None is its end."""
        data = os.read(self.pipe, 65_536)
        *lines, self.begun = (self.begun + data).split(b"\n")
        said: list[dict[str, Any] | None] = [json.loads(line) for line in lines]
        return said if data else [None]

    @property
    def is_late(self) -> bool:
        return time.monotonic() - self.started > self.seconds + GRACE

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):  # of what it did not read
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
            idle, self._workers = self._workers, []
            work = _Round(jobs, idle, self.num_processes, self.seconds)
            try:
                return work.verdicts()
            finally:
                self._workers = work.leave()


class _Round:
    """Jobs that are shared out among processes."""

    def __init__(
        self, jobs: Sequence[Job], idle: list[_Worker], most: int, seconds: float
    ):
        self.jobs, self.idle, self.most, self.seconds = jobs, idle, most, seconds
        self.waiting = list(range(len(jobs)))[::-1]
        self.busy: list[_Worker] = []
        self.found: dict[int, Verdict] = {}
        self.tried: set[int] = set()  # jobs whose process has died once

    def verdicts(self) -> list[Verdict]:
        """Those on all jobs, in their order."""
        self.give()
        while self.busy:
            by_pipe = {worker.pipe: worker for worker in self.busy}
            told = wait([*by_pipe], 0.1)
            for worker in [w for pipe, w in by_pipe.items() if pipe in told]:
                for said in worker.read():
                    self.settle(worker, said)
            for worker in [w for w in self.busy if w.is_late]:
                self.settle(worker, None)
            self.give()
        return [self.found[i] for i in range(len(self.jobs))]

    def leave(self) -> list[_Worker]:
        """The processes that can go on; those at work are killed."""
        for worker in self.busy:
            worker.kill()
        return self.idle

    def give(self) -> None:
        """Give every process something to do."""
        while self.waiting and len(self.busy) < self.most:
            worker = self.idle.pop() if self.idle else _Worker()
            index = self.waiting.pop()
            try:
                worker.ask(index, self.jobs[index], self.seconds)
            except BrokenPipeError:  # it was killed while it was idle
                worker.kill()
                self.waiting.append(index)
                continue
            self.busy.append(worker)

    def settle(self, worker: _Worker, said: dict[str, Any] | None) -> None:
        """Take what a process says; None: it has ended, or is to."""
        index = worker.index
        if said is not None and "ready" in said:  # now the time of its job begins
            worker.started, worker.seconds = time.monotonic(), self.seconds
            return
        self.busy.remove(worker)
        if said is not None:
            self.idle.append(worker)
            if "error" in said:
                raise RewardError(f"{self.jobs[index].name}: {said['error']}")
            self.found[index] = Verdict(said["value"], said["state"])
            return
        took = time.monotonic() - worker.started
        worker.kill()
        if took >= worker.seconds:
            self.found[index] = Verdict(0.0, "timeout")
        elif index in self.tried:
            self.found[index] = Verdict(0.0, "died")
        else:  # once more, in another process
            self.tried.add(index)
            self.waiting.append(index)
