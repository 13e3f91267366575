"""Whether the verifier of a task pays its own demonstrations."""

from collections.abc import Callable, Sequence
from itertools import islice

from parity_jax.config import ConfigError
from parity_jax.tasks.text.pool import Job, ProcessPool
from parity_jax.tasks.text.rows import Row
from parity_jax.tasks.text.table import Tokens
from parity_jax.tasks.text.templates import TemplateConfig
from parity_jax.tasks.text.verify import HERE, Verifier

NUM_JUDGED = 16  # rows on whose demonstrations math-verify is tried
MAX_SHOWN = 80  # signs of a demonstration in an error


def check_paid(
    verifier: Verifier,
    template: TemplateConfig,
    rows: Sequence[Row],
    tokens: Sequence[Tokens],
    answer_text: Callable[[list[int]], str | None],
    pool: ProcessPool,
) -> None:
    """ConfigError for a template whose demonstrations its verifier does not pay.

    They are judged as a model says them, `answer_text` of their tokens. All rows count;
    with math-verify, which reads no answers in words and is slow, the demonstrations of
    all of the first rows must fail.
    """
    for kind in ("long", "short"):
        said = (answer_text(getattr(each, kind)) or "" for each in tokens)
        if verifier in HERE:
            judge = HERE[verifier]
            for row, text in zip(rows, said, strict=True):
                if judge(row.answer, text).value != 1:
                    raise unpaid(verifier, kind, template, text, row)
        if verifier == "math":
            pairs = [*islice(zip(rows, said, strict=True), NUM_JUDGED)]
            jobs = [Job("math", row.prompt, text, row.answer) for row, text in pairs]
            if not any(verdict.value for verdict in pool.judge(jobs)):
                row, text = pairs[0]
                raise unpaid(verifier, kind, template, text, row)


def unpaid(
    verifier: Verifier, kind: str, template: TemplateConfig, text: str, row: Row
) -> ConfigError:
    """The error of a demonstration that earns nothing."""
    shown = text if len(text) <= MAX_SHOWN else f"..{text[-MAX_SHOWN:]}"
    allowed = f"verifier={verifier!r} does not pay its demonstration {shown!r}"
    allowed += f" of the answer {row.answer!r}"
    return ConfigError(f"template.{kind}", getattr(template, kind), allowed)
