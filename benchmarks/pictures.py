"""Shared parts of the pages' figures: one palette, and labels at the ends of lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from halfulp.lab.svg import spread

__all__ = ["PALETTE", "axes_of", "label_ends", "save"]

PALETTE = ("#0b6e99", "#d1495b", "#3c8d53", "#b7791f", "#6b4fa0", "#666666")


def axes_of(rows: int = 1, width: float = 9.0, height: float = 5.0, **options: Any) -> tuple[Any, list[Any]]:
    """Return a figure and its axes from top to bottom. No window is opened."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "axes.titlelocation": "left"}
    with plt.rc_context(style):
        figure, axes = plt.subplots(rows, figsize=(width, height), layout="constrained", squeeze=False, **options)
    for each in axes.flat:
        each.grid(alpha=0.25, linewidth=0.4)
    return figure, list(axes.flat)


def label_ends(axes: Any, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Write names to the right of the axes, each with a line to its point, moved apart if they would overlap.

    Parameters
    ----------
    axes
        Axes with their final limits and scales.
    ends
        Name, colour, and coordinates of each line's last point.
    """
    axes.figure.canvas.draw()
    box = axes.get_window_extent()
    heights = [axes.transData.transform((x, y))[1] for _, _, x, y in ends]
    order = sorted(range(len(ends)), key=lambda i: -heights[i])
    gap = axes.figure.dpi * 0.17
    tops = spread([box.y1 - heights[i] for i in order], gap, 0.0, float(box.height))
    for i, top in zip(order, tops, strict=True):
        name, colour, x, y = ends[i]
        axes.annotate(
            name, (x, y), xytext=(1.03, 1 - top / box.height), textcoords="axes fraction", color=colour, va="center",
            fontsize=9, fontweight="bold", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip


def save(figure: Any, target: Path) -> None:
    """Write a figure to a temporary file, then rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    figure.savefig(partial, dpi=130, format=target.suffix[1:])
    partial.replace(target)
