"""Tables that lose no figure on a narrow terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["print_table"]


def print_table(console: Console, table: Table) -> None:
    """Print a table as it is where it fits, else on its side, a line for each column.

    Rich alone shortens what does not fit to an ellipsis, and columns down to nothing.

    Parameters
    ----------
    console
        Where to.
    table
        Of cells without markup.
    """
    from rich.table import Table

    if _needed(console, table) > console.width:
        side = Table(title=table.title, title_justify="left", box=table.box, padding=(0, 1), show_header=False)
        side.add_column(style="bold", no_wrap=True)
        for _ in table.rows:
            side.add_column(overflow="fold")
        for column in table.columns:
            side.add_row(column.header, *column.cells)
        table = side
    console.print(table)


def _needed(console: Console, table: Table) -> int:
    """Width at which nothing is shortened: whole cells in columns that do not wrap, whole words in others."""
    from rich.measure import Measurement

    whole, least = 0, 0
    for column in table.columns:
        cells = [str(cell) for cell in (column.header, *column.cells)]
        longest = max(len(cell) for cell in cells)
        whole += longest
        least += longest if column.no_wrap else max(len(word) for cell in cells for word in [*cell.split(), ""])
    frame = Measurement.get(console, console.options.update(max_width=10_000), table).maximum - whole
    return least + frame
