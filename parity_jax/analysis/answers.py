"""What a member answers to a prompt, with what is right and wrong about it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.decode import sample, tempered
from parity_jax.masked import num_tokens
from parity_jax.models import response_logits
from parity_jax.snapshot import RUN, Snapshot
from parity_jax.types import Hypers, Key, Params, Task

DECODINGS = ("greedy", "sampled")


class Answers(NamedTuple):
    """Responses and what is right about them."""

    token: Array  # BxGxT
    probability: Array  # BxGxTxV, of every token after the ones before it
    length: Array  # BxG, tokens before EOS
    right: Array  # BxG, the task's end-to-end reward
    wrong: Array  # BxG, position of the first wrong token; T if there is none


def make_answer(snapshot: Snapshot) -> Callable[[Key, Params, Array, Array], Answers]:
    """answer(key, params, prompt_BxL, temperature): greedy and sampled, compiled."""
    task, model, run = snapshot.task, snapshot.model, snapshot.experiment.runs[RUN]
    has_leaps = run.hypers.p_leap > 0 or max(run.axes.get("p_leap", (0,))) > 0

    @jax.jit
    def answer(
        key: Key, params: Params, prompt_BxL: Array, temperature: Array
    ) -> Answers:
        temperature_G = jnp.stack([jnp.float32(0.0), temperature])
        token_BxGxT = sample(
            key,
            model,
            params,
            prompt_BxL,
            temperature_G,
            task.response_len,
            task.short_len,
        ).token
        logits = response_logits(model, params, prompt_BxL, token_BxGxT)
        return Answers(
            token_BxGxT,
            jax.nn.softmax(tempered(logits, temperature)),
            num_tokens(token_BxGxT),
            task.rewards["e2e"](prompt_BxL, token_BxGxT),
            first_wrong(task, prompt_BxL, token_BxGxT, has_leaps),
        )

    return answer


def describe_answer(task: Task, answers: Answers, b: int, g: int) -> dict[str, Any]:
    """Text, length, whether the answer is right, and the first wrong token (from 1).

    In `marked` that token stands in brackets.
    """
    wrong, length = int(answers.wrong[b, g]), int(answers.length[b, g])
    right, is_wrong = bool(answers.right[b, g]), wrong < answers.token.shape[-1]
    token_T = np.asarray(answers.token[b, g, : length + 1])
    verdict = f"wrong from token {wrong + 1}" if is_wrong else "right"
    return {
        "response": task.to_text(token_T),
        "marked": marked_text(task, token_T, wrong),
        "length": length,
        "right": right,
        "first_wrong": wrong + 1 if is_wrong else None,
        "verdict": "right answer, " * (right and is_wrong) + verdict,
    }


def first_wrong(
    task: Task, prompt_BxL: Array, response_BxGxT: Array, has_leaps: bool
) -> Array:
    """Position of the first token that is not the right response's, BxG; T: none.

    A response that shows its work is held against the full chain (or the leap chain,
    whichever it follows further), another against the short answer: the task's own
    demonstrations without noise.
    """
    num_positions = response_BxGxT.shape[-1]

    def position(**share: float) -> Array:
        hypers = Hypers(**{"p_cot": 0.0} | share)

        def demonstrated(prompt_L: Array) -> Array:  # alone, so that none is sorted
            return task.demonstrate(jax.random.key(0), prompt_L[None], hypers).response

        differs_BxGxT = response_BxGxT != jax.vmap(demonstrated)(prompt_BxL)
        return jnp.where(differs_BxGxT.any(-1), differs_BxGxT.argmax(-1), num_positions)

    long_BxG = position(p_cot=1.0)
    if has_leaps:
        long_BxG = jnp.maximum(long_BxG, position(p_leap=1.0))
    return jnp.where(task.is_long(response_BxGxT), long_BxG, position())


def marked_text(task: Task, token_T: np.ndarray, wrong: int) -> str:
    """The text of a response with token `wrong` in brackets (as it is if none is)."""
    text = task.to_text(token_T)
    if wrong >= len(token_T):
        return text
    before, until = task.to_text(token_T[:wrong]), task.to_text(token_T[: wrong + 1])
    token = until.removeprefix(before)
    space = token[: len(token) - len(token.lstrip())]
    return f"{before}{space}[{token.strip()}]{text.removeprefix(until)}"
