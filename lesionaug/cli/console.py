"""What commands print: lines and tables, without colours where the output is not a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text of others on one line: "?" for what does not print (escapes, line breaks, bytes that are no text)."""
    return "".join(c if c.isprintable() else "?" for c in text)


def say(text: str) -> None:
    """Print a line as it is, however long."""
    from rich.console import Console

    Console(soft_wrap=True).print(text, highlight=False, markup=False)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; the first column is flushed left where it holds words."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    grid = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        grid.add_column(column, justify="left" if number == 0 and rows and not rows[0][0][0].isdigit() else "right")
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    Console().print(grid)


def marked(kind: str) -> str:
    """What a title begins with where its numbers are not of patients."""
    return "phantom data, not patients: " if kind == "phantom" else ""
