"""Whether the verifier of a task pays its own demonstrations."""

from collections.abc import Sequence

from parity_jax.config import ConfigError
from parity_jax.tasks.text.pool import Job, ProcessPool
from parity_jax.tasks.text.rows import Row
from parity_jax.tasks.text.templates import TemplateConfig
from parity_jax.tasks.text.verify import HERE, Verifier

NUM_JUDGED = 16  # rows on whose demonstrations math-verify is tried
MAX_SHOWN = 80  # signs of a demonstration in an error


def check_paid(
    verifier: Verifier,
    template: TemplateConfig,
    rows: Sequence[Row],
    read: Sequence[Sequence[str]],
    pool: ProcessPool,
) -> None:
    """ConfigError for a template whose demonstrations its verifier does not pay.

    `read` has the long and the short one of each row, as their tokens are read. All
    rows count; with math-verify, which reads no answers in words and is slow, the
    demonstrations of all of the first rows must fail.
    """
    kinds = ("long", "short")
    if verifier in HERE:
        judge = HERE[verifier]
        for row, texts in zip(rows, read, strict=True):
            for kind, text in zip(kinds, texts, strict=True):
                if judge(row.answer, text).value != 1:
                    raise unpaid(verifier, kind, template, text, row)
    if verifier == "math":
        for kind, texts in zip(
            kinds, zip(*read[:NUM_JUDGED], strict=True), strict=True
        ):
            asked = zip(rows, texts, strict=False)
            jobs = [Job("math", row.prompt, text, row.answer) for row, text in asked]
            if not any(verdict.value for verdict in pool.judge(jobs)):
                raise unpaid(verifier, kind, template, texts[0], rows[0])


def unpaid(
    verifier: Verifier, kind: str, template: TemplateConfig, text: str, row: Row
) -> ConfigError:
    """The error of a demonstration that earns nothing."""
    shown = text if len(text) <= MAX_SHOWN else f"..{text[-MAX_SHOWN:]}"
    allowed = f"verifier={verifier!r} does not pay its demonstration {shown!r}"
    allowed += f" of the answer {row.answer!r}"
    return ConfigError(f"template.{kind}", getattr(template, kind), allowed)
