"""The difference of two configs as plain data: the only one there is."""

from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A field that two configs do not share; None stands for one that is not there."""

    path: str
    old: Any
    new: Any


def differences(old: Any, new: Any, path: str = "") -> list[Difference]:
    """Every field that differs, in the order of their names; lists equal tuples."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted({*old, *new}, key=str):
            below = f"{path}.{key}" if path else str(key)
            found += differences(old.get(key), new.get(key), below)
        return found
    return [] if _plain(old) == _plain(new) else [Difference(path, old, new)]


def lines_of(found: list[Difference]) -> str:
    """In words, e.g. "model.depth is 2 there, 4 here"."""
    return "; ".join(f"{d.path} is {d.old!r} there, {d.new!r} here" for d in found)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
