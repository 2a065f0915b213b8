"""The report as one self-contained HTML page: no network, no script library."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from typing import Any

from halfulp.lab.arms import Arm
from halfulp.lab.results import ArmResult, Comparison, Interval, SlotSeries, interval_text
from halfulp.lab.svg import Chart, Line, format_value
from halfulp.lab.template import fill
from halfulp.lab.words import AVERAGES, averages, cannot_show, shows
from halfulp.numbers.formats import get_format

__all__ = ["build_page", "style"]

SHORT = {"exp_avg_sq": "second moment", "exp_avg": "first moment"}


def style(arm: Arm) -> str:
    """Return the CSS classes of an arm.

    Colour shows the width of the second moment, dashes show rounding and resets.
    """
    bits = get_format(arm.exp_avg_sq, signed=False).bits
    dash = "reset" if arm.reset is not None else "" if arm.is_fp32 else arm.rounding
    return f"b{bits} {dash}".strip()


def build_page(comparison: Comparison) -> str:
    """Return the page of a comparison."""
    low = [a for a in comparison.arms if not a.arm.is_fp32]
    kept: dict[str, str] = next((a.shown.summary["kept_fp32"] for a in low if a.shown.summary), {})
    return fill(
        "page.html.j2",
        {"percent": lambda value: f"{value * 100:.1f}%", "times": lambda value: format_value(value, "times")},
        arms=[_glance(a) for a in comparison.arms],
        panels=[_panel(a) for a in low],
        distances=_distances(low),
        losses=_losses(comparison),
        table=_table(comparison),
        sweep=_sweep(comparison),
        averages=_averages(comparison),
        averages_say=averages(comparison),
        shows=shows(comparison),
        cannot=cannot_show(comparison),
        lead=_lead(comparison),
        complete=comparison.complete,
        kept="; ".join(f"{n} × {why}" for why, n in Counter(kept.values()).items()),
        config=comparison.config,
        config_json=json.dumps(asdict(comparison.config), indent=2),
        environment_json=json.dumps(comparison.environment, indent=2),
        folder=comparison.folder.resolve().name,
    )


def _lead(comparison: Comparison) -> str:
    config, text = comparison.config, comparison.environment["text"]
    sizes = [a.shown.summary["parameters"] for a in comparison.arms if a.shown.summary]
    size = f" with {sizes[0] / 1e6:.2f} million parameters" if sizes else ""
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else f"seed {config.seeds[0]}"
    return (
        f"A {config.model} model{size}, trained for {config.steps:,} steps of {config.batch} × {config.context} tokens "
        f"by AdamW at betas {config.betas[0]:g} and {config.betas[1]:g}, {seeds}. Text: {text['source']} "
        f"({text['bytes'] / 1e6:.1f} MB). Only the storage of the optimizer's states differs between the arms."
    )


def _glance(a: ArmResult) -> dict[str, Any]:
    """Return one row of the overview. Positions and widths of the lag bar are in percent of the cell."""
    series, summary = a.second, a.shown.summary
    ratio = series.late(series.ratio)
    place = min(max(50.0 + 25.0 * math.log2(ratio), 0.0), 100.0) if 0 < ratio < math.inf else 50.0
    return {
        "label": a.arm.label,
        "css": style(a.arm),
        "stalled": series.mean_stalled(),
        "predicted": series.mean_predicted(),
        "ratio": ratio,
        "lag_place": place,
        "lag_left": min(place, 50.0),
        "lag_width": abs(place - 50.0),
        "off": series.late(series.off_2x),
        "bytes": None if summary is None else summary["bytes_per_parameter"],
    }


def _panel(a: ArmResult) -> dict[str, Any]:
    lines = []
    for slot in SHORT:
        series = a.shown.slots.get(slot)
        if series is not None:
            predicted = series.mean_predicted()
            guess = "no prediction" if predicted is None else f"predicted {predicted:.1%}"
            own = series.mean_own()
            guess += "" if own is None else f", from its gradients {own:.1%}"
            lines.append(f"{SHORT[slot]}: {series.mean_stalled():.1%} over the run ({guess})")
    return {
        "label": a.arm.label,
        "period": a.shown.spec.period,
        "lines": lines,
        "linear": _stall_chart(a, log=False).render(),
        "log": _stall_chart(a, log=True).render(),
    }


def _stall_chart(a: ArmResult, *, log: bool) -> Chart:
    last = a.shown.rows[-1]["step"]
    title = f"{a.arm.label}: stalled fraction by step"
    chart = Chart(title, (1, max(last, 2)), (0.0, 1.0), "percent", log_x=log, height=210)
    for slot in reversed(SHORT):
        series = a.shown.slots.get(slot)
        if series is None:
            continue
        css = style(a.arm).split()[0] + (" pale" if slot == "exp_avg" else "")
        steps = _drawn_steps(last, series)
        predicted = series.predicted(steps)
        if predicted is not None:
            chart.lines.append(Line(f"{SHORT[slot]}, predicted", steps, predicted, css, direct=False))
        if series.own is not None:
            mine = [s for s in steps if s <= len(series.own)]
            values = [series.own[s - 1] for s in mine]
            chart.lines.append(Line(f"{SHORT[slot]}, from its gradients", mine, values, f"{css} own", direct=False))
        chart.lines.append(Line(f"{SHORT[slot]}, measured", series.steps, series.stalled, css, dots=True, direct=False))
    return chart


def _drawn_steps(last: int, series: SlotSeries) -> list[int]:
    """Return the steps at which to draw a prediction: enough for a smooth line, and both sides of every reset."""
    steps = set(range(1, last + 1, max(1, last // 200))) | {last}
    for start in range(1, last + 1, series.period or last + 1):
        steps |= {start - 1, start, *(start + round(1.2**k) for k in range(40))}
    return sorted(s for s in steps if 1 <= s <= last)


def _distances(arms: list[ArmResult]) -> list[Chart]:
    charts: list[Chart] = []
    for slot, name in SHORT.items():
        series = [(a, a.shown.slots[slot]) for a in arms if slot in a.shown.slots]
        if not series:
            continue
        last = max(s.steps[-1] for _, s in series)
        ratios = [r for _, s in series for r in s.ratio if 0 < r < math.inf]
        low, high = min([0.5, *(r * 0.9 for r in ratios)]), max([2.0, *(r * 1.1 for r in ratios)])
        ratio = _wide(f"Stored over fp32, {name}", last, (max(low, 0.01), min(high, 100.0)), "times", log_y=True)
        ratio.reference = 1.0
        top = max([0.1, *(o for _, s in series for o in s.off_2x)])
        off = _wide(f"Share off by more than 2×, {name}", last, (0.0, min(1.0, top * 1.05)), "percent")
        for a, s in series:
            ratio.lines.append(Line(a.arm.label, s.steps, s.ratio, style(a.arm)))
            off.lines.append(Line(a.arm.label, s.steps, s.off_2x, style(a.arm)))
        charts += [ratio, off]
    return charts


def _wide(title: str, last: int, ends: tuple[float, float], kind: str, *, log_y: bool = False) -> Chart:
    return Chart(title, (0, last), ends, kind, log_y=log_y, height=300, width=560, label_width=165)


def _losses(comparison: Comparison) -> list[Chart]:
    charts = []
    for title, curves in (
        ("Validation loss (nats per token)", [(a, a.shown.validation) for a in comparison.arms]),
        ("Training loss (nats per token)", [(a, a.shown.loss) for a in comparison.arms]),
    ):
        values = [v for _, (_, losses) in curves for v in losses if math.isfinite(v)]
        if not values:
            continue
        last = max(steps[-1] for _, (steps, _) in curves if steps)
        chart = _wide(title, last, (min(values) * 0.97, max(values) * 1.03), "number")
        for a, (steps, losses) in curves:
            chart.lines.append(Line(a.arm.label, steps, losses, style(a.arm)))
        charts.append(chart)
    return charts


def _table(comparison: Comparison) -> list[list[str]]:
    control = comparison.control
    rows = [
        [
            "arm", "bytes / parameter", "reset", "v stalled, run", "predicted", "v stalled, end", "m stalled, end",
            "v lag (ln), end", "v off 2×, end", "learning rate", "validation loss", "minus fp32, paired", "diverged",
        ]
    ]  # fmt: skip
    for a in comparison.arms:
        v, m, summary = a.second, a.shown.slots.get("exp_avg"), a.shown.summary
        predicted = v.mean_predicted()
        gap = a.against(control) if control is not None and a is not control else None
        rows.append(
            [
                a.arm.label,
                "-" if summary is None else f"{summary['bytes_per_parameter']:.3f}",
                str(a.shown.spec.period or "-"),
                f"{v.mean_stalled():.2%}",
                "-" if predicted is None else f"{predicted:.2%}",
                f"{v.stalled[-1]:.2%}",
                "-" if m is None else f"{m.stalled[-1]:.2%}",
                f"{v.lag[-1]:+.3f}",
                f"{v.off_2x[-1]:.2%}",
                f"{a.best_lr:g}",
                interval_text(a.final, ".4f"),
                interval_text(gap, "+.4f"),
                f"{a.diverged} of {len(a.runs)}",
            ]
        )
    return rows


def _sweep(comparison: Comparison) -> list[list[str]]:
    lrs = comparison.config.lrs
    if len(lrs) == 1:
        return []
    rows = [["arm", *(f"{lr:g}" for lr in lrs)]]
    for a in comparison.arms:
        cells = [a.arm.label]
        for lr in lrs:
            mine = [r for r in a.runs if r.spec.lr == lr]
            diverged = sum(r.diverged for r in mine)
            text = interval_text(Interval.of([r.final for r in mine if r.final is not None]), ".4f")
            cells.append(f"{text} ({diverged} diverged)" if diverged else text)
        rows.append(cells)
    return rows


def _averages(comparison: Comparison) -> list[list[str]]:
    rows = [["average", "bytes a weight", "validation loss", "distance to the fp32 average"]]
    for a in comparison.averages.values():
        cells = [AVERAGES[a.state], f"{a.bytes_per_weight:.2f}", f"{a.validation:.4f}", f"{a.distance:.4f}"]
        rows.append(cells)
    return rows if len(rows) > 1 else []
