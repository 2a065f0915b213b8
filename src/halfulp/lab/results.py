"""Results of a run folder: series by arm, with the predictions for their ages."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from halfulp.lab.arms import Arm
from halfulp.lab.compare import load_run_folder
from halfulp.lab.config import CompareConfig, RunSpec
from halfulp.lab.files import read_json, read_jsonl

__all__ = [
    "ArmResult", "Average", "Comparison", "Interval", "RunResult", "SlotSeries", "age_at", "interval_text",
    "load_comparison", "paired",
]  # fmt: skip


def age_at(step: int, period: int | None) -> int:
    """Return the age of the states at a step's update. It is 0 at the first step, and the first after a reset."""
    return (step - 1) % period if period else step - 1


@lru_cache(maxsize=64)
def _curve(fmt: str, rounding: str, beta: float, slot: str, steps: int) -> tuple[float, ...] | None:
    from halfulp.theory.predict import stall_curve

    try:
        return tuple(stall_curve(fmt, beta=beta, rounding=rounding, steps=steps, slot=slot))
    except ValueError:  # a format or decay without theory
        return None


@dataclass
class SlotSeries:
    """One state of one run at the measured steps.

    `own` is the prediction from the run's own gradients for its first steps, available once the run is done.
    """

    slot: str
    format: str
    rounding: str
    beta: float
    period: int | None
    steps: list[int] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)
    stalled: list[float] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    off_2x: list[float] = field(default_factory=list)
    own: list[float] | None = None

    def predicted(self, steps: list[int]) -> list[float] | None:
        """Return the predicted stalled fraction of the updates at given steps, or ``None`` if theory has no answer."""
        ages = [age_at(s, self.period) for s in steps]
        curve = _curve(self.format, self.rounding, self.beta, self.slot, max(ages, default=0) + 1)
        return None if curve is None else [curve[a] for a in ages]

    def mean_stalled(self) -> float:
        """Return the stalled fraction over the whole run, interpolated linearly between measured steps."""
        every = np.arange(self.steps[0], self.steps[-1] + 1)
        return float(np.interp(every, self.steps, self.stalled).mean())

    def mean_predicted(self) -> float | None:
        """Return the predicted stalled fraction over the whole run."""
        predicted = self.predicted(list(range(1, self.steps[-1] + 1)))
        return None if predicted is None else float(np.mean(predicted))

    def mean_own(self) -> float | None:
        """Return the run's own prediction over the whole run, or ``None`` if its gradients do not cover it."""
        return None if self.own is None or len(self.own) < self.steps[-1] else float(np.mean(self.own))

    def late(self, values: list[float]) -> float:
        """Return the mean of a series over the second half of the run, so that it does not depend on the last reset."""
        every = np.arange((self.steps[-1] + 1) // 2, self.steps[-1] + 1)
        return float(np.interp(every, self.steps, values).mean())

    def miss(self, from_age: int = 10) -> float | None:
        """Return the mean difference of measured and predicted values, at measured ages from `from_age` on."""
        return self._miss(self.predicted(self.steps), from_age)

    def own_miss(self, from_age: int = 10) -> float | None:
        """Like :meth:`miss`, for the run's own prediction."""
        own = self.own
        known = own is not None and len(own) >= self.steps[-1]
        return self._miss([own[s - 1] for s in self.steps] if known and own is not None else None, from_age)

    def _miss(self, predicted: list[float] | None, from_age: int) -> float | None:
        if predicted is None:
            return None
        gaps = [abs(m - p) for m, p, a in zip(self.stalled, predicted, self.ages, strict=True) if a >= from_age]
        return float(np.mean(gaps)) if gaps else None


@dataclass
class RunResult:
    """One run: the rows of ``metrics.jsonl``, its states, and its summary once it is done."""

    spec: RunSpec
    rows: list[dict[str, Any]]
    slots: dict[str, SlotSeries]
    summary: dict[str, Any] | None

    @property
    def loss(self) -> tuple[list[int], list[float]]:
        """Training loss. Each value is the mean since the previous row."""
        return [r["step"] for r in self.rows], [r["loss"] for r in self.rows]

    @property
    def validation(self) -> tuple[list[int], list[float]]:
        """Validation loss."""
        rows = [r for r in self.rows if "validation" in r]
        return [r["step"] for r in rows], [r["validation"] for r in rows]

    @property
    def final(self) -> float | None:
        """Final validation loss, or ``None`` if the run is not done or diverged."""
        return None if self.summary is None else self.summary["validation"]

    @property
    def diverged(self) -> bool:
        """Whether the loss became infinite or NaN."""
        return self.summary is not None and self.summary["diverged"]


@dataclass(frozen=True)
class Average:
    """A weight average at the end of a run. `state` is live (the weights themselves), fp32, bf16 or 8bit."""

    state: str
    bytes_per_weight: float
    validation: float
    distance: float


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % t interval. `half` is ``None`` for a single seed."""

    mean: float
    half: float | None
    count: int

    @staticmethod
    def of(values: list[float]) -> Interval | None:
        """Return the interval of some values, or ``None`` if there are none."""
        if not values:
            return None
        if len(values) == 1:
            return Interval(values[0], None, 1)
        from scipy.stats import t

        spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return Interval(float(np.mean(values)), float(t.ppf(0.975, len(values) - 1)) * spread, len(values))


def paired(losses: dict[int, float], others: dict[int, float]) -> Interval | None:
    """Return the interval of the first minus the second, over the seeds that both have."""
    return Interval.of([loss - others[seed] for seed, loss in losses.items() if seed in others])


def interval_text(value: Interval | None, spec: str) -> str:
    """Format an interval, with a format such as ``"+.3f"`` for its mean; ``"-"`` without one."""
    if value is None:
        return "-"
    return format(value.mean, spec) + ("" if value.half is None else f" ± {format(value.half, spec.lstrip('+'))}")


@dataclass
class ArmResult:
    """All runs of an arm. The states shown are those of the first seed at the arm's best learning rate."""

    arm: Arm
    runs: list[RunResult]

    @property
    def best_lr(self) -> float:
        """Learning rate with the lowest mean final validation loss, or the first one if no run is done."""
        means: dict[float, float] = {}
        for lr in dict.fromkeys(r.spec.lr for r in self.runs):
            mine = [r for r in self.runs if r.spec.lr == lr]
            finals = [r.final for r in mine if r.final is not None]
            if finals and not any(r.diverged for r in mine):
                means[lr] = float(np.mean(finals))
        return min(means, key=lambda lr: means[lr]) if means else self.runs[0].spec.lr

    @property
    def best(self) -> list[RunResult]:
        """Runs at the best learning rate."""
        return [r for r in self.runs if r.spec.lr == self.best_lr]

    @property
    def shown(self) -> RunResult:
        """The run whose states are shown."""
        return self.best[0]

    @property
    def second(self) -> SlotSeries:
        """The second moment of that run."""
        return self.shown.slots["exp_avg_sq"]

    @property
    def finals(self) -> dict[int, float]:
        """Final validation losses by seed, at the best learning rate."""
        return {r.spec.seed: r.final for r in self.best if r.final is not None}

    @property
    def final(self) -> Interval | None:
        """Final validation loss over the seeds at the best learning rate."""
        return Interval.of([*self.finals.values()])

    @property
    def diverged(self) -> int:
        """Number of runs that diverged, at any learning rate."""
        return sum(r.diverged for r in self.runs)

    def against(self, other: ArmResult) -> Interval | None:
        """Return the final validation loss minus another arm's, paired by seed, each at its best learning rate."""
        return paired(self.finals, other.finals)


@dataclass
class Comparison:
    """Results of a run folder."""

    folder: Path
    config: CompareConfig
    environment: dict[str, Any]
    arms: list[ArmResult]

    @property
    def control(self) -> ArmResult | None:
        """The plain fp32 arm."""
        return next((a for a in self.arms if a.arm.is_fp32 and a.arm.reset is None), None)

    @property
    def averages(self) -> dict[str, Average]:
        """Averages of the weights that the plain fp32 arm kept, by storage; empty before its end."""
        summary = None if self.control is None else self.control.shown.summary
        found = (summary or {}).get("averages") or {}
        return {state: Average(state, **values) for state, values in found.items()}

    @property
    def complete(self) -> bool:
        """Whether every run is done."""
        return sum(r.summary is not None for a in self.arms for r in a.runs) == len(self.config.runs())


def load_comparison(folder: Path) -> Comparison:
    """Read a run folder. Runs without measurements are left out.

    Raise ``FileNotFoundError`` if it is not a run folder, and ``ValueError`` if nothing has been measured in it yet.
    """
    config = load_run_folder(folder)
    runs = [_load_run(folder / "runs" / spec.name, spec) for spec in config.runs()]
    arms = []
    for arm in config.parsed:
        mine = [r for r in runs if r.spec.arm == arm and r.slots]
        if mine:
            arms.append(ArmResult(arm, mine))
    if not arms:
        raise ValueError(f"{folder} holds no measurements yet. Continue it with: halfulp compare --resume {folder}")
    return Comparison(folder, config, read_json(folder / "environment.json"), arms)


def _load_run(folder: Path, spec: RunSpec) -> RunResult:
    rows = read_jsonl(folder / "metrics.jsonl")
    slots: dict[str, SlotSeries] = {}
    for row in rows:
        for name, m in row["slots"].items():
            series = slots.get(name)
            if series is None:
                series = slots[name] = SlotSeries(name, m["format"], m["rounding"], m["beta"], spec.period)
            series.steps.append(row["step"])
            series.ages.append(m["age"])
            for key in ("stalled", "lag", "ratio", "off_2x"):
                getattr(series, key).append(m[key])
    path = folder / "summary.json"
    summary = read_json(path) if path.exists() else None
    for name, own in ((summary or {}).get("own_prediction") or {}).items():
        if name in slots:
            slots[name].own = own
    return RunResult(spec, rows, slots, summary)
