"""``halfulp report``: the report of a run folder."""

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
    """Write the HTML page of a run again, and print its results."""
    from halfulp.cli.runs import is_scale_model
    from halfulp.lab import canvas, figure, report, results, scale_figure, scale_report
    from halfulp.lab.tables import output

    console = output()
    if export is not None:
        canvas.check_figure_path(export, new_folder=True)
    if is_scale_model(folder):
        page = scale_report.write_scale_report(folder, console)
        if export is not None:
            scale_figure.draw_scale_model(scale_report.load_scale_model(folder), export)
    else:
        page = report.write_report(folder, console)
        if export is not None:
            figure.draw(results.load_comparison(folder), export)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    if export is not None:
        console.print(f"Figure: {export}", highlight=False, soft_wrap=True)
