"""Answers of a member to the test rows of a task, and what they sum up to."""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity_jax.decode import sample
from parity_jax.models import Model
from parity_jax.responses import has_ended, num_tokens
from parity_jax.tasks import Text, TextConfig
from parity_jax.tasks.text.answers import wrong_answer
from parity_jax.types import Params, Prompt, Response

BATCH = 32  # prompts that are answered together


def answered_rows(
    task: Text, model: Model, params: Params, num_rows: int, num_samples: int
) -> Iterator[dict[str, Any]]:
    """Of each of the first test rows its greedy answer and samples at temperature 1.

    num_rows   0: all
    """
    temperature_G = jnp.array([0.0] + [1.0] * num_samples)

    @jax.jit
    def respond(key: jax.Array, params: Params, prompt: Prompt) -> Response:
        return sample(key, model, params, prompt, temperature_G, task.format)

    whole = task.eval_prompts
    num = num_rows or len(whole.token)
    for start in range(0, num, BATCH):
        # the last batch is filled up, so that one program serves all
        place_B = np.arange(start, start + BATCH) % num
        prompt = jax.tree.map(lambda x, at=place_B: x[at], whole)
        key = jax.random.fold_in(jax.random.key(0), start)
        token = respond(key, params, prompt).token
        batch = {
            "correct": task.rewards["e2e"](prompt, token, task.data) > 0,
            "is_long": task.is_long(token),
            "ended": has_ended(token, task.format),
            "length": num_tokens(token, task.format),
        }
        columns = {name: np.asarray(x).tolist() for name, x in batch.items()}
        for b in range(min(BATCH, num - start)):
            row = task.splits.rows[int(np.asarray(prompt.row)[b])]
            answers = []
            for g, ids in enumerate(np.asarray(token[b])):
                each = {name: column[b][g] for name, column in columns.items()}
                text = response_text(task, ids)
                answer = answer_given(task.config, text, row.answer, each)
                answers.append({"response": text, "answer": answer} | each)
            head = {"row": start + b, "prompt": row.prompt, "gold": row.answer}
            yield head | {"greedy": answers[0], "samples": answers[1:]}


def answer_given(
    cfg: TextConfig, response: str, gold: str, seen: dict[str, Any]
) -> str | None:
    """What a response votes for: the right answer, however written, or its own."""
    if seen["correct"]:
        return gold
    if not seen["ended"]:
        return None
    return wrong_answer(cfg.verifier, cfg.template, response, gold)


def response_text(task: Text, token_T: np.ndarray) -> str:
    """The text of a response without its end."""
    length = int(num_tokens(jnp.array(token_T), task.format))
    return task.to_text(token_T[:length])


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Shares and lengths over all rows; None of nothing.

    pass   one of a row's samples is right
    maj    the most frequent answer of its samples is right, or of several that are as
           frequent the share that is; samples that have not ended give none
    """
    found: dict[str, float | None] = {}
    groups = {"greedy": [[row["greedy"]] for row in rows]}
    if rows and rows[0]["samples"]:
        groups["sampled"] = [row["samples"] for row in rows]
    for name, group in groups.items():
        found |= {f"{name}/{k}": v for k, v in scores([a for g in group for a in g])}
    samples = groups.get("sampled", [])
    k = len(samples[0]) if samples else 0
    if k > 1:
        found[f"pass@{k}"] = mean([any(a["correct"] for a in g) for g in samples])
        found[f"maj@{k}"] = mean([vote(g) for g in samples])
    return found


def scores(answers: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float | None]]:
    """What a set of answers adds up to."""
    right = [a for a in answers if a["correct"]]
    wrong = [a for a in answers if not a["correct"]]
    long = [a for a in answers if a["is_long"]]
    short = [a for a in answers if not a["is_long"]]
    yield "accuracy", mean([a["correct"] for a in answers])
    yield "p_long", mean([a["is_long"] for a in answers])
    yield "accuracy_long", mean([a["correct"] for a in long])
    yield "accuracy_short", mean([a["correct"] for a in short])
    yield "truncated", mean([not a["ended"] for a in answers])
    for name, some in (("", answers), ("_correct", right), ("_wrong", wrong)):
        lengths = [a["length"] for a in some]
        yield f"length_mean{name}", mean(lengths)
        yield f"length_median{name}", float(median(lengths)) if lengths else None


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return float(np.mean(values)) if values else None


def vote(answers: Sequence[dict[str, Any]]) -> float:
    """Share of the answers that most of them give that are right: 0 or 1 without a tie.

    Those without an answer abstain.
    """
    given = Counter(a["answer"] for a in answers if a["answer"] is not None)
    most = max(given.values(), default=0)
    won = []
    for winner in (answer for answer, count in given.items() if count == most):
        right = [a["correct"] for a in answers if a["answer"] == winner]
        won.append(sum(right) > len(right) / 2)  # other tokens may read the same
    return float(np.mean(won)) if won else 0.0
