"""Claims in few words: what was measured, what was expected, how far it may be."""

import re
from collections.abc import Callable
from typing import Any

from parity_jax.config import number_text

NOTHING = "none"
SLIGHT = 0.05  # of numbers that are told whole
MAX_PARTS = 6  # of a cell; of more checks the range is told

Claim = dict[str, Any]  # as claims.json has it


def summary(value: Any, nested: bool = False) -> str:
    """Numbers in a few words: those of members as their range."""
    if isinstance(value, dict):
        if all("=" in name and _is_number(v) for name, v in value.items()):
            return number_range(list(value.values()))
        parts = [f"{name} {summary(v, nested=True)}" for name, v in value.items()]
        return f"({', '.join(parts)})" if nested else "; ".join(parts)
    if isinstance(value, list):
        return f"[{', '.join(summary(v) for v in value)}]"
    return short_number(value) if _is_number(value) else str(value)


def value_text(value: float | str | None) -> str:
    """A value of a swept field with all its digits: it tells one row from others."""
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else number_text(value)


def short_number(value: float | None) -> str:
    """Four digits, but whole numbers whole; six of what is nearly a shorter number."""
    if value is None:
        return NOTHING
    is_whole = float(value).is_integer() or abs(value) >= 10_000
    if is_whole:
        return f"{value:.0f}" if abs(value - round(value)) < SLIGHT else f"{value:.1f}"
    text = f"{value:.4g}"
    return f"{value:.6g}" if float(text) == float(f"{value:.2g}") else text


def number_range(values: list[float | None]) -> str:
    """From the smallest to the largest of the numbers that exist."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return NOTHING
    ends = dict.fromkeys(short_number(end(numbers)) for end in (min, max))
    missing = len(values) - len(numbers)
    text = f" ({NOTHING} for {missing} of {len(values)})" * bool(missing)
    return " to ".join(ends) + text


def _is_number(value: Any) -> bool:
    """A number, or None for one that does not exist."""
    return value is None or type(value) in (int, float)


def expected(claim: Claim) -> str:
    """What was expected, with how it is compared: "at least 0.99"."""

    def told(relation: str | None, value: Any) -> str:
        is_equality = relation in (None, "within", "equal")
        return summary(value) if is_equality else f"{relation} {summary(value)}"

    return over_checks(claim, "expected", told)


def tolerance(claim: Claim) -> str:
    """How far measured numbers may be from the expected ones, where they may be."""

    def told(relation: str | None, value: Any) -> str:
        if relation in (None, "within"):
            return summary(value)
        return "exact" if relation == "equal" else ""

    return over_checks(claim, "tolerance", told)


def over_checks(claim: Claim, name: str, told: Callable[[str | None, Any], str]) -> str:
    """A part of a claim in words, which has one value or a value for each check."""
    relation, value = claim.get("relation"), claim[name]
    if not isinstance(relation, dict):
        return told(relation, value) or NOTHING
    checks: dict[str, list[str]] = {}  # by what is told of them
    for check, kind in relation.items():
        checks.setdefault(told(kind, value[check]), []).append(check)
    if len(checks) == 1:
        return next(iter(checks)) or NOTHING
    if len(checks) > MAX_PARTS:
        numbers = [x for v in value.values() for x in numbers_in(v)]
        kinds = sorted({*relation.values()})
        if len(kinds) == 1 or name != "expected":
            return told(kinds[0] if len(kinds) == 1 else None, number_range(numbers))
        return f"{', '.join(kinds)}: {number_range(numbers)}"
    parts = [f"{common(names)} {text}" for text, names in checks.items() if text]
    return "; ".join(parts)


def common(names: list[str]) -> str:
    """What names like "control, length" have in common, or all of them."""
    last = {name.rpartition(", ")[2] for name in names}
    return last.pop() if len(last) == 1 else ", ".join(names)


def numbers_in(value: Any) -> list[float | None]:
    """All numbers of a value, however it is nested."""
    if isinstance(value, dict | list):
        below = value.values() if isinstance(value, dict) else value
        return [x for part in below for x in numbers_in(part)]
    return [value] if _is_number(value) else []


def order(id: str) -> list[tuple[str, int]]:
    """C2 before C10."""
    parts = re.findall(r"(\D*)(\d*)", id)
    return [(text, int(number or 0)) for text, number in parts]
