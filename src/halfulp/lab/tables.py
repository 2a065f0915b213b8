"""Tables that keep all their content in a pipe or on a narrow terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

__all__ = ["arm_table", "fit", "needed", "output", "print_findings", "print_table", "sparkline"]

UNBOUNDED = 1000
"""Columns of a pipe. No table is as wide, so each has its natural width."""


def output() -> Console:
    """Return standard output with the width of the terminal or of COLUMNS. Other pipes have the width of their content.

    Rich by itself assumes 80 columns for a pipe.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNBOUNDED
    return console


def print_table(console: Console, table: Table, drop: Sequence[str] = ()) -> None:
    """Print a table as it is if it fits, else without some columns, else transposed, with one line per column.

    Rich by itself cuts what does not fit with an ellipsis, and may shrink columns to nothing. A column that may wrap
    gets at least its longest word, or its ``min_width`` if set. `drop` are the headings of columns that may be
    omitted, in this order. A note lists those that were.
    """
    from rich.table import Table
    from rich.text import Text

    columns = list(table.columns)
    left_out = fit(console, table, drop)
    if table.title:  # printed separately, since in the table it would wrap at the table's width
        console.print(Text(str(table.title), style=table.title_style or "table.title"))
        table.title = None
    if needed(console, table) > console.width:
        table.columns, left_out = columns, []  # a transposed table has room for all
        side = Table(box=table.box, padding=(0, 1), show_header=False)
        side.add_column(style="bold", no_wrap=True)
        for _ in table.rows:
            side.add_column(overflow="fold")
        for column in table.columns:
            side.add_row(column.header, *column.cells)
        table = side
    console.print(table)
    if left_out:
        console.print(f"(no room for: {', '.join(left_out)})", style="dim")


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """Return values between two ends as a line of block characters."""
    span = max(high - low, 1e-12)
    return "".join(" ▁▂▃▄▅▆▇█"[min(8, max(0, round(8 * (float(v) - low) / span)))] for v in values)


def arm_table(title: str, headings: Sequence[str]) -> Table:
    """Return a table of arms, with a right-aligned column for each heading."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=title, title_style="bold")
    table.add_column("arm", min_width=12)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def print_findings(console: Console, table: Table, drop: Sequence[str], sentences: Sequence[str]) -> None:
    """Print the table of a report, and the sentences on what it shows."""
    print_table(console, table, drop)
    console.print()
    for sentence in sentences:
        console.print(f"- {sentence}", highlight=False)


def fit(console: Console, table: Table, drop: Sequence[str]) -> list[str]:
    """Remove columns from a table until it fits. Return their headings, in the order of `drop`."""
    left_out: list[str] = []
    for heading in drop:
        if needed(console, table) <= console.width:
            break
        kept = [column for column in table.columns if column.header != heading]
        if len(kept) < len(table.columns):
            table.columns = [replace(column, _index=i) for i, column in enumerate(kept)]
            left_out.append(heading)
    return left_out


def needed(console: Console, table: Table) -> int:
    """Return the width at which nothing is cut: whole cells in columns that do not wrap, whole words in others."""
    from rich.measure import Measurement, measure_renderables

    options = console.options.update(max_width=10 * UNBOUNDED)

    def widths(column: Column) -> tuple[int, int]:
        cells = measure_renderables(console, options, [column.header, *column.cells])
        least = cells.maximum if column.no_wrap else column.min_width or cells.minimum
        whole = max(cells.maximum, column.min_width or 0)
        return (column.width, column.width) if column.width is not None else (least, whole)

    least, whole = (sum(side) for side in zip(*map(widths, table.columns), strict=True))
    title, table.title = table.title, None
    frame = Measurement.get(console, options, table).maximum - whole
    table.title = title
    return least + frame
