"""Claims: a statement beside what a run measured, whose verdict is computed.

Claim.within("C1", p_long, p_cot, 0.1)
Claim.of("C4", accuracy=Check.within(accuracy, 0.5, 0.1), length=Check.equal(n, 1))
Answer("Where is the threshold?", f"At {crossing:.3f}, where the theory has 1/3.")
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from parity_jax.analysis.legend import LEGEND
from parity_jax.analysis.scores import by_member, plain_number
from parity_jax.analysis.verdicts import COMPARE, fault_of, is_claim
from parity_jax.config import RunError, is_finite
from parity_jax.runs.files import read_json, write_json

Relation = Literal["within", "equal", "at least", "at most", "below", "above"]

MAX_SENTENCE = 300
MAX_WHOLE = 2**53  # float64 tells smaller ones apart


@dataclass(frozen=True)
class Check:
    """Numbers that are held against others; it holds if all of them do."""

    measured: Any  # a number, or numbers by member
    relation: Relation
    expected: Any
    tolerance: float  # of "within"; 0 elsewhere
    holds: bool

    @classmethod
    def within(cls, measured: Any, expected: Any, tolerance: float) -> "Check":
        """Every |measured - expected| <= tolerance; ValueError if that is negative."""
        if not (is_finite(tolerance) and tolerance >= 0):
            raise ValueError(f"tolerance={tolerance}: must be finite and not negative")
        measured, expected = _alike(measured, expected)
        gap = abs(_together(np.subtract, measured, expected))
        relation: Relation = "within" if tolerance else "equal"
        holds = bool(gap.size and (gap <= tolerance).all())
        numbers = (plain(measured), relation, plain(expected))
        return cls(*numbers, float(tolerance), holds)

    @classmethod
    def equal(cls, measured: Any, expected: Any) -> "Check":
        """Every measured number is the expected one."""
        return cls.within(measured, expected, 0)

    @classmethod
    def at_least(cls, measured: Any, bound: Any) -> "Check":
        """Every measured number is at least the bound."""
        return cls._compared(measured, "at least", bound)

    @classmethod
    def at_most(cls, measured: Any, bound: Any) -> "Check":
        """Every measured number is at most the bound."""
        return cls._compared(measured, "at most", bound)

    @classmethod
    def below(cls, measured: Any, bound: Any) -> "Check":
        """Every measured number is less than the bound."""
        return cls._compared(measured, "below", bound)

    @classmethod
    def above(cls, measured: Any, bound: Any) -> "Check":
        """Every measured number is greater than the bound."""
        return cls._compared(measured, "above", bound)

    @classmethod
    def _compared(cls, measured: Any, relation: Relation, bound: Any) -> "Check":
        measured, bound = _alike(measured, bound)
        # what is not finite, a number that does not exist, fulfils and demands nothing
        compared = _together(COMPARE[relation], measured, bound)
        compared = compared & _together(_are_finite, measured, bound)
        holds = bool(compared.size and compared.all())  # of nothing, nothing is true
        return cls(plain(measured), relation, plain(bound), 0.0, holds)


def _alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Both with labels if one has them: numbers without are of its members, in order.

    ValueError if they are not as many, and are no single number either, or are along
    other axes: all would be held against all.
    """
    if hasattr(a, "to_xarray") or hasattr(b, "to_xarray"):
        a, b = _of_pandas(a), _of_pandas(b)
    named = [{*x.dims} for x in (a, b) if isinstance(x, xr.DataArray)]
    if len(named) == 2 and not (named[0] <= named[1] or named[1] <= named[0]):
        told = "must have the axes (of pandas: an index) of the other, or some, not"
        raise ValueError(f"{told} {[sorted(map(str, x)) for x in named]}")

    def labelled(numbers: Any, like: Any) -> Any:
        if isinstance(numbers, np.ma.MaskedArray):  # what is masked does not exist
            numbers = np.ma.filled(numbers.astype(float), np.nan)
        if np.asarray(numbers).dtype == bool:
            numbers = np.multiply(numbers, 1)
        if isinstance(numbers, xr.DataArray) or not isinstance(like, xr.DataArray):
            return numbers
        has_members = np.ndim(numbers) and like.ndim
        return like.copy(data=np.asarray(numbers)) if has_members else numbers

    have_labels = isinstance(a, xr.DataArray) and isinstance(b, xr.DataArray)
    are_many = np.ndim(a) and np.ndim(b)
    if are_many and not have_labels and np.shape(a) != np.shape(b):
        told = "must be one number, or as many as there are members, not"
        raise ValueError(f"{told} {np.shape(a)} and {np.shape(b)}")
    return labelled(a, b), labelled(b, a)


def _of_pandas(numbers: Any) -> Any:
    """A Series with its labels, if it was given any; TypeError for a DataFrame."""
    if not hasattr(numbers, "to_xarray"):
        return numbers
    if np.ndim(numbers) != 1:
        raise TypeError(f"must be a Series, not a {type(numbers).__name__}")
    is_counted = [*numbers.index.names] == [None]
    is_counted = is_counted and [*numbers.index] == [*range(len(numbers))]
    return np.asarray(numbers) if is_counted else numbers.to_xarray()


def _together(function: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """A function of numbers by member, in float64, in which none of small types wraps.

    ValueError if they are not of the same members: xarray would take those that both
    have, and leave out the others.
    """
    with xr.set_options(arithmetic_join="exact"):
        return function(_numbers(a), _numbers(b))


def _are_finite(a: Any, b: Any) -> Any:
    """Where both numbers are."""
    return np.isfinite(a) & np.isfinite(b)


def _numbers(value: Any) -> xr.DataArray:
    """Of members that have labels, or none."""
    is_labelled = isinstance(value, xr.DataArray)
    array = value if is_labelled else xr.DataArray(np.asarray(value))
    if array.dtype.kind not in "biuf":
        raise TypeError(f"must be real numbers, not {value!r}"[:200])
    missing = [d for d in array.dims if is_labelled and d not in array.coords]
    if missing:
        raise ValueError(f"must have the coordinate {missing[0]!r}, to name members")
    numbers = array.astype(float)
    if array.dtype.kind in "iu" and (abs(numbers) >= MAX_WHOLE).any():
        raise ValueError(f"must be whole numbers below 2**53, not {value!r}"[:200])
    return numbers


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, or of ours, beside what this run measured."""

    id: str
    claim: str
    measured: Any
    relation: Any
    expected: Any
    tolerance: Any
    holds: bool

    @classmethod
    def of(
        cls,
        id: str,
        text: str = "",
        seen: dict[str, Any] | None = None,
        **checks: Check,
    ) -> "Claim":
        """All checks together; `seen` is shown beside what they measure.

        The text is the legend's unless it is given. ValueError without any check,
        without an id, or for a name of `seen` that is a check's with other numbers: one
        of both would be lost.
        """
        for name, value in (("id", id), ("text", text)):
            if not isinstance(value, str):
                raise TypeError(f"claim {id!r}: its {name} must be text, not {value!r}")
        if not id.strip():
            raise ValueError(f"claim {text!r}: its id must not be empty")
        if not text and id not in LEGEND:
            raise ValueError(f"claim {id!r} needs a text: it is none of the legend's")
        if not checks:
            raise ValueError(f"claim {id!r} needs a check")
        for name, check in checks.items():
            if not isinstance(check, Check):
                told = f"{name} must be a Check, not {type(check).__name__}"
                raise TypeError(f"claim {id!r}: {told}")
        shown = {name: plain(value) for name, value in (seen or {}).items()}
        for name in checks.keys() & shown.keys():
            if shown[name] != checks[name].measured:
                told = f"seen has {name!r} of a check, otherwise"
                raise ValueError(f"claim {id!r}: {told}")
        only = next(iter(checks.values())) if len(checks) == 1 else None

        def part(name: str) -> Any:
            if only is not None:
                return getattr(only, name)
            return {k: getattr(check, name) for k, check in checks.items()}

        measured = part("measured")
        if shown:
            head = measured if only is None else {next(iter(checks)): measured}
            measured = head | shown
        holds = all(check.holds for check in checks.values())
        rest = (part("relation"), part("expected"), part("tolerance"))
        return cls(id, text or LEGEND[id], measured, *rest, holds)

    @classmethod
    def within(cls, id: str, measured: Any, expected: Any, tolerance: float) -> "Claim":
        """A claim of one `Check.within`."""
        return cls.of(id, measured=Check.within(measured, expected, tolerance))

    @classmethod
    def at_least(cls, id: str, measured: Any, bound: Any) -> "Claim":
        """A claim of one `Check.at_least`."""
        return cls.of(id, measured=Check.at_least(measured, bound))

    @classmethod
    def at_most(cls, id: str, measured: Any, bound: Any) -> "Claim":
        """A claim of one `Check.at_most`."""
        return cls.of(id, measured=Check.at_most(measured, bound))


@dataclass(frozen=True)
class Answer:
    """A question, and the sentence that answers it with the numbers of these runs.

    ValueError for one that is empty, has several lines or more than 300 signs.
    """

    question: str
    answer: str

    def __post_init__(self) -> None:
        for name, text in asdict(self).items():
            is_text = isinstance(text, str) and bool(text.strip())
            fits = is_text and text.isprintable() and len(text) <= MAX_SENTENCE
            if not fits:
                allowed = f"must be a line of 1 to {MAX_SENTENCE} signs"
                raise ValueError(f"{name} {allowed}, not {text!r}")


def plain_answer(answer: Any) -> dict[str, str]:
    """An answer as JSON has it; TypeError for anything else."""
    if not isinstance(answer, Answer):
        raise TypeError(f"must return an Answer, not {type(answer).__name__}")
    return asdict(answer)


def plain(value: Any) -> Any:
    """Numbers as JSON has them: an array by member, NaN as None."""
    if isinstance(value, xr.DataArray) and value.dims:
        return by_member(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if np.ndim(value):  # an array of any library
        return [plain(v) for v in np.asarray(value)]
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    return plain_number(value)


def plain_claims(claims: Any) -> list[dict[str, Any]]:
    """Claims as JSON has them; TypeError or ValueError for anything else."""
    if not isinstance(claims, Iterable) or isinstance(claims, Mapping):
        raise TypeError(f"must return a list of Claims, not {type(claims).__name__}")
    found = [*claims]
    for claim in found:
        if not isinstance(claim, Claim):
            raise TypeError(f"must return Claims, not {type(claim).__name__}")
        try:
            json.dumps(asdict(claim), allow_nan=False, ensure_ascii=False).encode()
        except ValueError as error:
            raise ValueError(f"claim {claim.id!r}: {error}") from None
        if not is_claim(asdict(claim)):
            raise ValueError(f"claim {claim.id!r}: must be as Claim.of makes it")
    if not found:
        raise ValueError("must return a Claim; leave claims() out if there is none")
    plain = [asdict(claim) for claim in found]
    fault = fault_of(plain)
    if fault:
        raise ValueError(f"must be as Claim.of makes them: {fault}")
    return plain


def write_claims(path: Path, claims: Iterable[Claim]) -> None:
    """Write claims.json."""
    write_json(path, plain_claims(claims))


def read_claims(path: Path) -> list[dict[str, Any]]:
    """What claims.json holds; RunError if it is damaged, or its verdicts are."""
    claims: list[dict[str, Any]] = read_json(path)
    fault = fault_of(claims)
    if fault:
        raise RunError(f"{path}: damaged: {fault}")
    return claims


def told(claims: list[dict[str, Any]]) -> str:
    """How many claims hold, and which do not."""
    failing = [claim["id"] for claim in claims if not claim["holds"]]
    hold = f"{len(claims) - len(failing)} of {len(claims)} claims hold"
    return f"{hold}, not {', '.join(failing)}" if failing else hold


def read_answer(path: Path) -> Answer:
    """What answer.json holds; RunError if it is not an answer."""
    try:
        return Answer(**read_json(path))
    except (TypeError, ValueError) as error:
        raise RunError(f"{path}: damaged: {error}") from None
