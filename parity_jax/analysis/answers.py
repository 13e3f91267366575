"""What a member answers to a prompt, with what is right and wrong about it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.decode import sample
from parity_jax.models import Model, response_logits
from parity_jax.policy import tempered, truncated
from parity_jax.responses import num_tokens
from parity_jax.tasks import FiniteTask, Task, num_begun
from parity_jax.types import Key, Params, Prompt

DECODINGS = ("greedy", "sampled")


class Answers(NamedTuple):
    """Responses and what is right about them."""

    token: Array  # BxGxT
    probability: Array  # BxGxTxV, of every token after the ones before it
    length: Array  # BxG, tokens before the end
    right: Array  # BxG, the task's end-to-end reward; NaN where nothing is known
    wrong: Array  # BxG, position of the first wrong token; T if none is known


def make_answer(
    task: Task, model: Model, top_k: int = 0, top_p: float = 1.0
) -> Callable[[Key, Params, Prompt, Array | float], Answers]:
    """answer(key, params, prompt, temperature): greedy and sampled, compiled.

    The sampled one is of the likeliest tokens only; its probabilities are of all.
    """

    @jax.jit
    def answer(
        data: Any, key: Key, params: Params, prompt: Prompt, temperature: Array
    ) -> Answers:
        def unembed(params: Params, hidden: Array) -> Array:
            logits = model.unembed(params, hidden)
            kept = truncated(tempered(logits, temperature), top_k, top_p)
            return jnp.where(kept > -jnp.inf, logits, -jnp.inf)

        sampled = model._replace(unembed=unembed)
        temperature_G = jnp.stack([jnp.zeros_like(temperature), temperature])
        token = sample(key, sampled, params, prompt, temperature_G, task.format).token
        logits = response_logits(model, params, prompt, token)
        right = jnp.full(token.shape[:2], jnp.nan)
        if not isinstance(task, FiniteTask) or prompt.row is not None:
            right = task.rewards["e2e"](prompt, token, data)
        wrong = jnp.full(token.shape[:2], token.shape[-1])
        if not isinstance(task, FiniteTask):  # work may be another and right as well
            wrong = first_wrong(task, prompt, token, data)
        return Answers(
            token,
            jax.nn.softmax(tempered(logits, temperature)),
            num_tokens(token, task.format),
            right,
            wrong,
        )

    return partial(answer, task.data)


def describe_answer(task: Task, answers: Answers, b: int, g: int) -> dict[str, Any]:
    """Text, length, whether the answer is right, and the first wrong token (from 1).

    In `marked` that token stands in brackets.
    """
    wrong, length = int(answers.wrong[b, g]), int(answers.length[b, g])
    right, is_wrong = float(answers.right[b, g]), wrong < answers.token.shape[-1]
    token_T = np.asarray(answers.token[b, g, : length + 1])
    verdict = "right" if right else "wrong"
    if is_wrong:
        verdict = "right answer, " * (right > 0) + f"wrong from token {wrong + 1}"
    is_known = not np.isnan(right)
    return {
        "response": task.to_text(token_T),
        "marked": marked_text(task, token_T, wrong),
        "length": length,
        "right": right > 0 if is_known else None,
        "first_wrong": wrong + 1 if is_wrong else None,
        "verdict": verdict if is_known else "not judged",
    }


def first_wrong(
    task: Task, prompt: Prompt, response_BxGxT: Array, data: Any = ()
) -> Array:
    """Position of the first token that is not the right response's, BxG; T: none.

    A response that shows its work is held against the way to work it out that it
    follows furthest, another against the short answer.
    """
    solution = task.solution(prompt, data)
    num_positions = response_BxGxT.shape[-1]

    def position(differs: Array) -> Array:
        return jnp.where(differs.any(-1), differs.argmax(-1), num_positions)

    short_BxG = position(response_BxGxT != solution.short[:, None])
    worked_BxG = num_begun(task, prompt, response_BxGxT, data)
    return jnp.where(task.is_long(response_BxGxT), worked_BxG, short_BxG)


def marked_text(task: Task, token_T: np.ndarray, wrong: int) -> str:
    """The text of a response with token `wrong` in brackets (as it is if none is)."""
    text = task.to_text(token_T)
    if wrong >= len(token_T):
        return text
    before, until = task.to_text(token_T[:wrong]), task.to_text(token_T[: wrong + 1])
    token = until.removeprefix(before)
    space = token[: len(token) - len(token.lstrip())]
    return f"{before}{space}[{token.strip()}]{text.removeprefix(until)}"


def prompt_text(task: Task, prompt: Prompt, b: int) -> str:
    """A prompt as a line, without its padding."""
    token_L = np.asarray(prompt.token[b])
    return task.to_text(token_L if prompt.mask is None else token_L[prompt.mask[b]])
