"""Small line charts as inline SVG. Colours come from the page's style sheet, and labels are at the line ends."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Chart", "Line"]

MARGIN_TOP, MARGIN_BOTTOM, MARGIN_LEFT = 14, 34, 46
LABEL_HEIGHT = 15


@dataclass(frozen=True)
class Line:
    """A series of a chart. Values that are not finite interrupt the line.

    `css` are classes of the style sheet (colour, dash). `dots` draws points instead of a line, and `direct` puts the
    label, which the tooltip also shows, at the line's end.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    css: str
    dots: bool = False
    direct: bool = True


@dataclass
class Chart:
    """A chart of lines over a common step axis.

    Parameters
    ----------
    title
        Heading, also read by screen readers.
    y_format, x_format
        ``"percent"``, ``"times"`` (a ratio) or ``"number"``; for `x_format` also ``"step"`` (whole numbers).
    width, height, label_width
        Size of the view box, and the space for labels on the right. Text is 12 units high.
    reference
        A value to mark with a line.
    """

    title: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    y_format: str = "number"
    log_x: bool = False
    log_y: bool = False
    width: int = 420
    height: int = 230
    label_width: int = 16
    reference: float | None = None
    x_format: str = "step"
    lines: list[Line] = field(default_factory=list)

    def x(self, value: float) -> float:
        """Return the horizontal position of a step."""
        return _place(value, self.x_range, self.log_x, MARGIN_LEFT, self.width - self.label_width)

    def y(self, value: float) -> float:
        """Return the vertical position of a value, clipped to the axis."""
        low, high = self.y_range
        return _place(min(max(value, low), high), self.y_range, self.log_y, self.height - MARGIN_BOTTOM, MARGIN_TOP)

    def x_text(self, value: float) -> str:
        """Format a value of the horizontal axis."""
        return f"{value:,.0f}" if self.x_format == "step" else format_value(value, self.x_format)

    def text(self, value: float) -> str:
        """Format a value of the vertical axis."""
        return format_value(value, self.y_format)

    def render(self) -> str:
        """Return the chart as SVG."""
        parts = [
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{html.escape(self.title)}" data-chart="{self._data()}">'
        ]
        parts += self._axes()
        for line in self.lines:
            parts.append(self._dots(line) if line.dots else self._path(line))
        parts += self._labels()
        parts.append('<line class="cursor" y1="0" y2="0"/></svg>')
        return "".join(parts)

    def _axes(self) -> list[str]:
        right, bottom = self.width - self.label_width, self.height - MARGIN_BOTTOM
        parts = []
        for value in ticks(self.y_range, self.log_y):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{MARGIN_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            place = f'x="{MARGIN_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end"'
            parts.append(f'<text class="tick" {place}>{self.text(value)}</text>')
        if self.reference is not None:
            y = self.y(self.reference)
            parts.append(f'<line class="reference" x1="{MARGIN_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        for value in ticks(self.x_range, self.log_x):
            x = self.x(value)
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{self.x_text(value)}</text>'
            )
        parts.append(f'<line class="axis" x1="{MARGIN_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        return parts

    def _path(self, line: Line) -> str:
        runs: list[list[str]] = [[]]
        for x, y in zip(line.x, line.y, strict=True):
            if math.isfinite(y) and (not self.log_y or y > 0) and (not self.log_x or x > 0):
                runs[-1].append(f"{self.x(x):.1f},{self.y(y):.1f}")
            elif runs[-1]:
                runs.append([])
        d = "".join("M" + "L".join(run) for run in runs if run)
        return f'<path class="line {line.css}" d="{d}"/>' if d else ""

    def _dots(self, line: Line) -> str:
        points = [(self.x(x), self.y(y)) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        return "".join(f'<circle class="dot {line.css}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in points)

    def _labels(self) -> list[str]:
        """Return labels at the line ends, moved apart if they would overlap."""
        wanted = []
        for line in self.lines:
            finite = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
            if line.direct and finite:
                wanted.append((self.y(finite[-1][1]), self.x(finite[-1][0]), line))
        wanted.sort(key=lambda item: item[0])
        places = spread([y for y, _, _ in wanted], LABEL_HEIGHT, MARGIN_TOP - 4, self.height - MARGIN_BOTTOM + 4)
        parts = []
        for place, (y, x, line) in zip(places, wanted, strict=True):
            left = self.width - self.label_width + 12
            parts.append(f'<path class="leader {line.css}" d="M{x + 2:.1f},{y:.1f}L{left - 3},{place:.1f}"/>')
            parts.append(
                f'<text class="label {line.css}" x="{left}" y="{place + 4:.1f}">{html.escape(line.label)}</text>'
            )
        return parts

    def _data(self) -> str:
        """Return the tooltip's data as JSON in an attribute."""
        series: list[dict[str, Any]] = [
            {
                "label": line.label,
                "css": line.css,
                "points": [
                    [round(self.x(x), 1), int(x) if self.x_format == "step" else x, self.text(y)]
                    for x, y in zip(line.x, line.y, strict=True)
                    if math.isfinite(y) and (not self.log_x or x > 0)
                ],
            }
            for line in self.lines
        ]
        frame = {"top": MARGIN_TOP, "bottom": self.height - MARGIN_BOTTOM, "series": series}
        return html.escape(json.dumps(frame, separators=(",", ":")))


def spread(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move sorted places apart to at least `gap`, within `low` and `high` as far as they fit."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, low))
    excess = (moved[-1] - high) if moved else 0.0
    if excess > 0:
        moved[-1] -= excess
        for i in range(len(moved) - 2, -1, -1):
            moved[i] = min(moved[i], moved[i + 1] - gap)
    return moved


def format_value(value: float, kind: str) -> str:
    """Format a number for an axis."""
    if not math.isfinite(value):
        return "-"
    if kind == "percent":
        return f"{value * 100:.1f}".removesuffix(".0") + "%"
    if kind == "times":
        return f"{value:.3g}×"
    return f"{value:.4g}"


def ticks(ends: tuple[float, float], log: bool) -> list[float]:
    """Return about five round numbers between the ends of an axis."""
    low, high = ends
    if log:
        for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
            values = [
                s * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for s in steps
            ]
            inside = [v for v in values if low * 0.999 <= v <= high * 1.001]
            if len(inside) <= 6:
                return inside
        return inside
    raw = (high - low) / 4
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(s * scale for s in (1, 2, 2.5, 5, 10) if s * scale >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _place(value: float, ends: tuple[float, float], log: bool, start: float, end: float) -> float:
    low, high = ends
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return start + (end - start) * (value - low) / (high - low)
