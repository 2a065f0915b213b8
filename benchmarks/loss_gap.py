"""Loss gaps of the scale models, predicted from one gradient sample of an fp32 run each (halfulp.theory.loss_gap).

The measured gaps are those of `scale_models.csv` and `planner_regret.csv`. The rest is made by loss_gap_runs.py.

python benchmarks/loss_gap.py   # prints the tables, draws the picture
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from loss_gap_runs import CHANGES, RATES, measured
from scale_models import Experiment
from scipy.stats import spearmanr

from halfulp.lab.canvas import COLOURS, canvas
from halfulp.lab.results import Interval, paired
from halfulp.lab.scale_report import signed
from halfulp.numbers.formats import get_format
from halfulp.theory.loss_gap import LossByRate, UpdateChange, loss_gap

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "loss_gap.png"


@dataclass(frozen=True)
class Gap:
    """A measured gap, with what the replay and the chain say about the updates."""

    key: Experiment
    arm: str
    reset: str
    lr: float
    fp32_lr: float
    best: float
    """Learning rate at which fp32 was best."""
    tuned: bool
    """Whether both are at their own best rates. Otherwise both have one rate."""
    measured: Interval
    sample: UpdateChange
    chain: UpdateChange | None
    curve: LossByRate

    @property
    def title(self) -> str:
        """The experiment."""
        return str(self.key.title)

    @property
    def stable(self) -> bool:
        """Whether the rate is at most fp32's best one."""
        return self.lr <= self.best

    @property
    def later(self) -> bool:
        """Whether the experiment was replayed after the number was fitted. It is predicted only."""
        k = self.key
        return k.format == "fp4" or k.factor == "1" or k.beta2 != "0.999" or k == Experiment(width="32")


Predictor = Callable[[Gap], tuple[float, float] | None]
"""Function that returns the part of a prediction that needs no fit, and what the fitted number is multiplied by."""


def from_sample(gap: Gap) -> tuple[float, float] | None:
    return _parts(gap, gap.sample)


def from_chain(gap: Gap) -> tuple[float, float] | None:
    return None if gap.chain is None else _parts(gap, gap.chain)


def _parts(gap: Gap, change: UpdateChange) -> tuple[float, float]:
    by_rate = loss_gap(change, gap.curve, gap.lr, fp32_lr=gap.fp32_lr, per_residual=0.0)
    return by_rate, change.residual


PREDICTORS: dict[str, Predictor] = {
    "factor and residual": from_sample,
    "factor alone": lambda gap: (_parts(gap, gap.sample)[0], 0.0),
    "residual alone": lambda gap: (0.0, gap.sample.residual),
    "both, by theory without a sample": from_chain,
    "no gap": lambda gap: (0.0, 0.0),
}


def changes() -> dict[tuple[Experiment, str, str], tuple[UpdateChange, UpdateChange | None]]:
    """What the sample and the chain say, by experiment, arm and period."""

    def change(factor: str, residual: str) -> UpdateChange | None:
        return UpdateChange(1.0, float(factor), float(factor) ** 2 / (1 - float(residual))) if factor else None

    found = {}
    with CHANGES.open(newline="") as file:
        for row in csv.DictReader(file):
            sample = change(row["step_factor"], row["step_residual"])
            assert sample is not None
            found[Experiment.of(row), row["arm"], row["reset_every"]] = (
                sample,
                change(row["theory_factor"], row["theory_residual"]),
            )
    return found


def curves(runs: dict[Experiment, dict[tuple[str, str, float], dict[int, float]]]) -> dict[Experiment, LossByRate]:
    """Loss of fp32 by learning rate in every experiment, over the seeds of tuning and of the final runs."""
    losses: dict[Experiment, dict[float, list[float]]] = {}
    with RATES.open(newline="") as file:
        for row in csv.DictReader(file):
            losses.setdefault(Experiment.of(row), {}).setdefault(float(row["lr"]), []).append(float(row["loss"]))
    for key, each in runs.items():
        for (arm, _, lr), final in each.items():
            if arm == "fp32" and key in losses:
                losses[key].setdefault(lr, []).extend(final.values())
    return {key: LossByRate({lr: sum(x) / len(x) for lr, x in each.items()}) for key, each in losses.items()}


def read() -> list[Gap]:
    """Every gap that was measured: at rates that fp32 ran at, and at the own best rates of both.

    Arms whose storage was not replayed are left out.
    """
    experiments, known, found = measured(), changes(), list[Gap]()
    by_rate = curves(experiments)

    def mean(losses: dict[int, float]) -> float:
        return sum(losses.values()) / len(losses)

    for key, runs in experiments.items():
        fp32 = {lr: losses for (arm, _, lr), losses in runs.items() if arm == "fp32"}
        best = min(fp32, key=lambda lr: mean(fp32[lr]))
        for arm, reset in dict.fromkeys((arm, reset) for arm, reset, _ in runs if (key, arm, reset) in known):
            mine = {lr: losses for (a, r, lr), losses in runs.items() if (a, r) == (arm, reset)}
            own = min(mine, key=lambda lr: mean(mine[lr]))
            pairs = [(lr, lr, False) for lr in mine if lr in fp32] + [(own, best, True)] * (len(mine) > 1)
            for lr, fp32_lr, tuned in pairs:
                interval = paired(mine[lr], fp32[fp32_lr])
                if interval is not None and interval.half is not None:
                    sides = known[key, arm, reset]
                    found.append(Gap(key, arm, reset, lr, fp32_lr, best, tuned, interval, *sides, by_rate[key]))
    return found


def fitted(gaps: Iterable[Gap], predictor: Predictor) -> float:
    """The number that fits gaps best, by least squares."""
    pairs = [(gap.measured.mean, *parts) for gap in gaps if (parts := predictor(gap)) is not None]
    found, offset, slope = (np.array(column) for column in zip(*pairs, strict=True))
    square = slope @ slope
    return float(slope @ (found - offset) / square) if square else 0.0


def at_one_rate(gaps: list[Gap]) -> list[Gap]:
    """The gaps at one rate, up to fp32's best one, of the earlier experiments: those that the number is fitted on."""
    return [gap for gap in gaps if not gap.tuned and gap.stable and not gap.later]


def left_out(gaps: list[Gap], predictor: Predictor) -> dict[Experiment, float]:
    """For every experiment, the number that fits all others."""
    some = at_one_rate(gaps)
    return {
        key: fitted([gap for gap in some if gap.key != key], predictor) for key in dict.fromkeys(g.key for g in gaps)
    }


def score(gaps: list[Gap], predictor: Predictor, fits: dict[Experiment, float]) -> str:
    """Mean error, rank correlation, and share within the intervals, as cells of a table."""
    found, predicted, half = [], [], []
    for gap in gaps:
        parts = predictor(gap)
        if parts is not None and gap.measured.half is not None:
            found.append(gap.measured.mean)
            predicted.append(parts[0] + fits[gap.key] * parts[1])
            half.append(gap.measured.half)
    error = np.abs(np.subtract(predicted, found))
    rank = spearmanr(predicted, found).statistic if len(set(predicted)) > 1 else math.nan
    within = np.mean(error <= half)
    return f"{len(found)} | {error.mean():.3f} | {'-' if math.isnan(rank) else f'{rank:.2f}'} | {within:.0%}"


def scores(gaps: list[Gap]) -> list[str]:
    """Errors of every predictor, as lines of a Markdown table."""
    groups = {
        "up to fp32's best lr": at_one_rate(gaps),
        "above it": [gap for gap in gaps if not gap.tuned and not gap.stable and not gap.later],
        "own best lr": [gap for gap in gaps if gap.tuned and not gap.later],
        "later, bf16": [gap for gap in gaps if gap.later and gap.key.format == "bf16"],
        "later, fp4": [gap for gap in gaps if gap.later and gap.key.format == "fp4"],
    }
    lines = [
        "| prediction from | at | gaps | mean error | rank correlation | within the interval |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, predictor in PREDICTORS.items():
        fits = left_out(gaps, predictor)
        lines += [f"| {name} | {group} | {score(chosen, predictor, fits)} |" for group, chosen in groups.items()]
    return lines


def predicted(gaps: list[Gap]) -> list[float]:
    """Every gap as predicted with the number that fits the other experiments."""
    fits = left_out(gaps, from_sample)
    return [offset + fits[gap.key] * slope for gap in gaps for offset, slope in [_parts(gap, gap.sample)]]


def table(gaps: list[Gap]) -> list[str]:
    """Predicted and measured gaps as lines of a Markdown table."""
    lines = [
        "| experiment | arm | reset every | lr | factor | residual | predicted | measured |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for gap, guess in zip(gaps, predicted(gaps), strict=True):
        if gap.lr != gap.fp32_lr or not gap.tuned:
            lr = f"{gap.lr:g}" if gap.lr == gap.fp32_lr else f"{gap.lr:g} (fp32: {gap.fp32_lr:g})"
            cells = (
                gap.title, gap.arm, gap.reset, lr, f"{gap.sample.factor:.2f}", f"{gap.sample.residual:.3f}",
                f"{guess:+.3f}", signed(gap.measured),
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(gaps: list[Gap], path: Path) -> None:
    """Measured by predicted gaps, below and above fp32's best rate, without those of fp4, which are far larger."""
    guesses = [(gap, x) for gap, x in zip(gaps, predicted(gaps), strict=True) if gap.key.format != "fp4"]
    panels = {
        "Up to fp32's best learning rate": [(gap, x) for gap, x in guesses if not gap.tuned and gap.stable],
        "Above it": [(gap, x) for gap, x in guesses if not gap.tuned and not gap.stable],
    }
    with canvas(path, 2, (12.5, 5.6)) as both:
        for axes, (title, chosen) in zip(both, panels.items(), strict=True):
            axes.plot((-0.1, 0.2), (-0.1, 0.2), color=COLOURS[32], linewidth=1, zorder=0)
            for at, fmt in enumerate(dict.fromkeys(gap.key.format for gap, _ in chosen)):
                mine = [(x, gap.measured) for gap, x in chosen if gap.key.format == fmt]
                colour = COLOURS[get_format(fmt).bits]
                axes.errorbar(
                    [x for x, _ in mine], [y.mean for _, y in mine], yerr=[y.half or 0.0 for _, y in mine], fmt="o",
                    color=colour, elinewidth=0.7, markersize=5,
                )  # fmt: skip
                axes.text(0.03, 0.97 - 0.06 * at, fmt, transform=axes.transAxes, color=colour, va="top")
            axes.set(xlim=(-0.06, 0.14), ylim=(-0.2, 0.2), xlabel="predicted gap, nats")
            axes.set_title(title, loc="left", fontweight="bold")
        both[0].set_ylabel("measured gap, nats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    gaps = read()
    fits = left_out(gaps, from_sample).values()
    whole = fitted(at_one_rate(gaps), from_sample)
    print(f"nats per unit of residual: {whole:.3f}; {min(fits):.3f} to {max(fits):.3f} without one experiment")
    print(*table(gaps), "", *scores(gaps), sep="\n")
    draw(gaps, given.picture)


if __name__ == "__main__":
    main()
