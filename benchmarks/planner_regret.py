"""What the planned reset periods lose in loss: the planner's regret, measured.

Scale models of 18 000 parameters (fp8 at 1:8 over 2500 steps, fp4 at 1:2 over 5000) are trained with resets of several
periods and with none, while the scale of the gradients is constant, falls tenfold, or jumps to a tenth. Every arm runs
with the same seeds at two or three learning rates. Its own rate is the one with the least mean loss.

python benchmarks/planner_regret.py --run runs/regret   # 1.5 h of one core; goes on where it was stopped
python benchmarks/planner_regret.py                     # prints the tables, draws docs/images/planner_regret.png
"""

from __future__ import annotations

import argparse
import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from halfulp.lab.figure import COLOURS, canvas
from halfulp.lab.files import read_json, write_json
from halfulp.lab.results import Interval
from halfulp.lab.scale import Job, ScaleConfig, train_job
from halfulp.lab.scale_arms import ARMS, period_of
from halfulp.lab.scale_report import paired, signed
from halfulp.lab.text import load_corpus
from halfulp.lab.tokens import Tokens, prepare_tokens

DOCS = Path(__file__).parents[1] / "docs"
CSV = DOCS / "results" / "planner_regret.csv"
COLUMNS = ("format", "regime", "arm", "reset_every", "lr", "seed", "loss")
REGIMES = ("constant", "falling", "jumping")
FACTORS = {"fp8": 8, "fp4": 2}
RATES = {
    ("fp8", "constant"): (1e-3, 2e-3, 4e-3),
    ("fp8", "falling"): (2e-3, 4e-3, 8e-3),
    ("fp8", "jumping"): (2e-3, 4e-3, 8e-3),
    ("fp4", "constant"): (1e-3, 2e-3),
}
"""Experiments, and the learning rates of each."""
PERIODS = {"fp8": (30, 600, 100, 300, 1250, 38), "fp4": (76, 2502)}
"""Steps of the model between two resets, the planned periods among them."""
SEEDS, AT_ONCE = 8, 4
PLANS = {
    "total": "nearest + reset (total)",
    "residual": "nearest + reset",
    "published": "nearest + reset (published)",
}
"""How a period is chosen, and the arm that is planned so."""
Losses = dict[float, dict[int, float]]
"""Validation loss by learning rate and seed; infinite where a run diverged."""


@dataclass(frozen=True)
class Task:
    """One file of results: an arm in a regime, at every rate, with some of the seeds."""

    fmt: str
    regime: str
    job: Job

    @property
    def file(self) -> str:
        """Its name."""
        return f"{self.fmt}-{self.regime}-{self.job.name}"


def config(fmt: str, regime: str = "constant") -> ScaleConfig:
    """The experiment; a run of fp4 is half as long as the others, in windows."""
    return ScaleConfig(
        format=fmt, factor=FACTORS[fmt], steps=10_000 if fmt == "fp4" else 20_000, regime=regime, hidden=32, layers=1,
        heads=2, context=32,
    )  # fmt: skip


def planned(fmt: str) -> dict[str, int]:
    """Periods of :data:`PLANS`."""
    found = {name: period_of(ARMS[arm], config(fmt).model) for name, arm in PLANS.items()}
    return {name: period for name, period in found.items() if period is not None}


def tasks() -> Iterator[Task]:
    """Every task, the first seeds of all first."""
    for first in range(0, SEEDS, AT_ONCE):
        seeds = tuple(range(first, first + AT_ONCE))
        for (fmt, regime), rates in RATES.items():
            arms = ["fp32", "nearest", *(f"nearest + reset ({n})" for n in PERIODS[fmt])]
            if (fmt, regime) == ("fp8", "constant"):
                arms += ["nearest + reset (embedding spared)", "stochastic"]
            yield from (Task(fmt, regime, Job(arm, f"seed{first}", rates, seeds)) for arm in arms)


def run(folder: Path) -> None:
    """Train what is missing; write the CSV."""
    torch.set_num_threads(1)
    tokens = folder / "tokens"
    if not (tokens / "tokens.json").exists():
        prepare_tokens(load_corpus(None), "bytes", 32, tokens)
    for task in tasks():
        path = folder / task.file
        if not path.exists():
            part = path.with_suffix(".part")
            write_json(path, train_job(config(task.fmt, task.regime), task.job, Tokens(tokens, 32), part))
            part.unlink(missing_ok=True)
            print(task.file, flush=True)
    write(folder)


def write(folder: Path) -> None:
    """Write the CSV from the results that there are."""
    rows = []
    for task in tasks():
        path = folder / task.file
        found = read_json(path) if path.exists() else {"replicas": [], "validation": []}
        for (seed, lr), loss in zip(found["replicas"], found["validation"], strict=True):
            text = "" if loss is None else f"{loss:.5f}"
            rows.append((task.fmt, task.regime, task.job.arm, found["period"] or "", f"{lr:g}", seed, text))
    with CSV.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(COLUMNS)
        out.writerows(sorted(rows, key=lambda row: [REGIMES.index(x) if x in REGIMES else x for x in row[:2]]))


@dataclass(frozen=True)
class Arm:
    """An arm in a regime."""

    name: str
    period: int | None
    losses: Losses

    @property
    def best(self) -> float:
        """The rate with the least mean loss."""
        return min(self.losses, key=lambda lr: sum(self.losses[lr].values()) / len(self.losses[lr]))

    @property
    def own(self) -> dict[int, float]:
        """Loss of each seed at that rate."""
        return self.losses[self.best]


def read() -> dict[tuple[str, str], list[Arm]]:
    """Arms by format and regime."""
    found: dict[tuple[str, str], dict[tuple[str, int | None], Losses]] = {}
    with CSV.open(newline="") as file:
        for row in csv.DictReader(file):
            period = int(row["reset_every"]) if row["reset_every"] else None
            losses = found.setdefault((row["format"], row["regime"]), {}).setdefault((row["arm"], period), {})
            losses.setdefault(float(row["lr"]), {})[int(row["seed"])] = float(row["loss"] or math.inf)
    return {key: [Arm(*name, losses) for name, losses in arms.items()] for key, arms in found.items()}


def gaps(
    arms: dict[tuple[str, str], list[Arm]], arm: Arm, fmt: str, regime: str
) -> tuple[Interval | None, Interval | None]:
    """Loss minus fp32's at its own rate, over paired seeds: of the arm at its own rate, and at fp32's."""
    (fp32,) = [each for each in arms[fmt, regime] if each.name == "fp32"]
    return paired(arm.own, fp32.own), paired(arm.losses[fp32.best], fp32.own)


def label(name: str, period: int | None, plans: dict[str, int]) -> str:
    """What an arm is called in a table: its period and who plans it."""
    if name == "stochastic":
        return "stochastic"
    if period is None:
        return "never"
    notes = [plan for plan, planned in plans.items() if planned == period and "spared" not in name]
    if "spared" in name:
        notes.append("embedding spared")
    return f"{period} ({', '.join(notes)})" if notes else str(period)


def table(arms: dict[tuple[str, str], list[Arm]], fmt: str) -> list[str]:
    """Losses minus fp32's by period and regime as lines of a Markdown table."""
    plans = planned(fmt)
    regimes = [regime for name, regime in arms if name == fmt]
    lines = [
        f"| {fmt}, reset every | {' | '.join(f'{r}: best lr | at its best lr | at lr of fp32' for r in regimes)} |",
        f"| --- |{' ---: |' * (3 * len(regimes))}",
    ]
    rows = {(a.name, a.period) for r in regimes for a in arms[fmt, r] if a.name != "fp32"}
    for name, period in sorted(rows, key=lambda row: (not row[0].endswith(")"), row[1] or math.inf, row[0])):
        cells = []
        for regime in regimes:
            found = [a for a in arms[fmt, regime] if (a.name, a.period) == (name, period)]
            cells += [f"{found[0].best:g}", *map(signed, gaps(arms, found[0], fmt, regime))] if found else ["", "", ""]
        lines.append(f"| {label(name, period, plans)} | {' | '.join(cells)} |")
    return lines


def curve(arms: dict[tuple[str, str], list[Arm]], fmt: str, regime: str) -> dict[int | None, Arm]:
    """The arms that differ in their period only."""
    return {a.period: a for a in arms[fmt, regime] if re.fullmatch(r"nearest( \+ reset \(\d+\))?", a.name)}


def regrets(arms: dict[tuple[str, str], list[Arm]], fmt: str, regime: str) -> Iterator[str]:
    """Loss of each planned period minus that of the best period, and of the planned ones minus one another."""
    tried, plans = curve(arms, fmt, regime), {**planned(fmt), "never": None}
    rate = next(arm.best for arm in arms[fmt, regime] if arm.name == "fp32")
    for where in ("at its best lr", "at lr of fp32"):
        losses = {k: arm.own if where == "at its best lr" else arm.losses[rate] for k, arm in tried.items()}
        best = min(losses, key=lambda period: sum(losses[period].values()) / len(losses[period]))
        parts = [f"{k} {signed(paired(losses[v], losses[best]))}" for k, v in plans.items() if v in losses]
        yield (
            f"{fmt}, {regime}, {where}: loss above that of the best period ({best or 'never'}): {', '.join(parts)}; "
            f"residual minus total {signed(paired(losses[plans['residual']], losses[plans['total']]))}"
        )


def draw(arms: dict[tuple[str, str], list[Arm]], path: Path) -> None:
    """Loss by reset period with 95 % intervals, a panel a regime, at the own rate and at that of fp32."""
    never, plans = 3500.0, planned("fp8")
    titles = {"constant": "Constant gradient scale", "falling": "Falling tenfold", "jumping": "Jumping to a tenth"}
    with canvas(path, len(REGIMES), (13.5, 4.4)) as panels:
        for axes, regime in zip(panels, REGIMES, strict=True):
            if axes is not panels[0]:
                axes.sharey(panels[0])
            axes.axhline(0, color=COLOURS[32], linewidth=1, zorder=0)
            for name, period in plans.items():
                if name != "published":
                    axes.axvline(period, color="#444", linewidth=1, linestyle=":", zorder=0)
                    axes.text(period * 1.05, 0.985, name, transform=axes.get_xaxis_transform(), va="top", color="#444")
            for at, (colour, shift) in enumerate(((COLOURS[8], 0.98), (COLOURS[16], 1.02))):
                points = [
                    ((period or never) * shift, gap)
                    for period, arm in curve(arms, "fp8", regime).items()
                    if (gap := gaps(arms, arm, "fp8", regime)[at]) is not None
                ]
                points.sort()
                places, means = [x for x, _ in points], [gap.mean for _, gap in points]
                axes.errorbar(
                    places, means, yerr=[gap.half for _, gap in points], fmt="o-", color=colour, capsize=3,
                    linewidth=1.4, markersize=5, markerfacecolor=colour if at == 0 else "white",
                )  # fmt: skip
            axes.set(xscale="log", xlabel="reset period in steps", xlim=(23, 4600))
            axes.set_xticks([30, 100, 300, 1000, never], ["30", "100", "300", "1000", "never"])
            axes.set_xticks([], minor=True)
            axes.set_title(titles[regime], loc="left", fontweight="bold")
        panels[0].set_ylabel("loss minus loss with fp32 states, nats")
        panels[0].text(
            0.97, 0.9, "at its own learning rate", transform=panels[0].transAxes, ha="right", color=COLOURS[8]
        )
        panels[0].text(0.97, 0.83, "at fp32's", transform=panels[0].transAxes, ha="right", color=COLOURS[16])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of the results; trains what is missing in it")
    parser.add_argument("--picture", type=Path, default=DOCS / "images" / "planner_regret.png")
    given = parser.parse_args()
    if given.run is not None:
        run(given.run)
        return
    arms = read()
    for fmt in PERIODS:
        print("\n".join([*table(arms, fmt), ""]))
    for fmt, regime in arms:
        print("\n".join(regrets(arms, fmt, regime)))
    draw(arms, given.picture)


if __name__ == "__main__":
    main()
