"""What a response answers, in words: for majority votes."""

from parity_jax.tasks.text.rows import last_boxed
from parity_jax.tasks.text.templates import TemplateConfig
from parity_jax.tasks.text.verify import (
    HERE,
    Verifier,
    after_mark,
    number_of,
    number_text,
)


def wrong_answer(
    verifier: Verifier, template: TemplateConfig, response: str, gold: str
) -> str | None:
    """What a wrong response that has ended answers; None if it gives nothing.

    As the verifier tells answers apart, but math-verify's by their texts. gold: the
    right one, as many of whose words are taken from the end where nothing marks an
    answer.
    """
    if verifier == "math":
        return last_boxed(response) or after_mark(response)
    if verifier in HERE:
        given = after_mark(response)
        if verifier == "exact" or not given:
            return given or None
        number = number_of(given)
        return None if number is None else number_text(number)
    before, after = template.around_answer
    if before:
        _, mark, given = response.rpartition(before)
        return given.strip().removesuffix(after).strip() or None if mark else None
    return " ".join(response.split()[-len(gold.split()) :]) or None
