"""Report of a scale model's experiment: numbers, one HTML page and a figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from halfulp.lab.files import read_config, write_text
from halfulp.lab.results import Interval, interval_text, paired
from halfulp.lab.scale import ScaleConfig, finals, ladder, load_results, own_rates
from halfulp.lab.scale_arms import scale_arm
from halfulp.lab.svg import Chart, Line
from halfulp.lab.tables import arm_table, print_findings
from halfulp.lab.template import fill

__all__ = ["ScaleArmResult", "ScaleResults", "load_scale_model", "write_scale_report"]

PUBLISHED = {
    "bf16": {"nearest": 0.026, "nearest + reset (published)": 0.003, "stochastic": 0.001, "stochastic + reset": 0.0},
    "fp8": {"nearest": 0.038, "nearest + reset (published)": 0.004, "stochastic": 0.005, "stochastic + reset": 0.0},
    "fp4": {"nearest": 0.044, "nearest + reset (published)": 0.011, "stochastic": 0.027, "stochastic + reset": 0.005},
}
"""Final validation loss minus fp32's, LLaMA-100M on C4, at one learning rate (arXiv 2603.16731)."""

SIZE: dict[str, Any] = {"width": 560, "height": 320, "label_width": 210}


@dataclass(frozen=True)
class ScaleArmResult:
    """Results of one arm.

    Parameters
    ----------
    period
        Steps between its resets.
    rates, losses, own_rate
        Its ladder: validation loss at each rate, NaN if a run diverged, and the best of these rates.
    final, diverged
        Validation loss of each seed at the own rate, and the number of final runs that diverged.
    own, common
        Validation loss minus fp32's at its best rate, paired by seed: with the arm at its own best rate, and at fp32's.
        ``None`` for fp32 itself.
    shares, stalled, ratio
        Measurements over the final runs at the own rate, by share of the run: mean stalled fraction of the second
        moment, and mean stored value over fp32's, both bias-corrected.
    """

    name: str
    period: int | None
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    own_rate: float
    final: dict[int, float]
    own: Interval | None
    common: Interval | None
    diverged: int
    shares: tuple[float, ...]
    stalled: tuple[float, ...]
    ratio: tuple[float, ...]

    @property
    def late_stalled(self) -> float:
        """Mean stalled fraction over the second half of the run."""
        return float(np.mean([s for x, s in zip(self.shares, self.stalled, strict=True) if x > 0.5]))

    @property
    def css(self) -> str:
        """CSS classes of its lines."""
        arm = scale_arm(self.name)
        if arm.rounding is None:
            return "b32 reset" if arm.reset else "b32"
        colour = {"nearest": "b8", "stochastic": "b16"}[arm.rounding]
        return f"{colour} reset" if arm.reset else colour


@dataclass(frozen=True)
class ScaleResults:
    """Results of an experiment."""

    config: ScaleConfig
    arms: tuple[ScaleArmResult, ...]
    common_rate: float
    base: Interval

    def published(self, arm: str) -> float | None:
        """Return the published difference of an arm, if the paper has the format and the arm."""
        return PUBLISHED.get(self.config.format, {}).get(
            "nearest + reset (published)" if arm == "nearest + reset" else arm
        )


def load_scale_model(folder: Path) -> ScaleResults:
    """Read a run folder whose final runs are done, at least for fp32.

    Raise ``FileNotFoundError`` if it is not a run folder, and ``ValueError`` if it has no final runs yet.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is no run folder of a scale model: it has no config.json")
    config = read_config(path, ScaleConfig)
    ladders = load_results(folder, ladder(config), "ladder")
    jobs = finals(config, ladders) if len(ladders) == len(ladder(config)) else []
    own, common = (load_results(folder, jobs, stage) for stage in ("own", "common"))
    if "fp32" not in own:
        raise ValueError(f"{folder} has no final runs of fp32 yet; continue it with --resume {folder}")
    rates, base = own_rates(config, ladders), _converged(own["fp32"])
    arms = tuple(
        _arm(ladders.get(name), own[name], own[name] if rates[name] == rates["fp32"] else common.get(name), base)
        for name in config.arms
        if name in own
    )
    whole = Interval.of(list(base.values()))
    if whole is None:
        raise ValueError(f"every final run of fp32 in {folder} diverged: give smaller rates with --lr")
    return ScaleResults(config, arms, rates["fp32"], whole)


def _converged(result: dict[str, Any]) -> dict[int, float]:
    """Return the validation loss by seed of a job with one rate, without diverged runs."""
    each = zip(result["replicas"], result["validation"], strict=True)
    return {seed: loss for (seed, _), loss in each if loss is not None}


def _arm(
    climbed: dict[str, Any] | None, own: dict[str, Any], common: dict[str, Any] | None, base: dict[int, float]
) -> ScaleArmResult:
    losses: dict[float, list[float]] = {}
    tried = own if climbed is None else climbed
    for (_, lr), loss in zip(tried["replicas"], tried["validation"], strict=True):
        losses.setdefault(lr, []).append(float("nan") if loss is None else loss)

    def against(result: dict[str, Any] | None) -> Interval | None:
        if result is None or own["arm"] == "fp32":
            return None
        return paired(_converged(result), base)

    finals = [own] if common is None or common is own else [own, common]
    last = own["rows"][-1]["step"]
    mean = {k: tuple(float(np.mean(row[k])) for row in own["rows"]) for k in ("stalled", "ratio")}
    return ScaleArmResult(
        own["arm"], own["period"], tuple(losses), tuple(float(np.mean(x)) for x in losses.values()),
        own["replicas"][0][1], _converged(own), against(own), against(common),
        sum(x is None for one in finals for x in one["validation"]), tuple(row["step"] / last for row in own["rows"]),
        mean["stalled"], mean["ratio"],
    )  # fmt: skip


def signed(interval: Interval | None) -> str:
    """Format a difference with its 95 % interval."""
    return interval_text(interval, "+.3f")


def sentences(results: ScaleResults) -> list[str]:
    """Return sentences that state what the numbers show."""
    arms = {a.name: a for a in results.arms}
    said = []
    nearest = arms.get("nearest")
    if nearest is not None and nearest.own is not None and nearest.own.half is not None:
        sure = nearest.own.mean - nearest.own.half > 0
        what = "costs" if sure else "has no cost that these seeds resolve:"
        said.append(f"Nearest rounding {what} {signed(nearest.own)} nats at its own best rate.")
        for name in ("nearest + reset", "stochastic"):
            other = arms.get(name)
            if sure and other is not None and other.own is not None:
                share = 1 - max(other.own.mean, 0.0) / nearest.own.mean
                less = signed(paired(nearest.final, other.final)).removeprefix("+")
                said.append(
                    f"{name.capitalize()} costs {signed(other.own)} nats. It ends {less} below nearest rounding: "
                    f"{share:.0%} of the loss is recovered."
                )
    edges = (min(results.config.lrs), max(results.config.lrs))
    at_edge = [f"{a.name} ({a.own_rate:g})" for a in results.arms if edges[0] < edges[1] and a.own_rate in edges]
    if at_edge:
        said.append(f"The best rate is the last of the ladder for {', '.join(at_edge)}: try further ones with --lr.")
    diverged = [f"{a.name} ({a.diverged})" for a in results.arms if a.diverged]
    if diverged:
        said.append(f"Runs that diverged are left out of the differences: {', '.join(diverged)}.")
    return said


def _rates(results: ScaleResults) -> str:
    config = results.config
    finite = [x for a in results.arms for x in a.losses if np.isfinite(x)]
    low, high = min(finite), max(finite)
    pad = max(0.02, 0.06 * (high - low))
    rates = Chart(
        "Validation loss by peak learning rate", (min(config.lrs), max(config.lrs)), (low - pad, high + pad),
        log_x=True, x_format="number", **SIZE,
    )  # fmt: skip
    for arm in results.arms:
        rates.lines.append(Line(arm.name, arm.rates, arm.losses, arm.css))
    return rates.render()


def _charts(results: ScaleResults) -> dict[str, str]:
    config = results.config
    stalled = Chart("Stalled fraction of the second moment", (0, 100), (0.0, 1.0), "percent", **SIZE)
    found = [r for a in results.arms for r in a.ratio if r > 0]
    ends = min(0.5, 0.9 * min(found)), max(2.0, 1.1 * max(found))
    ratio = Chart("Stored second moment over fp32", (0, 100), ends, "times", log_y=True, **SIZE)
    for arm in results.arms:
        percent = [100 * s for s in arm.shares]
        if scale_arm(arm.name).rounding is not None:
            stalled.lines.append(Line(arm.name, percent, arm.stalled, arm.css, dots=True))
        ratio.lines.append(Line(arm.name, percent, arm.ratio, arm.css))
    for rounding, css in (("nearest", "b8"), ("stochastic", "b16")):
        if rounding in {scale_arm(a.name).rounding for a in results.arms}:
            shares, original, model = config.model.stalled(rounding)
            for what, values, look in (("original", original, css), ("model", model, f"{css} own")):
                label = f"{rounding}: predicted, {what}"
                stalled.lines.append(Line(label, list(100 * shares), list(values), look, direct=False))
    rates = {"rates": _rates(results)} if len(config.lrs) > 1 else {}
    return {**rates, "stalled": stalled.render(), "ratio": ratio.render()}


def write_scale_report(folder: Path, console: Console | None = None) -> Path:
    """Write ``report.html`` into a run folder, and print its table to `console`. Return its path."""
    results = load_scale_model(folder)
    page = folder / "report.html"
    said, config = sentences(results), results.config
    html = fill(
        "scale.html.j2", {"signed": signed}, results=results, config=config, model=config.model,
        charts=_charts(results), said=said,
    )  # fmt: skip
    write_text(page, html)
    if console is not None:
        headings = ("reset every", "best rate", "own rate", "fp32's rate", "stalled", "published")
        table = arm_table("validation loss minus fp32's, nats", headings)
        for arm in results.arms:
            known = results.published(arm.name)
            table.add_row(
                arm.name, str(arm.period or "-"), f"{arm.own_rate:g}", signed(arm.own), signed(arm.common),
                f"{arm.late_stalled:.1%}", "-" if known is None else f"{known:+.3f}",
            )  # fmt: skip
        print_findings(console, table, ("reset every", "published"), said)
    return page
