"""``halfulp report``: the report of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["command"]


def command(
    folder: Annotated[Path, typer.Argument(metavar="RUNDIR", help="A run folder of halfulp compare.")],
    export: Annotated[
        Path | None, typer.Option(help="Also draw the main figure into this .png, .svg or .pdf file.")
    ] = None,
) -> None:
    """Write the HTML page of a run again, and print its results."""
    from halfulp.cli.scale_model import is_scale_model
    from halfulp.lab.tables import output

    console = output()
    if export is not None:
        from halfulp.lab.figure import check_figure_path

        check_figure_path(export)
    if is_scale_model(folder):
        page = _scale_model(folder, export, console)
    else:
        page = _comparison(folder, export, console)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    if export is not None:
        console.print(f"Figure: {export}", highlight=False, soft_wrap=True)


def _comparison(folder: Path, export: Path | None, console: Console) -> Path:
    from halfulp.lab.figure import draw
    from halfulp.lab.report import write_report
    from halfulp.lab.results import load_comparison

    page = write_report(folder, console)
    if export is not None:
        draw(load_comparison(folder), export)
    return page


def _scale_model(folder: Path, export: Path | None, console: Console) -> Path:
    from halfulp.lab.scale_figure import draw_scale_model
    from halfulp.lab.scale_report import load_scale_model, write_scale_report

    page = write_scale_report(folder, console)
    if export is not None:
        draw_scale_model(load_scale_model(folder), export)
    return page
