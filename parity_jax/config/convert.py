"""Configs to plain dicts and back, strictly: anything unknown is an error."""

import dataclasses
import importlib
import types
import typing
from functools import lru_cache
from typing import Any, ClassVar, Literal

from flax.core import FrozenDict

from parity_jax.config.checks import (
    ConfigError,
    MissingCodeError,
    StoppedError,
    is_finite,
    require,
    require_float32,
    under,
    unknown_name,
    unknown_value,
)

PACKAGE = __name__.partition(".")[0]


class Configured:
    """Base of a family of configs (tasks, models, stages), told apart by `kind`.

    A class of your own needs no kind: it is named `package.module:Class`.
    """

    kind: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        """TypeError for a kind outside of the package: it may be another's."""
        super().__init_subclass__()
        if cls.__dict__.get("kind") and not is_of_package(cls):
            told = f"is of {PACKAGE} only; a class of your own needs none, it is named"
            raise TypeError(f"kind={cls.kind!r} {told} {cls.__module__}:{cls.__name__}")

    def resolved(self) -> typing.Self:
        """The config with every field given that follows from others."""
        return self


def is_of_package(cls: type) -> bool:
    """Whether it is no class of the user's own."""
    return cls.__module__.partition(".")[0] == PACKAGE


def kind_of(cls: type[Configured]) -> str:
    """The name of a config's class in a plain dict."""
    return cls.__dict__.get("kind") or f"{cls.__module__}:{cls.__qualname__}"


def known_kinds(family: type[Configured]) -> dict[str, type[Configured]]:
    """The classes of a family that have a short name, by these in their order."""
    own = [c for c in family.__subclasses__() if is_of_package(c)]
    named = [c for c in own if c.__dict__.get("kind")]
    return {c.kind: c for c in sorted(named, key=lambda c: c.kind)}


def family_class(family: type[Configured], kind: Any) -> type[Configured]:
    """The class of a family that a kind names; ConfigError if there is none."""
    known = known_kinds(family)
    if isinstance(kind, str) and ":" in kind:
        found = import_object(kind, "kind")
        fits = isinstance(found, type) and issubclass(found, family)
        allowed = f"must name a dataclass that derives from {family.__name__}"
        require(fits and dataclasses.is_dataclass(found), "kind", kind, allowed)
        return found
    allowed = f"must be one of {', '.join(known)}, or package.module:Class"
    require(isinstance(kind, str) and kind in known, "kind", kind, allowed)
    return known[kind]


def import_object(name: str, field: str) -> Any:
    """What `package.module:name` names; ConfigError of `field` if it is not there."""
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (KeyboardInterrupt, StoppedError):
        raise
    except BaseException as error:  # an import runs code of the user's own
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        allowed = f"cannot be imported: {text}"
        if isinstance(error, ModuleNotFoundError):
            allowed += "; it is looked for in the current folder and the experiment's"
        raise MissingCodeError(field, name, allowed) from error


def to_dict(config: Any) -> Any:
    """Plain dicts, lists and numbers, as JSON has them; `from_dict` inverts it.

    One of a family carries its `kind`. ConfigError for a class in place of one of it.
    """
    if isinstance(config, FrozenDict | dict):
        return {k: _named(k, v) for k, v in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(item) for item in config]
    if not dataclasses.is_dataclass(config):
        return config
    if isinstance(config, type):
        allowed = f"is a class; one of it is meant, {config.__name__}(..)"
        raise ConfigError("", config.__name__, allowed)
    head: dict[str, Any] = {}
    if isinstance(config, Configured):
        head["kind"] = kind_of(type(config))
    fields = dataclasses.fields(config)
    return head | {f.name: _named(f.name, getattr(config, f.name)) for f in fields}


def _named(name: Any, value: Any) -> Any:
    with under(str(name)):
        return to_dict(value)


def from_dict(kind: Any, value: Any) -> Any:
    """Build a config of type `kind` from plain dicts; anything unknown is an error."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None:
            require(types.NoneType in args, "", value, "must be given")
            return None
        return from_dict(next(a for a in args if a is not types.NoneType), value)
    if is_family(kind):
        require(isinstance(value, dict), "", value, "must be a mapping with a kind")
        rest = {k: v for k, v in value.items() if k != "kind"}
        return _from_fields(family_class(kind, value.get("kind")), rest)
    if isinstance(kind, type) and issubclass(kind, Configured):
        require(isinstance(value, dict), "", value, "must be a mapping")
        own, told = kind_of(kind), value.get("kind", kind_of(kind))
        require(told == own, "kind", told, f"must be {own}")
        return _from_fields(kind, {k: v for k, v in value.items() if k != "kind"})
    if dataclasses.is_dataclass(kind):
        require(isinstance(value, dict), "", value, "must be a mapping")
        return _from_fields(kind, value)
    if origin is FrozenDict:
        require(isinstance(value, dict), "", value, "must be a mapping")
        return FrozenDict({k: _child(k, args[1], v) for k, v in value.items()})
    if origin is tuple:
        require(isinstance(value, tuple | list), "", value, "must be a list")
        return tuple(from_dict(args[0], item) for item in value)
    if origin is Literal:
        if value not in args:
            raise unknown_value("", value, args)
        return value
    if kind is Any or kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(number, "", value, "must be a number")
        require(is_finite(value), "", value, "must be a finite number")
        require_float32("", value)
        return value if kind is Any else float(value)
    require(type(value) is kind, "", value, f"must be of type {kind.__name__}")
    return value


@lru_cache
def _check_fields(cls: Any) -> None:
    """ConfigError for a field, of a class of one's own, that no file could hold."""
    for f in dataclasses.fields(cls):
        hint = field_types(cls)[f.name]
        shown = hint.__name__ if isinstance(hint, type) else str(hint)
        require(f.init, f.name, shown, "must be an argument, not field(init=False)")
        allowed = "is no type of a config: take bool, int, float, str, Literal, "
        allowed += "tuple[X, ...], FrozenDict[str, X], a config, or X | None"
        require(_is_plain(hint), f.name, shown, allowed)


def _is_plain(kind: Any) -> bool:
    """Whether `from_dict` reads values of this type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        others = [a for a in args if a is not types.NoneType]
        return len(others) == 1 and _is_plain(others[0])
    if origin is tuple:
        return args[1:] == (Ellipsis,) and _is_plain(args[0])
    if origin is FrozenDict:
        return args[0] is str and _is_plain(args[1])
    if origin is Literal or kind in (bool, int, float, str, Any):
        return True
    return dataclasses.is_dataclass(kind) or is_family(kind)


def is_family(kind: Any) -> bool:
    """Whether a field of this type may hold one of several configs."""
    is_class = isinstance(kind, type) and issubclass(kind, Configured)
    return is_class and not dataclasses.is_dataclass(kind)


def field_types(kind: Any) -> dict[str, Any]:
    """The type of every field of a config."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _child(name: str, kind: Any, value: Any) -> Any:
    with under(name):
        return from_dict(kind, value)


def _from_fields(cls: Any, value: dict[str, Any]) -> Any:
    _check_fields(cls)
    known = field_types(cls)
    for name, item in value.items():
        if name not in known:
            raise unknown_name(name, item, known)
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is f.default_factory is dataclasses.MISSING and f.name not in value
    ]
    require(not missing, missing[0] if missing else "", None, "must be given")
    return cls(**{name: _child(name, known[name], v) for name, v in value.items()})
