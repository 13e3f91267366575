"""Configs as the commands print them."""

from typing import Any


def assignments(part: Any) -> str:
    """A plain dict as "a=1 b(c=2)"."""
    if not isinstance(part, dict):
        return str(part)
    words = []
    for name, value in part.items():
        nested = isinstance(value, dict) and value
        words.append(f"{name}({assignments(value)})" if nested else f"{name}={value}")
    return " ".join(words)
