"""Every run of `halfulp compare --scale-model` as CSV, and the tables of docs/lab.md from it.

halfulp compare --scale-model 8 --out runs/bf16
python benchmarks/scale_models.py runs/bf16          # adds the runs to docs/results/scale_models.csv
python benchmarks/scale_models.py                    # prints the tables
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from halfulp.lab.files import read_json
from halfulp.lab.results import Interval
from halfulp.lab.scale import Job, ScaleConfig
from halfulp.lab.scale_report import PUBLISHED, signed

CSV = Path(__file__).parents[1] / "docs" / "results" / "scale_models.csv"
EXPERIMENT = ("format", "factor", "regime", "architecture", "width", "text")
COLUMNS = (*EXPERIMENT, "arm", "stage", "reset_every", "seed", "lr", "loss", "stalled")
Row = dict[str, str]


def read(path: Path = CSV) -> list[Row]:
    """Rows of the CSV file; none if it is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def runs(folder: Path, text: str) -> list[Row]:
    """Every run of a folder: the ladder's, and the final ones."""
    config = ScaleConfig.from_json(read_json(folder / "config.json"))
    found = []
    files = [folder / Job(arm, stage, (), ()).name for arm in config.arms for stage in ("ladder", "own", "common")]
    for path in filter(Path.exists, files):
        result = read_json(path)
        each = zip(result["replicas"], result["validation"], result["rows"][-1]["stalled"], strict=True)
        for (seed, lr), loss, stalled in each:
            values = (
                config.format, config.factor, config.regime, config.architecture, config.hidden, text,
                result["arm"], result["stage"], result["period"] or "", seed, f"{lr:g}",
                "" if loss is None else f"{loss:.5f}", f"{stalled:.4f}",
            )  # fmt: skip
            found.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return found


def gap(rows: list[Row], arm: str, stage: str) -> Interval | None:
    """Loss of an arm less fp32's with the same seed, over the seeds that both have."""
    losses = [
        {row["seed"]: float(row["loss"]) for row in rows if (row["arm"], row["stage"]) == key and row["loss"]}
        for key in ((arm, stage), ("fp32", "own"))
    ]
    return Interval.of([losses[0][seed] - losses[1][seed] for seed in losses[0] if seed in losses[1]])


def by_rate(rows: list[Row]) -> list[str]:
    """Validation loss of the ladders by peak rate as lines of a Markdown table."""
    climbed = [row for row in rows if row["stage"] == "ladder"]
    rates = sorted({float(row["lr"]) for row in climbed})
    lines = [
        f"| {title(rows[0])} | reset every | {' | '.join(f'{rate:g}' for rate in rates)} |",
        f"| --- | ---: |{' ---: |' * len(rates)}",
    ]
    for arm in dict.fromkeys(row["arm"] for row in climbed):
        mine = [row for row in climbed if row["arm"] == arm]
        losses = [[row["loss"] for row in mine if float(row["lr"]) == rate] for rate in rates]
        cells = ["diverged" if "" in each else f"{sum(map(float, each)) / len(each):.3f}" for each in losses if each]
        lines.append(f"| {arm} | {mine[0]['reset_every']} | {' | '.join(cells)} |")
    return lines


def differences(rows: list[Row]) -> list[str]:
    """Losses less fp32's of one experiment as lines of a Markdown table."""
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["stage"] == "own" and row["arm"] != "fp32"))
    base = [row for row in rows if (row["arm"], row["stage"]) == ("fp32", "own")]
    rate = base[0]["lr"]
    columns = ("seeds", "reset every", "rate", "at its own rate", f"at fp32's, {rate}", "stalled", "published")
    lines = [
        f"| {' | '.join((title(rows[0]), *columns))} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm in arms:
        own = [row for row in rows if (row["arm"], row["stage"]) == (arm, "own")]
        other = gap(rows, arm, "own" if own[0]["lr"] == base[0]["lr"] else "common")
        known = PUBLISHED[rows[0]["format"]].get("nearest + reset (published)" if arm == "nearest + reset" else arm)
        stalled = sum(float(row["stalled"]) for row in own) / len(own)
        cells = (
            arm, str(len(own)), own[0]["reset_every"], own[0]["lr"], signed(gap(rows, arm, "own")), signed(other),
            f"{stalled:.1%}", "" if known is None else f"{known:+.3f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def title(row: Row) -> str:
    """What was modelled."""
    parts = [row["regime"], row["architecture"], f"{row['width']} wide", row["text"]]
    usual = ("constant", "llama", "64 wide", "stdlib")
    return ", ".join([f"{row['format']} at 1:{row['factor']}", *(part for part in parts if part not in usual)])


def tables(rows: list[Row]) -> list[str]:
    """All experiments: differences where the final runs are done, and ladders where there are any."""
    keys = list(dict.fromkeys(tuple(row[k] for k in EXPERIMENT) for row in rows))
    lines = []
    for key in keys:
        mine = [row for row in rows if tuple(row[k] for k in EXPERIMENT) == key]
        stages = {row["stage"] for row in mine if row["arm"] != "fp32"}
        for stage, make in (("own", differences), ("ladder", by_rate)):
            lines += [*make(mine), ""] if stage in stages else []
    return lines


def main() -> None:
    """Add run folders to the CSV file; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="run folders")
    parser.add_argument("--text", default="stdlib", help="name of the text that they were trained on")
    arguments = parser.parse_args()
    rows = read()
    for folder in arguments.folders:
        new = runs(folder, arguments.text)
        rows = [row for row in rows if any(row[k] != new[0][k] for k in EXPERIMENT)] + new
    if arguments.folders:
        with CSV.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print("\n".join(tables(rows)))


if __name__ == "__main__":
    main()
