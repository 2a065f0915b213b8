"""Collect the runs of `halfulp compare --scale-model` in a CSV, and print the tables of docs/results/scale_models.md.

halfulp compare --scale-model 8 --out runs/bf16
python benchmarks/scale_models.py runs/bf16          # adds the runs to docs/results/scale_models.csv
python benchmarks/scale_models.py                    # prints the tables
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

from halfulp.lab.files import read_config, read_json
from halfulp.lab.results import Interval
from halfulp.lab.scale import Job, ScaleConfig
from halfulp.lab.scale_report import PUBLISHED, signed

CSV = Path(__file__).parents[1] / "docs" / "results" / "scale_models.csv"
Row = dict[str, str]


class Experiment(NamedTuple):
    """What was modelled: the columns that tell experiments apart, and their usual values."""

    format: str = "bf16"
    factor: str = "8"
    beta2: str = "0.999"
    steps: str = "20000"
    regime: str = "constant"
    architecture: str = "llama"
    width: str = "64"
    text: str = "stdlib"

    @staticmethod
    def of(row: Row) -> Experiment:
        """Return the experiment of a row."""
        return Experiment(*(row[k] for k in Experiment._fields))

    @property
    def title(self) -> str:
        """What is not usual."""
        words = {"beta2": f"beta2 {self.beta2}", "steps": f"{self.steps} steps", "width": f"{self.width} wide"}
        unusual = [k for k in self._fields[2:] if getattr(self, k) != self._field_defaults[k]]
        return ", ".join([f"{self.format} at 1:{self.factor}", *(words.get(k, getattr(self, k)) for k in unusual)])


COLUMNS = (*Experiment._fields, "arm", "stage", "reset_every", "seed", "lr", "loss", "stalled")


def read(path: Path = CSV) -> list[Row]:
    """Return the rows of the CSV file; none if it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def runs(folder: Path, text: str, single: str) -> list[Row]:
    """Return every run of a folder, from the ladder and the final stage.

    Final runs of a folder with a single rate are not tuned, so their stage is `single`.
    """
    config = read_config(folder / "config.json", ScaleConfig)
    found = []
    files = [folder / Job(arm, stage, (), ()).name for arm in config.arms for stage in ("ladder", "own", "common")]
    for path in filter(Path.exists, files):
        result = read_json(path)
        stage = single if len(config.lrs) == 1 else result["stage"]
        late = result["rows"][len(result["rows"]) // 2 :]
        means = [sum(each) / len(late) for each in zip(*(row["stalled"] for row in late), strict=True)]
        each = zip(result["replicas"], result["validation"], means, strict=True)
        for (seed, lr), loss, stalled in each:
            values = (
                config.format, config.factor, config.betas[1], config.steps, config.regime, config.architecture,
                config.hidden, text,
                result["arm"], stage, result["period"] or "", seed, f"{lr:g}",
                "" if loss is None else f"{loss:.5f}", f"{stalled:.4f}",
            )  # fmt: skip
            found.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return found


def gap(rows: list[Row], arm: str, stage: str) -> Interval | None:
    """Return the loss of an arm minus fp32's with the same seed, over the seeds that both have.

    At its own rate an arm is compared with fp32 at fp32's best rate, otherwise with fp32 at the same rate.
    """
    mine = final(rows, arm, stage)
    base = final(rows, "fp32", "own") or final(rows, "fp32", "common")
    losses = {row["seed"]: float(row["loss"]) for row in base if row["loss"]}
    same = stage == "own" or not mine or mine[0]["lr"] == base[0]["lr"]
    pairs = [(float(row["loss"]), losses[row["seed"]]) for row in mine if row["loss"] and row["seed"] in losses]
    return Interval.of([x - y for x, y in pairs]) if same else None


def final(rows: list[Row], arm: str, stage: str) -> list[Row]:
    """Return the final runs of an arm, at its own rate or at fp32's."""
    return [row for row in rows if (row["arm"], row["stage"]) == (arm, stage)]


def by_rate(rows: list[Row]) -> list[str]:
    """Return the ladders' validation loss by peak rate, as lines of a Markdown table."""
    climbed = [row for row in rows if row["stage"] == "ladder"]
    rates = sorted({float(row["lr"]) for row in climbed})
    lines = [
        f"| {Experiment.of(rows[0]).title} | reset every | {' | '.join(f'{rate:g}' for rate in rates)} |",
        f"| --- | ---: |{' ---: |' * len(rates)}",
    ]
    for arm in dict.fromkeys(row["arm"] for row in climbed):
        mine = [row for row in climbed if row["arm"] == arm]
        losses = [[row["loss"] for row in mine if float(row["lr"]) == rate] for rate in rates]
        cells = ["diverged" if "" in each else f"{sum(map(float, each)) / len(each):.3f}" for each in losses if each]
        lines.append(f"| {arm} | {mine[0]['reset_every']} | {' | '.join(cells)} |")
    return lines


def differences(rows: list[Row]) -> list[str]:
    """Return the losses minus fp32's in one experiment, as lines of a Markdown table."""
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["stage"] in ("own", "common") and row["arm"] != "fp32"))
    rate = (final(rows, "fp32", "own") or final(rows, "fp32", "common"))[0]["lr"]
    what = Experiment.of(rows[0])
    common = f"at fp32's best lr, {rate}" if final(rows, "fp32", "own") else f"at lr {rate}"
    gaps = ("at its best lr", common)
    columns = ("seeds", "reset every", "best lr", *gaps, "stalled", "published")
    lines = [
        f"| {' | '.join((what.title, *columns))} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm in arms:
        own, common = final(rows, arm, "own"), final(rows, arm, "common")
        tuned = own[0]["lr"] if own else "-"
        other = gap(rows, arm, "own" if tuned == rate else "common")
        planned = arm in ("nearest + reset", "nearest + reset (total)")
        known = PUBLISHED[what.format].get("nearest + reset (published)" if planned else arm)
        some = own or common
        stalled = sum(float(row["stalled"]) for row in some) / len(some)
        cells = (
            arm, str(len(some)), some[0]["reset_every"], tuned, signed(gap(rows, arm, "own")), signed(other),
            f"{stalled:.1%}", "" if known is None or what.beta2 != "0.999" else f"{known:+.3f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def tables(rows: list[Row]) -> list[str]:
    """Return the tables of all experiments: differences if the final runs are done, and ladders if there are any."""
    lines = []
    for key in dict.fromkeys(map(Experiment.of, rows)):
        mine = [row for row in rows if Experiment.of(row) == key]
        stages = {row["stage"] for row in mine if row["arm"] != "fp32"}
        lines += [*differences(mine), ""] if stages & {"own", "common"} else []
        lines += [*by_rate(mine), ""] if "ladder" in stages else []
    return lines


def merged(rows: list[Row], new: list[Row]) -> list[Row]:
    """Replace the rows of the same experiment, arm and stage (and learning rate, if between) by those of a folder.

    Runs at a common rate that equals the arm's own are not listed twice.
    """

    def at(row: Row, *columns: str) -> tuple[str, ...]:
        return (*Experiment.of(row), *(row[k] for k in columns))

    def place(row: Row) -> tuple[str, ...]:
        return at(row, "arm", "stage", *(["lr"] if row["stage"] == "between" else []))

    again = set(map(place, new))
    both = [row for row in rows if place(row) not in again] + new
    tuned = {at(row, "arm", "lr") for row in both if row["stage"] == "own"}
    both = [row for row in both if row["stage"] != "common" or at(row, "arm", "lr") not in tuned]
    experiments = list(dict.fromkeys(map(Experiment.of, [*rows, *new])))
    arms = list(dict.fromkeys(at(row, "arm") for row in [*rows, *new]))
    return sorted(both, key=lambda row: (experiments.index(Experiment.of(row)), arms.index(at(row, "arm"))))


def main() -> None:
    """Add run folders to the CSV file, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="run folders")
    parser.add_argument("--text", default="stdlib", help="name of the text that they were trained on")
    parser.add_argument(
        "--stage", default="common", help="stage of runs at a single rate; runs at 'between' are left out of the tables"
    )
    arguments = parser.parse_args()
    rows = read()
    for folder in arguments.folders:
        rows = merged(rows, runs(folder, arguments.text, arguments.stage))
    if arguments.folders:
        with CSV.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print("\n".join(tables(rows)))


if __name__ == "__main__":
    main()
