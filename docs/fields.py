"""The fields of a config as a table, read from the code when the site is built.

What is allowed is asked of the config itself: it is built with values out of range, and
what it says is the bound.
"""

import ast
import dataclasses
import inspect
import math
import textwrap
import types
import typing
from typing import Any, Literal

from flax.core import FrozenDict

from parity_jax.config import ConfigError
from parity_jax.config.checks import MAX_SIZE
from parity_jax.hypers import BOUNDS, Hypers

COUNTABLE = f"at most {MAX_SIZE}"  # of all whole numbers: the page says it once
PROBES = {int: (-1, -2, 2**62), float: (-1.0, -2.0, math.inf, math.nan)}


def table(cls: type) -> str:
    """Every field: its type, its default, what is allowed, what it means."""
    hints, said = typing.get_type_hints(cls), comments(cls)
    if not dataclasses.fields(cls):
        return "It has no fields."
    lines = ["| field | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        number = cls is Hypers
        cells = (
            f"`{field.name}`",
            "number" if number else type_text(kind),
            default_text(field),
            bounds_text(field.name) if number else allowed(cls, field.name, kind),
            said.get(field.name, ""),
        )
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def comments(cls: type) -> dict[str, str]:
    """What stands above and behind every field of a dataclass and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        lines = source.splitlines()
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                end = lines[node.lineno - 1 : node.end_lineno]
                above, at = [], node.lineno - 2
                while lines[at].strip().startswith("#"):
                    above.insert(0, lines[at].strip(" #"))
                    at -= 1
                behind = end[-1].partition("  # ")[2]
                found[node.target.id] = " ".join([*above, behind]).strip()
    return found


def type_text(kind: Any) -> str:
    """A type in a word."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "choice"
    if origin is types.UnionType:
        inner = [type_text(a) for a in args if a is not types.NoneType]
        return f"{' or '.join(inner)} or none"
    if origin is tuple:
        return f"list of {type_text(args[0])}"
    if origin is FrozenDict:
        return "mapping"
    if kind is Any:
        return "number"
    return {int: "whole number", float: "number", bool: "bool", str: "text"}.get(
        kind, f"{kind.__name__}"
    )


def default_text(field: Any) -> str:
    """A default as it would be typed."""
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "must be given"
    if value is dataclasses.MISSING:
        return f"`{type(field.default_factory()).__name__}()`"
    if value is None or value == "":
        return "none" if value is None else "empty"
    if isinstance(value, FrozenDict):
        return f"`{dict(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def bounds_text(name: str) -> str:
    """The interval of one of `Hypers`."""
    low, high = BOUNDS[name]
    return f"at least {low:g}" if high == math.inf else f"[{low:g}, {high:g}]"


def allowed(cls: type, name: str, kind: Any) -> str:
    """What a config says of values that it does not take, beside their type."""
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    config, said = cls(), []
    for value in PROBES.get(kind, ()):
        try:
            dataclasses.replace(config, **{name: value})
        except ConfigError as error:
            if error.name.endswith(name):
                said.append(error.allowed.removeprefix("must be "))
        except (TypeError, ValueError, OverflowError):
            pass
    return "; ".join(text for text in dict.fromkeys(said) if text != COUNTABLE)
