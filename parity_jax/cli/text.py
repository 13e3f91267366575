"""What the commands print, and where to."""

from typing import Any, NoReturn

from rich.console import Console


class Output(Console):
    """Standard output; a text is printed as it is, whatever signs it has."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> NoReturn:
        """Nobody reads on, which is no failure: the door knows."""
        raise BrokenPipeError


def assignments(part: Any) -> str:
    """A plain dict as "a=1 b(c=2)"."""
    if not isinstance(part, dict):
        return str(part)
    words = []
    for name, value in part.items():
        nested = isinstance(value, dict) and value
        words.append(f"{name}({assignments(value)})" if nested else f"{name}={value}")
    return " ".join(words)
