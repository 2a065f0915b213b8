"""Write the report of a run folder and print its numbers."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from halfulp.lab.files import write_text
from halfulp.lab.page import build_page
from halfulp.lab.results import Comparison, interval_text, load_comparison
from halfulp.lab.tables import arm_table, print_findings
from halfulp.lab.words import shows

__all__ = ["write_report"]

DROP = ("bytes", "off 2x", "v / fp32", "predicted")
"""Columns that a narrow terminal omits, in this order."""


def write_report(folder: Path, console: Console | None = None) -> Path:
    """Write ``report.html`` into a run folder, and print a table of its numbers to `console`. Return its path."""
    comparison = load_comparison(folder)
    page = folder / "report.html"
    write_text(page, build_page(comparison))
    if console is not None:
        print_findings(console, _table(comparison), DROP, shows(comparison))
    return page


def _table(comparison: Comparison) -> Table:
    headings = ("stalled", "predicted", "v / fp32", "off 2x", "bytes", "validation")
    table = arm_table("second moment of each arm", headings)
    for a in comparison.arms:
        series, summary, loss = a.second, a.shown.summary, interval_text(a.final, ".3f")
        predicted = series.mean_predicted()
        table.add_row(
            a.arm.label,
            f"{series.mean_stalled():.1%}",
            "-" if predicted is None else f"{predicted:.1%}",
            f"{series.late(series.ratio):.2f}",
            f"{series.late(series.off_2x):.1%}",
            "-" if summary is None else f"{summary['bytes_per_parameter']:.2f}",
            loss if not a.diverged else f"{loss} ({a.diverged} diverged)",
        )
    return table
