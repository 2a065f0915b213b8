"""``halfulp report``: the page of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    folder: Annotated[Path, typer.Argument(metavar="RUNDIR", help="A run folder of halfulp compare.")],
    export: Annotated[
        Path | None, typer.Option(help="Also draw the main figure into this .png, .svg or .pdf file.")
    ] = None,
) -> None:
    """Write the HTML page of a run again, and print its figures."""
    from halfulp.lab.report import write_report
    from halfulp.lab.tables import output

    console = output()
    if export is not None:
        from halfulp.lab.figure import check_figure_path

        check_figure_path(export)
    page = write_report(folder, console)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    if export is not None:
        from halfulp.lab.figure import draw
        from halfulp.lab.results import load_comparison

        draw(load_comparison(folder), export)
        console.print(f"Figure: {export}", highlight=False, soft_wrap=True)
