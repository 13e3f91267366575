"""Rewards that are scored on the host, from inside of a compiled program."""

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.platform import platform
from parity_jax.tasks.text.pool import Job, ProcessPool
from parity_jax.tasks.text.verify import HERE, State, Verdict
from parity_jax.types import Prompt

MAX_CACHED = 65_536
STATES: tuple[State, ...] = ("judged", "unreadable", "timeout", "died")


# JAX logs the traceback of a callback that raises; the run tells the error in a line.
logging.getLogger("jax._src.callback").addFilter(lambda record: False)


def reward_error(text: str) -> str | None:
    """The line of a `RewardError` in the text of an error of a compiled program."""
    lines = [line.partition("RewardError: ")[2] for line in text.splitlines()]
    return next((line.strip() for line in reversed(lines) if line), None)


def callback_error(text: str) -> str | None:
    """Place and error of a function of own code that a compiled program called back
    (`jax.pure_callback`), from the text of its error; None: it was something else.
    """
    if "error calling callback" not in text:
        return None
    places = re.findall(r'File "(.+)", line (\d+)', text)
    return ": ".join(
        [":".join(place) for place in places[-1:]] + [text.splitlines()[-1]]
    )


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
        if platform() != jax.default_backend():  # compiled for a target, and never run
            some_BxG = response_BxGxT[..., 0] % 2
            return some_BxG.astype(jnp.float32), some_BxG.astype(jnp.int32)
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
