"""Figures with matplotlib: a common style, labels at the ends of lines, and a file that is written atomically."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halfulp.checkpoint.atomic import write_bytes
from halfulp.lab.svg import spread

__all__ = ["COLOURS", "End", "canvas", "check_figure_path", "label_ends"]

COLOURS = {32: "#68707c", 16: "#0067a8", 8: "#c4480a", 4: "#8a3a9e"}
"""Colours by the bits of a format."""
SUFFIXES = (".png", ".svg", ".pdf")
STYLE: dict[str, Any] = {
    "font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "grid.alpha": 0.25, "svg.fonttype": "none",
}  # fmt: skip
End = tuple[str, str, float, float]
"""Label and colour of a line, and the coordinates of its end."""


def check_figure_path(path: Path, *, new_folder: bool = False) -> None:
    """Raise an error if matplotlib is missing or could not write the file, unless its folder is made first."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a figure is a file that ends in {', '.join(SUFFIXES)}; got {path}")
    if not (new_folder or path.parent.is_dir()):
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name} to")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'halfulp[plot]'") from error


@contextmanager
def canvas(
    path: Path, columns: int, size: tuple[float, float], *, rows: int = 1, grid: bool = False
) -> Iterator[list[Any]]:
    """Yield axes to draw on, row by row, and write them to a .png, .svg or .pdf file at the end.

    Its folder is made if there is none.
    """
    check_figure_path(path, new_folder=True)
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {**STYLE, "axes.grid": grid}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained", dpi=150)
        yield list(figure.subplots(rows, columns, squeeze=False).flat)
        data = io.BytesIO()
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(data, format=path.suffix.removeprefix("."), metadata=metadata)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data.getvalue())


def label_ends(axes: Any, ends: list[End]) -> None:
    """Put each line's label beside its end, moved apart if they would overlap."""
    axes.figure.draw_without_rendering()  # the layout is known after this
    box = axes.get_window_extent()
    placed = sorted(((axes.transData.transform((x, y))[1], i) for i, (*_, x, y) in enumerate(ends)), reverse=True)
    tops = spread([box.y1 - place for place, _ in placed], axes.figure.dpi * 0.185, 0.0, float(box.height))
    for (_, i), top in zip(placed, tops, strict=True):
        label, colour, x, y = ends[i]
        leader = {"arrowstyle": "-", "color": colour, "alpha": 0.5, "relpos": (0.0, 0.5), "shrinkA": 2, "shrinkB": 0}
        axes.annotate(
            label, xy=(x, y), xytext=(1.025, 1 - top / box.height), textcoords=axes.transAxes, va="center",
            color=colour, fontweight="bold", arrowprops=leader,
        )  # fmt: skip
