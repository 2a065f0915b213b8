"""The main figure with matplotlib: stalled fractions, and their effect on the states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halfulp.lab.results import ArmResult, Comparison
from halfulp.lab.svg import spread
from halfulp.numbers.formats import get_format

__all__ = ["COLOURS", "canvas", "check_figure_path", "draw", "label_ends"]

COLOURS = {32: "#68707c", 16: "#0067a8", 8: "#c4480a", 4: "#8a3a9e"}
SUFFIXES = (".png", ".svg", ".pdf")


def check_figure_path(path: Path) -> None:
    """Raise ``ValueError`` if matplotlib is missing or cannot write the file."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a figure is a file that ends in {', '.join(SUFFIXES)}; got {path}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'halfulp[plot]'") from error


def draw(comparison: Comparison, path: Path) -> None:
    """Draw, by step, the stalled fraction under nearest rounding, and the stored second moment relative to fp32's.

    Parameters
    ----------
    comparison
        A run folder. The left half shows its arms with nearest rounding (all arms, if there is none), the right half
        every arm except fp32.
    path
        A .png, .svg or .pdf file.
    """
    arms = [a for a in comparison.arms if not a.arm.is_fp32]
    if not arms:
        raise ValueError(f"{comparison.folder} has fp32 arms only: there is nothing to draw")
    nearest = [a for a in arms if a.arm.rounding == "nearest"] or arms
    with canvas(path, 2, (12.5, 4.4)) as (left, right):
        from matplotlib import ticker

        ends = [_stalled(left, a) for a in nearest]
        left.set(ylim=(0, 1.02), xlabel="step")
        left.set_title("Stalled updates of Adam's second moment", loc="left", fontweight="bold")
        left.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        note: Any = {"ha": "center", "color": "#444", "bbox": {"color": "white", "pad": 2}}
        left.text(0.72, 0.05, "lines: predicted    dots: measured", transform=left.transAxes, **note)
        label_ends(left, ends)
        right.axhline(1, color=COLOURS[32], linewidth=1, zorder=0)
        ends = [_ratio(right, a) for a in arms]
        right.set(yscale="log", xlabel="step")
        right.set_title("Stored second moment over fp32's", loc="left", fontweight="bold")
        low, high = right.get_ylim()
        right.set_ylim(min(low, 0.45), max(high, 1.5))
        right.yaxis.set_major_locator(ticker.FixedLocator([0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 10]))
        right.yaxis.set_minor_locator(ticker.NullLocator())
        right.yaxis.set_major_formatter("{x:g}×")
        label_ends(right, ends)


@contextmanager
def canvas(path: Path, columns: int, size: tuple[float, float]) -> Iterator[list[Any]]:
    """Yield axes to draw on, and write them atomically to a .png, .svg or .pdf file at the end."""
    check_figure_path(path)
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    style: Any = {"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, columns, figsize=size, layout="constrained", squeeze=False)
        try:
            yield list(axes[0])
            temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(temporary, dpi=150)
            temporary.replace(path)
        finally:
            plt.close(figure)


def _look(arm: ArmResult) -> dict[str, Any]:
    bits = get_format(arm.arm.exp_avg_sq, signed=False).bits
    dash = ":" if arm.arm.reset is not None else "--" if arm.arm.rounding == "stochastic" else "-"
    return {"color": COLOURS.get(bits, "#444"), "linestyle": dash}


End = tuple[str, str, float, float]
"""Label and colour of a line, and the coordinates of its end."""


def _stalled(axes: Any, arm: ArmResult) -> End:
    """Draw one arm and return the end of its line."""
    series = arm.shown.slots["exp_avg_sq"]
    steps = list(range(1, series.steps[-1] + 1))
    look = _look(arm)
    axes.plot(series.steps, series.stalled, "o", markersize=3, color=look["color"], alpha=0.5, markeredgewidth=0)
    predicted = series.predicted(steps)
    if predicted is None:
        return arm.arm.label, look["color"], steps[-1], series.stalled[-1]
    axes.plot(steps, predicted, linewidth=1.6, **look)
    return arm.arm.label, look["color"], steps[-1], predicted[-1]


def _ratio(axes: Any, arm: ArmResult) -> End:
    series, look = arm.shown.slots["exp_avg_sq"], _look(arm)
    axes.plot(series.steps, series.ratio, linewidth=1.8, **look)
    return arm.arm.label, look["color"], series.steps[-1], series.ratio[-1]


def label_ends(axes: Any, ends: list[End]) -> None:
    """Put each line's label beside its end, moved apart if they would overlap."""
    axes.figure.canvas.draw()  # the layout is known after this
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
