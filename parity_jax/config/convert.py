"""Configs to plain dicts and back, strictly: anything unknown is an error."""

import dataclasses
import types
import typing
from typing import Any, Literal

from flax.core import FrozenDict
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from parity_jax.config.checks import (
    AXES,
    ConfigError,
    require,
    unknown_name,
    unknown_value,
)


def to_config_dict(config: Any) -> ConfigDict:
    """The ml_collections form that absl flags can override field by field.

    A union of configs carries its `kind`; every possible axis is listed, maybe empty,
    and every one of a parent member, maybe None.
    """
    return ConfigDict(to_dict(config, every_axis=True))


def to_dict(config: Any, every_axis: bool = False) -> Any:
    """Plain dicts and tuples; `from_dict` inverts it."""
    if not dataclasses.is_dataclass(config):
        return config
    out: dict[str, Any] = {"kind": config.kind} if hasattr(config, "kind") else {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name == "axes":
            value = (dict.fromkeys(AXES, ()) if every_axis else {}) | dict(value)
        elif f.name == "parent_member":
            unset = {axis: placeholder(float) for axis in AXES} if every_axis else {}
            value = unset | dict(value)
        elif isinstance(value, FrozenDict):
            value = {k: to_dict(v, every_axis) for k, v in value.items()}
        else:
            value = to_dict(value, every_axis)
        out[f.name] = value
    return out


def from_dict(kind: Any, value: Any) -> Any:
    """Build a config of type `kind` from plain dicts; anything unknown is an error."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None and types.NoneType in args:
            return None
        return _from_union(tuple(a for a in args if a is not types.NoneType), value)
    if dataclasses.is_dataclass(kind):
        return _from_fields(kind, value)
    if origin is FrozenDict:
        return _from_mapping(args[1], value)
    if origin is tuple:
        items = value if isinstance(value, (tuple, list)) else (value,)
        return tuple(from_dict(args[0], item) for item in items)
    if origin is Literal:
        if value not in args:
            raise unknown_value("", value, args)
        return value
    if kind is Any or kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(number, "", value, "must be a number")
        return value if kind is Any else float(value)
    require(type(value) is kind, "", value, f"must be of type {kind.__name__}")
    return value


def _child(name: str, kind: Any, value: Any) -> Any:
    """from_dict with the field's name put before the path of an error."""
    try:
        return from_dict(kind, value)
    except ConfigError as error:
        path = f"{name}.{error.name}" if error.name else name
        raise ConfigError(path, error.value, error.allowed) from None


def _from_union(kinds: tuple[Any, ...], value: Any) -> Any:
    by_kind = {kind.kind: kind for kind in kinds}
    require(isinstance(value, dict), "", value, "must be a mapping")
    kind = value.get("kind")
    allowed = f"must be one of {', '.join(sorted(by_kind))}"
    require(kind in by_kind, "kind", kind, allowed)
    return _from_fields(by_kind[kind], value)


def _from_fields(kind: Any, value: Any) -> Any:
    require(isinstance(value, dict), "", value, "must be a mapping")
    value = {k: v for k, v in value.items() if k != "kind" or not hasattr(kind, "kind")}
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for name in value:
        if name not in names:
            raise unknown_name(name, value[name], names)
    return kind(**{n: _child(n, hints[n], v) for n, v in value.items()})


def _from_mapping(item: Any, value: Any) -> FrozenDict:
    require(isinstance(value, dict), "", value, "must be a mapping")
    if typing.get_origin(item) is tuple:  # axes: an empty tuple is an unused one
        axes = {k: _child(k, tuple[Any, ...], v) for k, v in value.items()}
        return FrozenDict({k: v for k, v in axes.items() if v})
    if item is float:  # parent_member: None is unset
        value = {k: v for k, v in value.items() if v is not None}
    return FrozenDict({name: _child(name, item, v) for name, v in value.items()})
