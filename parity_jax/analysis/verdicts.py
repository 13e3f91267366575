"""Whether claims, as JSON has them, are whole and agree with their own numbers."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from parity_jax.config import is_finite

COMPARE = {
    "at least": np.greater_equal,
    "at most": np.less_equal,
    "below": np.less,
    "above": np.greater,
}
DIGITS = 2e-6  # of numbers that are stored with six decimals or more, some of float32
FIELDS = {"id", "claim", "holds", "measured", "expected", "tolerance"}


def fault_of(claims: Any) -> str:
    """What is wrong with a list of claims; empty if nothing is."""
    if not (isinstance(claims, list) and claims and all(map(is_claim, claims))):
        return "must be a list of claims"
    ids = [claim["id"] for claim in claims]
    twice = sorted({id for id in ids if ids.count(id) > 1})
    if twice:
        return f"has {twice[0]!r} twice"
    for claim in claims:
        if "relation" in claim and not is_consistent(claim):
            told = f"{claim['id']!r} does not follow from its numbers"
            return f"holds={claim['holds']} of {told}"
    return ""


def is_claim(value: Any) -> bool:
    """Whether a plain value has the form of a claim; older ones have no relation."""
    if not isinstance(value, dict) or FIELDS - {*value}:
        return False
    types = {"id": str, "claim": str, "holds": bool}
    if not all(isinstance(value[name], kind) for name, kind in types.items()):
        return False
    if not value["id"].strip():
        return False
    relation, parts = value.get("relation"), (value["expected"], value["tolerance"])
    if isinstance(relation, dict):  # so are the others, by the names of the checks
        by_check = all(isinstance(x, dict) and {*x} == {*relation} for x in parts)
        seen = value["measured"]
        if not by_check or not isinstance(seen, dict) or not {*relation} <= {*seen}:
            return False
    return "relation" not in value or all(map(is_check, checks_of(value)))


def is_check(check: tuple[Any, Any, Any, Any]) -> bool:
    """Whether all are numbers, but for a relation that there is."""
    measured, relation, expected, tolerance = check
    known = relation in ("within", "equal", *COMPARE)
    is_right = is_number(tolerance) and tolerance >= 0
    return known and is_right and is_measured(measured) and is_measured(expected)


def is_measured(value: Any) -> bool:
    """Whether a value is a number or None, a list of such, or one for every member."""
    parts = [*value.values()] if isinstance(value, dict) else [*numbers_of(value)]
    return all(x is None or is_number(x) for x in parts)


def checks_of(claim: dict[str, Any]) -> list[tuple[Any, Any, Any, Any]]:
    """What was measured, relation, expected and tolerance of every check."""
    measured, relation = claim["measured"], claim["relation"]
    expected, tolerance = claim["expected"], claim["tolerance"]
    if isinstance(relation, dict):
        return [(measured[k], relation[k], expected[k], tolerance[k]) for k in relation]
    if isinstance(measured, dict) and not all("=" in label for label in measured):
        measured = next(iter(measured.values()))  # before what is only shown
    return [(measured, relation, expected, tolerance)]


def is_consistent(claim: dict[str, Any]) -> bool:
    """Whether the checks have the verdict, for some numbers that round to these."""
    ends = [verdicts(*check) for check in checks_of(claim)]
    if claim["holds"]:
        return all(loosely for loosely, _ in ends)
    return not all(strictly for _, strictly in ends)


def verdicts(
    measured: Any, relation: str, expected: Any, tolerance: float
) -> tuple[bool, bool]:
    """Whether a check may hold, and whether it must, rounding apart."""
    may, must = [], []
    for a, b in pairs_of(measured, expected):
        if a is None or b is None:  # it was infinite or no number: no check holds of it
            may.append(False)
            must.append(False)
            continue
        slack = DIGITS * (1 + max(abs(a), abs(b)))
        if relation in COMPARE:
            sign = 1 if relation in ("at least", "above") else -1
            margin = sign * (a - b)
        else:
            margin = tolerance - abs(a - b)
        may.append(margin >= -slack)
        must.append(margin > slack or (margin >= 0 and is_exact(a, b, relation)))
    return bool(may) and all(may), bool(must) and all(must)


def is_exact(a: float, b: float, relation: str) -> bool:
    """Whether two equal numbers were stored as they are, and equal is enough."""
    is_as_stored = type(a) is type(b) is int or a == b == 0
    return is_as_stored and relation not in ("below", "above")


def pairs_of(measured: Any, expected: Any) -> Iterator[tuple[Any, Any]]:
    """The numbers that were held against each other: members of the same axes."""
    if isinstance(measured, dict) and isinstance(expected, dict):
        others = [(axes_of(label), number) for label, number in expected.items()]
        for label, number in measured.items():
            own = axes_of(label)
            for axes, other in others:
                if all(axes[name] == own[name] for name in {*axes} & {*own}):
                    yield number, other
        return
    a, b = [*numbers_of(measured)], [*numbers_of(expected)]
    if len(a) == len(b):
        yield from zip(a, b, strict=True)
    else:  # one number against all
        yield from ((x, y) for x in a for y in b)


def axes_of(label: str) -> dict[str, str]:
    """The values of a member's axes, by name."""
    parts = (part.partition("=") for part in label.split(","))
    return {name: value for name, _, value in parts}


def is_number(value: Any) -> bool:
    """A finite number; True and False are none."""
    return type(value) in (int, float) and is_finite(value)


def numbers_of(value: Any) -> Iterator[Any]:
    """All numbers of a value: one, those of members, or those of a list."""
    if isinstance(value, dict | list):
        below = value.values() if isinstance(value, dict) else value
        for part in below:
            yield from numbers_of(part)
    else:
        yield value
