"""Whether a response gives the right answer; on texts, without JAX."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Literal, NamedTuple

Verifier = Literal["tokens", "exact", "gsm8k", "math"]
State = Literal["judged", "unreadable", "timeout", "died"]
MARK = "####"
NUMBER = re.compile(
    r"(?P<sign>[-+]?) *\$? *(?P<size>(\d+|\d{1,3}(,\d{3})+)(\.\d*)?|\.\d+) *\$?"
)
MAX_DIGITS = 100  # of an answer that is compared as a number


class Verdict(NamedTuple):
    """A reward, and why it is 0 if nothing could be judged."""

    value: float
    state: State = "judged"


def number_of(text: str) -> Decimal | None:
    """One number, with or without `,` between thousands and `$`; None for others."""
    found = NUMBER.fullmatch(text.strip()) if text.isascii() else None
    if found is None or len(found["size"]) > MAX_DIGITS:
        return None
    return Decimal(found["sign"] + found["size"].replace(",", ""))


def number_text(number: Decimal) -> str:
    """The same text for equal numbers, to the last digit."""
    text = f"{number:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text if number else "0"


def after_mark(response: str) -> str | None:
    """What stands behind the last ####; None without one."""
    _, mark, answer = response.rpartition(MARK)
    return answer.strip() if mark else None


def gsm8k(answer: str, response: str) -> Verdict:
    """1 if the number behind the last #### is the right one."""
    given = number_of(after_mark(response) or "")
    if given is None:
        return Verdict(0.0, "unreadable")
    return Verdict(float(given == number_of(answer)))


def exact(answer: str, response: str) -> Verdict:
    """1 if the text behind the last #### is the answer."""
    given = after_mark(response)
    if given is None:
        return Verdict(0.0, "unreadable")
    return Verdict(float(given == answer.strip()))


HERE: dict[str, Callable[[str, str], Verdict]] = {"gsm8k": gsm8k, "exact": exact}


def is_readable(verifier: Verifier, answer: str) -> bool:
    """Whether a verifier pays a right answer; math-verify says so when it runs."""
    judge = HERE.get(verifier)
    return judge is None or judge(answer, f"{MARK} {answer}").value == 1
