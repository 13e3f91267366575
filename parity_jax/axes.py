"""Axes of a population: which members there are, their numbers and their parents."""

import itertools
from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from parity_jax.config import ConfigError, Label, number_text, unknown_name
from parity_jax.hypers import Hypers

Axes = Mapping[str, tuple[float, ...]]


def member_labels(axes: Axes) -> list[Label]:
    """One label per member, the last axis fastest."""
    return [
        dict(zip(axes, values, strict=True))
        for values in itertools.product(*axes.values())
    ]


def member_hypers(hypers: Hypers, labels: list[Label]) -> Hypers:
    """Hypers of all members: every leaf is a float32 array of length P."""
    return Hypers(
        **{
            f.name: np.array(
                [label.get(f.name, getattr(hypers, f.name)) for label in labels],
                np.float32,
            )
            for f in fields(Hypers)
        }
    )


def parent_index(
    labels: list[Label], hypers: Hypers, parent_axes: Axes, pinned: Mapping[str, float]
) -> np.ndarray:
    """For every member its parent: the one with the same value on every axis of it, P.

    The member's value is the pinned one, else that of its own axis, else that of its
    run's hypers. `parent_step` is a step of another run for the parent than for the
    member, so it can only be pinned. ConfigError if no parent has these values.
    """
    for name, value in pinned.items():
        if name not in parent_axes:
            raise unknown_name(f"parent_member.{name}", value, parent_axes)

    def value_of(label: Label, name: str) -> float | None:
        own = None if name == "parent_step" else label.get(name)
        own = getattr(hypers, name, None) if own is None else own
        return pinned.get(name, own)

    index_P = []
    for label in labels:
        index = 0
        for name, values in parent_axes.items():
            wanted = value_of(label, name)
            allowed = f"must be one of the parent's {tuple(values)}; parent_member says"
            allowed += f" which, e.g. parent_member.{name}={number_text(values[0])}"
            if wanted not in values:
                raise ConfigError(f"parent_member.{name}", wanted, allowed)
            index = index * len(values) + list(values).index(wanted)
        index_P.append(index)
    return np.array(index_P)
