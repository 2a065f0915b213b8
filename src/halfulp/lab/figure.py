"""The main figure with matplotlib: stalled fractions, and their effect on the states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halfulp.lab.canvas import COLOURS, End, canvas, label_ends
from halfulp.lab.results import ArmResult, Comparison
from halfulp.numbers.formats import get_format

__all__ = ["draw"]


def draw(comparison: Comparison, path: Path) -> None:
    """Draw, by step, the stalled fraction under nearest rounding, and the stored second moment relative to fp32's.

    The left half shows the arms with nearest rounding (all arms, if there is none), the right half every arm except
    fp32.
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


def _look(arm: ArmResult) -> dict[str, Any]:
    bits = get_format(arm.arm.exp_avg_sq, signed=False).bits
    dash = ":" if arm.arm.reset is not None else "--" if arm.arm.rounding == "stochastic" else "-"
    return {"color": COLOURS.get(bits, "#444"), "linestyle": dash}


def _stalled(axes: Any, arm: ArmResult) -> End:
    """Draw one arm and return the end of its line."""
    series = arm.second
    steps = list(range(1, series.steps[-1] + 1))
    look = _look(arm)
    axes.plot(series.steps, series.stalled, "o", markersize=3, color=look["color"], alpha=0.5, markeredgewidth=0)
    predicted = series.predicted(steps)
    if predicted is None:
        return arm.arm.label, look["color"], steps[-1], series.stalled[-1]
    axes.plot(steps, predicted, linewidth=1.6, **look)
    return arm.arm.label, look["color"], steps[-1], predicted[-1]


def _ratio(axes: Any, arm: ArmResult) -> End:
    series, look = arm.second, _look(arm)
    axes.plot(series.steps, series.ratio, linewidth=1.8, **look)
    return arm.arm.label, look["color"], series.steps[-1], series.ratio[-1]
