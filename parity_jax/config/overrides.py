"""`--config.a.b=value`: text edits of a config's plain dict, built strictly after.

Values are read by the type of their field: numbers, `true` and `false`, text, `none`
where a field may be unset, tuples as `0,1,2` or `(0, 1, 2)`; an empty tuple is `()`, an
empty text `''`. A field that holds one of several configs takes the kind
(`task=multiplication`), and starts from that kind's defaults. Overrides apply in their
order; the last one of a field wins.
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax.core import FrozenDict

from parity_jax.config.checks import ConfigError, require, under, unknown_name
from parity_jax.config.convert import (
    family_class,
    field_types,
    from_dict,
    is_family,
    known_kinds,
    to_dict,
)
from parity_jax.config.labels import parse_int, parse_number

PREFIX = "config."
SCALE = "scale"  # is no field: what get_config is asked for


class Override(NamedTuple):
    """One flag as it was typed."""

    path: str  # "runs.grpo.num_steps"
    value: str | None  # None: the flag stood alone, which is `true`

    @property
    def text(self) -> str:
        """What follows `--config.`, in one word."""
        return self.path if self.value is None else f"{self.path}={self.value}"


def parse(arguments: Sequence[str]) -> list[Override]:
    """The overrides among arguments that are nothing else.

    Both `--config.a.b=v` and `--config.a.b v`; `--config.a.b` alone is true and
    `--noconfig.a.b` false. ConfigError for any other argument.
    """
    found, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.lstrip("-").partition("=")
        is_flag = argument.startswith("-")
        if is_flag and name.startswith(PREFIX):
            if not equals and rest and not rest[0].startswith("--"):
                found.append(Override(name.removeprefix(PREFIX), rest.pop(0)))
            else:
                path = name.removeprefix(PREFIX)
                found.append(Override(path, value if equals else None))
        elif is_flag and name.startswith("no" + PREFIX) and not equals:
            found.append(Override(name.removeprefix("no" + PREFIX), "false"))
        elif is_flag:
            raise ConfigError("flag", argument, "unknown; --help lists the flags")
        else:
            raise ConfigError("argument", argument, "unexpected: options start with --")
    return found


def apply(config: Any, overrides: Sequence[Override]) -> Any:
    """The config with these edits; ConfigError for what cannot be read or built."""
    kind, plain = type(config), to_dict(config)
    for i, (path, value) in enumerate(overrides):
        for later in overrides[i + 1 :]:
            whole = later.path.removesuffix(".kind")  # with the defaults of its kind
            is_within = path.startswith(f"{whole}.") and path != later.path
            allowed = f"is taken back by {later.text}, which comes after it"
            require(not is_within, path, value, allowed)
        parts = path.split(".")
        plain = _edit(kind, plain, parts, value, _places(plain, parts[-1]))
    for path, value in overrides:
        _require_effect(plain, path, value)
    return from_dict(kind, plain)


def _require_effect(plain: dict[str, Any], path: str, value: str | None) -> None:
    """ConfigError for what no run reads: a number of it that is an axis as well, a
    task or model of the experiment where all have their own, prompts beside a file.
    """
    match path.split("."):
        case ["runs", run, "hypers", name]:
            axes = plain.get("axes", {}) | plain["runs"][run].get("axes", {})
            allowed = f"has no effect beside the axis {name}"
            require(name not in axes, path, value, allowed)
        case [("task" | "model") as part, *_]:
            runs = plain.get("runs", {})
            is_read = not runs or any(run[part] is None for run in runs.values())
            require(is_read, path, value, f"has no effect: every run has its {part}")
        case ["evaluate", "num_prompts"]:
            file = plain.get("eval_file", "")
            require(not file, path, value, f"has no effect beside eval_file={file!r}")


def _places(node: Any, name: str, path: str = "") -> list[str]:
    """Paths of the fields of this name."""
    found: list[str] = []
    for key, child in node.items() if isinstance(node, dict) else ():
        found += [path + key] if key == name else _places(child, name, f"{path}{key}.")
    return found


def _edit(
    kind: Any, node: Any, path: list[str], value: str | None, places: list[str]
) -> Any:
    """The node with the value at the path below it; `places` have a field so named."""
    kind, optional = _unwrapped(kind)
    if not path:
        return _read(kind, optional, value)
    name, *rest = path
    if is_family(kind) and name == "kind" and not rest:
        return _read(kind, optional, value)
    if node is None and is_family(kind):
        kinds = ", ".join(known_kinds(kind))
        raise ConfigError("", None, f"is none here; give its kind first, of {kinds}")
    if node is None:
        node = _defaults_of(kind)
    below = _fields(kind, node)
    if name not in below and not _is_open(kind):
        raise unknown_name(name, value, below, places[:3])
    child = node.get(name) if isinstance(node, dict) else None
    with under(name):
        edited = _edit(_type_below(kind, node, name), child, rest, value, places)
    edited_node = dict(node) | {name: edited}
    if _is_open(kind) and edited in (None, []):  # an unset axis or pin
        del edited_node[name]
    return edited_node


def _unwrapped(kind: Any) -> tuple[Any, bool]:
    """The type without `| None`, and whether it had it."""
    if isinstance(kind, types.UnionType):
        args = typing.get_args(kind)
        return next(a for a in args if a is not types.NoneType), True
    return kind, False


def _is_open(kind: Any) -> bool:
    """A mapping that takes further names (axes, pins); runs are fixed by the file."""
    if typing.get_origin(kind) is not FrozenDict:
        return False
    return not dataclasses.is_dataclass(typing.get_args(kind)[1])


def _fields(kind: Any, node: Any) -> dict[str, Any]:
    if typing.get_origin(kind) is FrozenDict:
        return dict.fromkeys(node, typing.get_args(kind)[1])
    if is_family(kind):
        return field_types(family_class(kind, node.get("kind")))
    return field_types(kind) if dataclasses.is_dataclass(kind) else {}


def _type_below(kind: Any, node: Any, name: str) -> Any:
    if _is_open(kind):
        return typing.get_args(kind)[1] | None
    return _fields(kind, node)[name]


def _read(kind: Any, optional: bool, value: str | None) -> Any:
    """Text as a value of the type; whether it may be is checked when it is built."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is bool:
        named = {"true": True, "false": False, "1": True, "0": False}
        text = "true" if value is None else value.strip().lower()
        if text not in named:
            raise ConfigError("", value, "must be true or false")
        return named[text]
    if value is None:
        raise ConfigError("", "", "needs a value")
    if optional and value.strip().lower() == "none":
        return None
    if is_family(kind):
        return _defaults(kind, value)
    if origin is tuple and not value.strip():  # as of a shell's variable not set
        raise ConfigError("", value, "needs a value; of an empty tuple it is ()")
    if origin is tuple:
        return [_read(args[0], False, part) for part in _parts(value)]
    if kind in (int, float, typing.Any):
        try:
            number = parse_int(value) if kind is int else parse_number(value)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ConfigError("", value, f"must be {what}") from None
        return float(number) if kind is float else number
    if kind is str and not value.strip():
        raise ConfigError("", value, "needs a value; an empty text is \"''\"")
    if kind is str and value in ("''", '""'):
        return ""
    if kind is str or origin is typing.Literal:
        return value
    raise ConfigError("", value, "has fields of its own: name one of them")


def _parts(text: str) -> list[str]:
    """Items between commas, with or without brackets and quotes."""
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    parts = [part.strip().strip("'\"") for part in text.split(",")]
    return parts[:-1] if parts[-1] == "" else parts


def _defaults(family: Any, kind: str) -> dict[str, Any]:
    """The plain dict of a kind with its defaults; only the kind where some are none."""
    return _defaults_of(family_class(family, kind)) or {"kind": kind}


def _defaults_of(cls: Any) -> dict[str, Any]:
    """Those of a config; empty if a field has none: building it says which."""
    try:
        return to_dict(cls())
    except TypeError:
        return {}
