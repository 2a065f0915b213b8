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
from halfulp.lab.scale import ScaleConfig
from halfulp.lab.scale_report import PUBLISHED, signed

CSV = Path(__file__).parents[1] / "docs" / "results" / "scale_models.csv"
EXPERIMENT = ("format", "factor", "regime", "architecture", "text")
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
    for path in sorted(p for stage in ("ladder", "own", "common") for p in folder.glob(f"{stage}-*.json")):
        result = read_json(path)
        each = zip(result["replicas"], result["validation"], result["rows"][-1]["stalled"], strict=True)
        for (seed, lr), loss, stalled in each:
            values = (
                config.format, config.factor, config.regime, config.architecture, text, result["arm"],
                result["stage"], result["period"] or "", seed, f"{lr:g}", "" if loss is None else f"{loss:.5f}",
                f"{stalled:.4f}",
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


def table(rows: list[Row]) -> list[str]:
    """One experiment as lines of a Markdown table."""
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["stage"] == "own" and row["arm"] != "fp32"))
    base = [row for row in rows if (row["arm"], row["stage"]) == ("fp32", "own")]
    rate = base[0]["lr"]
    lines = [
        f"| {title(rows[0])} | reset every | rate | at its own rate | at fp32's, {rate} | stalled | published |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm in arms:
        own = [row for row in rows if (row["arm"], row["stage"]) == (arm, "own")]
        other = gap(rows, arm, "own" if own[0]["lr"] == base[0]["lr"] else "common")
        known = PUBLISHED[rows[0]["format"]].get("nearest + reset (published)" if arm == "nearest + reset" else arm)
        stalled = sum(float(row["stalled"]) for row in own) / len(own)
        lines.append(
            f"| {arm} | {own[0]['reset_every']} | {own[0]['lr']} | {signed(gap(rows, arm, 'own'))} | {signed(other)} | "
            f"{stalled:.1%} | {'' if known is None else f'{known:+.3f}'} |"
        )
    return lines


def title(row: Row) -> str:
    """What was modelled."""
    parts = [f"{row['format']} at 1:{row['factor']}", *(row[k] for k in ("regime", "architecture", "text"))]
    return ", ".join(part for part in parts if part not in ("constant", "llama", "stdlib"))


def tables(rows: list[Row]) -> list[str]:
    """All experiments, an empty line between two."""
    keys = list(dict.fromkeys(tuple(row[k] for k in EXPERIMENT) for row in rows))
    found = [table([row for row in rows if tuple(row[k] for k in EXPERIMENT) == key]) for key in keys]
    return [line for one in found for line in (*one, "")]


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
