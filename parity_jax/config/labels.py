"""Labels of members: the one place that prints and parses them.

Numbers are printed whole (20251125, 0.25, 1e-06): two that differ never look alike, and
what is printed can be typed back.
"""

import math
from collections.abc import Mapping

from parity_jax.config.checks import ConfigError

Label = dict[str, float]  # the value of every axis for one member


def number_text(value: float) -> str:
    """The shortest text that is read back as the same number; 2.0 is "2"."""
    value = float(value) if not isinstance(value, int) else value
    text = repr(value)
    return text.removesuffix(".0")


def label_text(label: Mapping[str, float]) -> str:
    """A member's label as it is typed: "p_cot=0.25,seed=2"; "all" without axes."""
    return ",".join(f"{k}={number_text(v)}" for k, v in label.items()) or "all"


def parse_label(text: str) -> Label:
    """Axis values from "seed=2,p_cot=0.25"; empty is no condition."""
    label: Label = {}
    for part in text.split(",") if text else []:
        name, separator, value = part.partition("=")
        try:
            number = parse_number(value)
        except ValueError:
            separator = ""
        if not separator or not name.strip():
            allowed = "must be axes with values, e.g. seed=2,p_cot=0.25"
            raise ConfigError("member", text, allowed)
        if name.strip() in label:
            raise ConfigError("member", text, f"names {name.strip()} twice")
        label[name.strip()] = number
    return label


def parse_number(text: str) -> float:
    """An int if it is written as one, else a float; ValueError for anything else.

    One beyond all floats is infinite, however it is written.
    """
    number = float(plain(text))
    try:
        return parse_int(text) if math.isfinite(number) else number
    except ValueError:
        return number


def parse_int(text: str) -> int:
    """A whole number in digits; ValueError for anything else."""
    return int(plain(text))


def plain(text: str) -> str:
    """A number's text; ValueError for what only Python reads: 1_0 and other scripts."""
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return text.strip()
