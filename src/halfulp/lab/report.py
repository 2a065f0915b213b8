"""Write the report of a run folder and print its numbers."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from halfulp.lab.files import write_text
from halfulp.lab.page import build_page
from halfulp.lab.results import Comparison, load_comparison
from halfulp.lab.tables import print_table
from halfulp.lab.words import shows

__all__ = ["write_report"]

DROP = ("bytes", "off 2x", "v / fp32", "predicted")
"""Columns that a narrow terminal omits, in this order."""


def write_report(folder: Path, console: Console | None = None) -> Path:
    """Write ``report.html`` into a run folder, and print a table of its numbers to `console`.

    Returns
    -------
    Path
        Path of the page.
    """
    comparison = load_comparison(folder)
    page = folder / "report.html"
    write_text(page, build_page(comparison))
    if console is not None:
        print_table(console, _table(comparison), drop=DROP)
        console.print()
        for sentence in shows(comparison):
            console.print(f"- {sentence}", highlight=False)
    return page


def _table(comparison: Comparison) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        title="second moment of each arm",
        title_style="bold",
    )
    table.add_column("arm", min_width=min(12, max((len(a.arm.label) for a in comparison.arms), default=0)))
    for heading in ("stalled", "predicted", "v / fp32", "off 2x", "bytes", "validation"):
        table.add_column(heading, justify="right", no_wrap=True)
    for a in comparison.arms:
        series, summary, final = a.shown.slots["exp_avg_sq"], a.shown.summary, a.final
        predicted = series.mean_predicted()
        loss = "-" if final is None else f"{final.mean:.3f}"
        if final is not None and final.half is not None:
            loss += f" ± {final.half:.3f}"
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
