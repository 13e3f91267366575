"""Tables on standard output: a line for each row, cut at the edge of a terminal."""

from collections.abc import Sequence

from rich.table import Table

from parity_jax.cli.text import Output

WIDTH = 1000  # of what is piped


def table_lines(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table as text, without the blanks that fill its last column."""
    console = Output()
    if not console.is_terminal:
        console.width = WIDTH
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    for name in head:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for line in lines:
        table.add_row(*line)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def print_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Show a table."""
    for line in table_lines(head, lines):
        print(line)


def counted(number: int, thing: str) -> str:
    """So many of a thing: "1 job", "2 jobs"."""
    return f"{number} {thing}{'s' * (number != 1)}"
