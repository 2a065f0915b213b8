"""The main figure with matplotlib: what is lost, and what that does to the states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halfulp.formats import get_format
from halfulp.lab.results import ArmResult, Comparison

__all__ = ["check_figure_path", "draw"]

COLOURS = {32: "#68707c", 16: "#0067a8", 8: "#c4480a", 4: "#8a3a9e"}
SUFFIXES = (".png", ".svg", ".pdf")


def check_figure_path(path: Path) -> None:
    """``ValueError`` for a file that matplotlib cannot write, or a missing matplotlib."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a figure is a file that ends in {', '.join(SUFFIXES)}; got {path}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'halfulp[plot]'") from error


def draw(comparison: Comparison, path: Path) -> None:
    """Draw stalled fraction (measured and predicted) and stored value over fp32, of the second moment, by step.

    Parameters
    ----------
    comparison
        A run folder; every arm but fp32 is drawn.
    path
        A .png, .svg or .pdf file.
    """
    check_figure_path(path)
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    arms = [a for a in comparison.arms if not a.arm.is_fp32]
    if not arms:
        raise ValueError(f"{comparison.folder} has fp32 arms only: there is nothing to draw")
    style: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
        for arm in arms:
            _stalled(left, arm)
            _ratio(right, arm)
        left.set(ylim=(0, 1.02), xlabel="step", title="Second-moment updates that are rounded away")
        left.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        right.axhline(1, color="#999", linewidth=1, zorder=0)
        right.set(yscale="log", xlabel="step", title="Stored second moment, over what fp32 holds")
        right.yaxis.set_major_formatter("{x:g}×")
        for axes in (left, right):
            _label_ends(axes)
        temporary = path.with_name(f".{path.name}.tmp{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=150)
        plt.close(figure)
    temporary.replace(path)


def _look(arm: ArmResult) -> dict[str, Any]:
    bits = get_format(arm.arm.exp_avg_sq, signed=False).bits
    dash = ":" if arm.arm.reset is not None else "--" if arm.arm.rounding == "stochastic" else "-"
    return {"color": COLOURS.get(bits, "#444"), "linestyle": dash}


def _stalled(axes: Any, arm: ArmResult) -> None:
    series = arm.shown.slots["exp_avg_sq"]
    steps = list(range(1, series.steps[-1] + 1))
    look = _look(arm)
    predicted = series.predicted(steps)
    if predicted is not None:
        axes.plot(steps, predicted, linewidth=1.4, label=arm.arm.label, **look)
    axes.plot(series.steps, series.stalled, "o", markersize=2.6, color=look["color"])


def _ratio(axes: Any, arm: ArmResult) -> None:
    series = arm.shown.slots["exp_avg_sq"]
    axes.plot(series.steps, series.ratio, linewidth=1.6, label=arm.arm.label, **_look(arm))


def _label_ends(axes: Any) -> None:
    """Put each line's label beside its end, spread so that none overlap."""
    axes.legend(frameon=False, fontsize=9)
