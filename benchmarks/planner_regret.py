"""What the planned reset periods lose in loss: the planner's regret, measured.

The scale model of fp8 at 1:8 (18 000 parameters, 2500 steps) is trained with resets of several periods and with none,
while the scale of the gradients is constant, falls tenfold, or jumps to a tenth halfway. Every arm runs with the same
seeds at three learning rates. Its own rate is the one with the least mean loss.

python benchmarks/planner_regret.py --run runs/regret   # 15 minutes of one core; goes on where it was stopped
python benchmarks/planner_regret.py                     # prints the tables, draws docs/images/planner_regret.png
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from halfulp.lab.canvas import COLOURS, canvas
from halfulp.lab.files import read_json, write_json
from halfulp.lab.results import Interval, paired
from halfulp.lab.scale import Job, ScaleConfig, train_job
from halfulp.lab.scale_arms import ARMS, period_of
from halfulp.lab.scale_report import signed
from halfulp.lab.text import load_corpus
from halfulp.lab.tokens import Tokens, prepare_tokens

DOCS = Path(__file__).parents[1] / "docs"
CSV = DOCS / "results" / "planner_regret.csv"
COLUMNS = ("regime", "arm", "reset_every", "lr", "seed", "loss")
RATES = {"constant": (1e-3, 2e-3, 4e-3), "falling": (2e-3, 4e-3, 8e-3), "jumping": (2e-3, 4e-3, 8e-3)}
PERIODS = {"constant": (30, 100, 300, 600, 1250), "falling": (30, 100, 300, 600), "jumping": (30, 600)}
"""Steps between two resets, the planned periods among them."""
SEEDS = (0, 1, 2, 3)
PLANS = {"total": "nearest + reset (total)", "residual": "nearest + reset"}
"""Criteria, and the arms that are planned by them."""


@dataclass(frozen=True)
class Arm:
    """An arm in a regime: its reset period, and its validation loss by learning rate and seed, infinite if diverged."""

    name: str
    period: int | None
    losses: dict[float, dict[int, float]]

    @property
    def best(self) -> float:
        """The rate with the least mean loss."""
        return min(self.losses, key=lambda lr: sum(self.losses[lr].values()) / len(self.losses[lr]))

    @property
    def own(self) -> dict[int, float]:
        """Loss of each seed at that rate."""
        return self.losses[self.best]


def config(regime: str) -> ScaleConfig:
    return ScaleConfig(format="fp8", factor=8, regime=regime, hidden=32, layers=1, heads=2, context=32)


def planned() -> dict[str, int | None]:
    """Period by criterion."""
    return {criterion: period_of(ARMS[arm], config("constant").model) for criterion, arm in PLANS.items()}


def jobs(regime: str) -> Iterator[Job]:
    for arm in ("fp32", "nearest", *(f"nearest + reset ({period})" for period in PERIODS[regime])):
        yield Job(arm, "own", RATES[regime], SEEDS)


def run(folder: Path) -> None:
    """Train what is missing; write the CSV."""
    torch.set_num_threads(1)
    tokens = folder / "tokens"
    if not (tokens / "tokens.json").exists():
        prepare_tokens(load_corpus(None), "bytes", 32, tokens)
    rows = []
    for regime in RATES:
        for job in jobs(regime):
            path = folder / f"{regime}-{job.name}"
            if not path.exists():
                part = path.with_suffix(".part")
                write_json(path, train_job(config(regime), job, Tokens(tokens, 32), part))
                part.unlink(missing_ok=True)
                print(path.name, flush=True)
            found = read_json(path)
            for (seed, lr), loss in zip(found["replicas"], found["validation"], strict=True):
                text = "" if loss is None else f"{loss:.5f}"
                rows.append((regime, job.arm, found["period"] or "", f"{lr:g}", seed, text))
    with CSV.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def read() -> dict[str, list[Arm]]:
    """Arms by regime."""
    found: dict[str, dict[str, Arm]] = {}
    with CSV.open(newline="") as file:
        for row in csv.DictReader(file):
            period = int(row["reset_every"]) if row["reset_every"] else None
            arm = found.setdefault(row["regime"], {}).setdefault(row["arm"], Arm(row["arm"], period, {}))
            arm.losses.setdefault(float(row["lr"]), {})[int(row["seed"])] = float(row["loss"] or math.inf)
    return {regime: list(arms.values()) for regime, arms in found.items()}


def gaps(arms: list[Arm], arm: Arm) -> tuple[Interval | None, Interval | None]:
    """Loss minus that of fp32 at its own rate, with the same seed: of the arm at its own rate, and at that of fp32."""
    fp32 = arms[0]
    return paired(arm.own, fp32.own), paired(arm.losses[fp32.best], fp32.own)


def table(arms: dict[str, list[Arm]]) -> list[str]:
    """Losses minus those of fp32 as lines of a Markdown table."""
    by = {period: name for name, period in planned().items()}
    lines = [
        f"| reset every | {' | '.join(f'{r}: best lr | at its best lr | at lr of fp32' for r in arms)} |",
        f"| --- |{' ---: |' * (3 * len(arms))}",
    ]
    for period in sorted({arm.period or math.inf for each in arms.values() for arm in each}):
        name = "never" if period == math.inf else f"{period} ({by[period]})" if period in by else str(period)
        cells = [name]
        for each in arms.values():
            found = [arm for arm in each[1:] if (arm.period or math.inf) == period]
            cells += [f"{found[0].best:g}", *map(signed, gaps(each, found[0]))] if found else ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def regrets(arms: list[Arm]) -> Iterator[str]:
    """Loss of each plan minus that of the best period, and of one plan minus the other."""
    plans = {**planned(), "never": None}
    for where in ("at its best lr", "at lr of fp32"):
        losses = {arm.period: arm.own if where == "at its best lr" else arm.losses[arms[0].best] for arm in arms[1:]}
        best = min(losses, key=lambda period: sum(losses[period].values()) / len(losses[period]))
        parts = [f"{name} {signed(paired(losses[period], losses[best]))}" for name, period in plans.items()]
        yield (
            f"{where}: above the best period ({best or 'never'}): {', '.join(parts)}; residual minus total "
            f"{signed(paired(losses[plans['residual']], losses[plans['total']]))}"
        )


def draw(arms: dict[str, list[Arm]], path: Path) -> None:
    """Loss by reset period with 95 % intervals, a panel a regime, at the own rate and at that of fp32."""
    never = 3500.0
    titles = {"constant": "Constant gradient scale", "falling": "Falling tenfold", "jumping": "Jumping to a tenth"}
    with canvas(path, len(arms), (13.5, 4.4)) as panels:
        for axes, (regime, each) in zip(panels, arms.items(), strict=True):
            axes.axhline(0, color=COLOURS[32], linewidth=1, zorder=0)
            for name, period in planned().items():
                assert period is not None
                axes.axvline(period, color="#444", linewidth=1, linestyle=":", zorder=0)
                axes.text(period * 1.05, 0.985, name, transform=axes.get_xaxis_transform(), va="top", color="#444")
            for at, (colour, shift) in enumerate(((COLOURS[8], 0.98), (COLOURS[16], 1.02))):
                points = sorted(((arm.period or never) * shift, gaps(each, arm)[at]) for arm in each[1:])
                places, found = [x for x, _ in points], [gap for _, gap in points if gap is not None]
                axes.errorbar(
                    places, [gap.mean for gap in found], yerr=[gap.half for gap in found], fmt="o-", color=colour,
                    capsize=3, linewidth=1.4, markersize=5, markerfacecolor=colour if at == 0 else "white",
                )  # fmt: skip
            axes.set(xscale="log", xlabel="reset period in steps", xlim=(23, 4600), ylim=(-0.17, 0.2))
            axes.set_xticks([30, 100, 300, 1000, never], ["30", "100", "300", "1000", "never"])
            axes.set_xticks([], minor=True)
            axes.set_title(titles[regime], loc="left", fontweight="bold")
        panels[0].set_ylabel("loss minus loss with fp32 states, nats")
        keys = (("at its own learning rate", COLOURS[8], 0.14), ("at that of fp32", COLOURS[16], 0.07))
        for words, colour, height in keys:
            panels[0].text(0.97, height, words, transform=panels[0].transAxes, ha="right", color=colour)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of the results; trains what is missing in it")
    parser.add_argument("--picture", type=Path, default=DOCS / "images" / "planner_regret.png")
    given = parser.parse_args()
    if given.run is not None:
        run(given.run)
        return
    arms = read()
    print("\n".join(table(arms)))
    for regime, each in arms.items():
        print("\n".join(f"{regime}, {line}" for line in regrets(each)))
    draw(arms, given.picture)


if __name__ == "__main__":
    main()
