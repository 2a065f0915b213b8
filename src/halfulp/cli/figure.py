"""Shared parts of the commands' figures (matplotlib, extra ``plot``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["check_plot", "colours", "figure", "save"]

SUFFIXES = (".png", ".svg", ".pdf")
PALETTE = ("#0b6e99", "#d1495b", "#3c8d53", "#b7791f", "#6b4fa0", "#666666")


def check_plot(path: Path) -> None:
    """Reject, before any work, a figure path that could not be written."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"pictures are written as {', '.join(SUFFIXES)}; got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name} to")
    _matplotlib()


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib: pip install 'halfulp[plot]'") from error
    return matplotlib


def figure(columns: int, rows: int = 1, width: float = 6.4, height: float = 4.0) -> tuple[Any, list[Any]]:
    """Return a figure in the common style and its axes, row by row. No window is opened."""
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                                "grid.alpha": 0.25, "font.size": 10, "legend.frameon": False}):  # fmt: skip
        fig = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=110)
        axes = fig.subplots(rows, columns, squeeze=False)
    return fig, list(axes.flat)


def colours(names: Sequence[str]) -> dict[str, str]:
    """Assign one colour to each name, in order of appearance."""
    unique = list(dict.fromkeys(names))
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(unique)}


def save(fig: Any, path: Path) -> None:
    """Write a figure to a temporary file, then rename it."""
    partial = path.with_name(f".{path.name}.partial")
    fig.savefig(partial, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
    partial.replace(path)
