"""A scale model's figure with matplotlib: what rounding costs in loss, and what recovers it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from halfulp.lab.canvas import COLOURS, canvas, label_ends
from halfulp.lab.scale_arms import scale_arm
from halfulp.lab.scale_report import ScaleArmResult, ScaleResults

__all__ = ["draw_scale_model"]


def draw_scale_model(results: ScaleResults, path: Path) -> None:
    """Draw loss against rate for every arm, and each arm's loss minus fp32's with its 95 % interval.

    With a single rate there is no left half.
    """
    tuned = len(results.config.lrs) > 1
    with canvas(path, 2 if tuned else 1, (12.5 if tuned else 6.6, 3.9)) as axes:
        _differences(axes[-1], results)
        if tuned:
            _against_rate(axes[0], results)


def _colour(arm: ScaleArmResult) -> str:
    return COLOURS[{None: 32, "nearest": 8, "stochastic": 16}[scale_arm(arm.name).rounding]]


def _against_rate(axes: Any, results: ScaleResults) -> None:
    ends = []
    for arm in results.arms:
        points = [(x, y) for x, y in zip(arm.rates, arm.losses, strict=True) if math.isfinite(y)]
        dash = ":" if scale_arm(arm.name).reset else "-"
        axes.plot(*zip(*points, strict=True), "o", linestyle=dash, color=_colour(arm), linewidth=1.8, markersize=4)
        ends.append((arm.name, _colour(arm), *points[-1]))
    axes.set(xscale="log", xlabel="peak learning rate", xticks=results.config.lrs)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title("Validation loss by learning rate", loc="left", fontweight="bold")
    label_ends(axes, ends)


def _differences(axes: Any, results: ScaleResults) -> None:
    arms = [arm for arm in results.arms if arm.name != "fp32"]
    axes.axvline(0, color=COLOURS[32], linewidth=1, zorder=0)
    named = hollow = False
    for row, arm in enumerate(arms):
        elsewhere = None if arm.common == arm.own else arm.common
        hollow |= elsewhere is not None
        for gap, face, y in ((arm.own, _colour(arm), row - 0.1), (elsewhere, "white", row + 0.1)):
            if gap is not None:
                axes.errorbar(
                    gap.mean, y, xerr=gap.half, fmt="o", color=_colour(arm), markerfacecolor=face, markersize=6,
                    capsize=3, linewidth=1.6,
                )  # fmt: skip
        known = results.published(arm.name)
        if known is not None:
            axes.plot(known, row + 0.3, marker="|", color="#444", markersize=9, markeredgewidth=1.6)
            if not named:
                axes.annotate("published, LLaMA-100M", (known, row + 0.3), (6, 0), textcoords="offset points",
                              va="center", color="#444", fontsize=9)  # fmt: skip
            named = True
    axes.set(yticks=range(len(arms)), yticklabels=[arm.name for arm in arms], ylim=(len(arms) - 0.4, -0.6))
    for label, arm in zip(axes.get_yticklabels(), arms, strict=True):
        label.set(color=_colour(arm), fontweight="bold")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("Loss minus loss with fp32 states", loc="left", fontweight="bold")
    seeds = sorted({arm.own.count for arm in arms if arm.own is not None})  # a run may be unfinished
    number = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) if seeds else "no"
    caption = f"nats, at each arm's best learning rate\n{number} paired seeds, 95 % intervals"
    axes.set_xlabel(caption + ("\n(hollow: at fp32's best learning rate)" if hollow else ""))
