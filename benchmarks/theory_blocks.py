"""States in blocks: the predicted law against simulations with the library's quantizers, and the choice of scale.

The prediction (:mod:`halfulp.theory.blocks`) uses its own ensembles. The simulation (:mod:`halfulp.theory.simulation`)
stores tensors with the library's codes and scales. Gradients, their sizes and random words are drawn independently.
Each side uses as many blocks as its standard errors need to be below ``--precision`` (up to 8192). At some ages the
script prints the stalled fraction of values, the lag and the share of zeros: predicted, simulated, difference, and the
standard error of the difference. For the whole table ``--out`` it prints the worst difference, the statistics of the
differences over their standard errors (root mean square 1 and mean 0 if both follow the same law), and those beyond
0.02. Cells that the table has up to their last age are not run again, so an interrupted run can be resumed.

``--scales`` prints the cost of a kind of scale instead: error of Adam's update (:mod:`halfulp.theory.cost`) averaged
over a run without resets, lag at its end, and share of zeros.

Usage: python benchmarks/theory_blocks.py [--scales] [--betas 0.99 0.999] [--random 20] [--out table.csv]
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import random
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from halfulp import Quantizer, Scaling, get_format
from halfulp.rules.drives import GRADIENT, SQUARE
from halfulp.theory.blocks import Blocks, block_law
from halfulp.theory.cost import cycle_cost, squared_error, update_parts
from halfulp.theory.simulation import simulate_blocks

SECOND = (
    "float8_e4m3fn", "float8_e5m2", "ufloat8_e5m3", "ufloat8_e4m4", "ufloat4_e2m2", "ufloat4_e3m1", "ufloat4_e4m0",
    "uint4", "udynamic8", "ulinear8",
)  # fmt: skip
FIRST = ("float8_e4m3fn", "float8_e3m4", "float8_e5m2", "float4_e2m1fn", "int4", "dynamic8", "linear8")
ROUNDINGS = ("nearest", "stochastic")
KINDS = ("pow2", "fp32")
SPREADS = (0.0, 1.0)
AGES = (1, 3, 10, 30, 100, 300, 1000)


@dataclass(frozen=True)
class Cell:
    """One storage of one state."""

    format: str
    slot: str
    scale: str
    rounding: str
    spread: float
    beta: float


FIGURES = ("stalled", "lag", "zeros")
HEADER = [f.name for f in fields(Cell)] + ["age", "blocks", "blocks_simulated"]
HEADER += [f"{n}{suffix}" for n in FIGURES for suffix in ("", "_error", "_simulated", "_simulated_error")]
Table = dict[Cell, list[dict[str, str]]]
"""Rows of each cell by age, as in the file."""


def read(path: Path | None) -> Table:
    """Read the existing table."""
    table: Table = {}
    if path and path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                text = [row[f.name] for f in fields(Cell)]
                table.setdefault(Cell(*text[:4], float(text[4]), float(text[5])), []).append(row)
    return table


def write(path: Path, table: Table) -> None:
    """Replace the table file by a longer one. An interrupted run leaves the previous file."""
    new = path.with_suffix(".new")
    with new.open("w", newline="") as file:
        out = csv.DictWriter(file, HEADER, lineterminator="\n")
        out.writeheader()
        for cell in sorted(table, key=astuple):
            out.writerows(table[cell])
    new.replace(path)


def measure(cell: Cell, steps: int, precision: float, most: int, seed: int) -> list[dict[str, str]]:
    """Return predicted and simulated values of a cell, with their standard errors, at some ages."""
    square = cell.slot == "exp_avg_sq"
    drive = SQUARE if square else GRADIENT
    blocks = Blocks(get_format(cell.format), cell.beta, cell.rounding, drive, cell.scale, 128, cell.spread, square)
    law = block_law(blocks, steps, precision=precision, seed=seed)
    quantizer = Quantizer(get_format(cell.format), Scaling(cell.scale), cell.rounding, square)  # type: ignore[arg-type]
    mean, error, count = simulate_blocks(
        quantizer, beta=cell.beta, steps=steps, slot=cell.slot, spread=cell.spread,
        precision=precision, most=most, seed=seed,
    )  # fmt: skip
    rows = []
    for age in sorted({a for a in AGES if a < steps} | {steps}):
        numbers = []
        for i, name in enumerate(FIGURES):
            mine = float(law.moment(name)[age])
            mine = max(mine, math.log(1e-6)) if name == "lag" else mine
            numbers += [mine, law.error(name)[age], mean[age - 1, i], error[age - 1, i]]
        values = [*astuple(cell), age, law.paths, count, *(round(float(x), 5) for x in numbers)]
        rows.append({name: str(x) for name, x in zip(HEADER, values, strict=True)})
    return rows


def difference(row: dict[str, str], name: str) -> tuple[float, float]:
    """Return predicted minus simulated, and its standard error."""
    mine, sure, theirs, about = (
        float(row[f"{name}{suffix}"]) for suffix in ("", "_error", "_simulated", "_simulated_error")
    )
    return mine - theirs, math.hypot(sure, about)


def compare(cells: list[Cell], longest: int, precision: float, most: int, out: Path | None, seed: int) -> None:
    """Print and store the results of every cell that the table does not have at its last age."""
    table = read(out)
    print(f"{'format':14} {'slot':10} {'scale':5} {'rounding':10} {'spread':>6} {'beta':>6} {'age':>5}  " +
          "  ".join(f"{n:>7} simul. off/error" for n in FIGURES))  # fmt: skip
    for number, cell in enumerate(cells, 4096 * seed):
        steps = min(round(3 / (1 - cell.beta)), longest)
        if any(int(row["age"]) >= steps for row in table.get(cell, ())):
            continue
        table[cell] = measure(cell, steps, precision, most, number)
        for row in table[cell]:
            line = ""
            for name in FIGURES:
                off, both = difference(row, name)
                line += f"  {float(row[name]):7.3f} {float(row[name + '_simulated']):6.3f} {off:+.3f}/{both:.3f}"
            where = f"{cell.format:14} {cell.slot:10} {cell.scale:5} {cell.rounding:10} {cell.spread:6g} {cell.beta:6g}"
            print(f"{where} {row['age']:>5}{line}", flush=True)
        if out:
            write(out, table)
    summarize(table)


def summarize(table: Table) -> None:
    """Print how far prediction and simulation differ over the whole table."""
    found = {
        (cell, row["age"], name): difference(row, name)
        for cell, rows in table.items() for row in rows for name in FIGURES
    }  # fmt: skip
    ages = sum(map(len, table.values()))
    print(f"{len(table)} cells, {ages} ages; worst: ", end="")
    print(", ".join(f"{n} {max(abs(off) for (_, _, m), (off, _) in found.items() if m == n):.4f}" for n in FIGURES))
    scores = np.array([off / both for off, both in found.values() if both > 1e-4])
    print(
        f"difference over its standard error: root mean square {np.sqrt(np.mean(np.square(scores))):.2f}, "
        f"mean {scores.mean():+.2f}, largest {np.abs(scores).max():.1f}"
    )
    beyond = {key: pair for key, pair in found.items() if abs(pair[0]) > 0.02}
    print(f"beyond 0.02: {len(beyond)} of {len(found)} figures")
    for (cell, age, name), (off, both) in beyond.items():
        print(f"  {' '.join(map(str, astuple(cell)))} age {age}: {name} {off:+.4f}, standard error {both:.4f}")


def scales(beta: float, steps: int) -> None:
    print(f"beta2 {beta:g}, {steps} steps: mean error of Adam's update; lag at the end; zeros (smallest) at the end")
    for spread in SPREADS:
        for name in SECOND:
            for kind, how in itertools.product(KINDS, ROUNDINGS):
                law = block_law(Blocks(get_format(name), beta, how, SQUARE, kind, 128, spread), steps)
                cost = cycle_cost(squared_error(update_parts(law, 0.9, steps)))[-1]
                print(
                    f"spread {spread:g} {name:14} {kind:5} {how:10} {cost:8.3f} {law.lag[-1]:+7.3f} "
                    f"{law.zeros[-1]:6.3f} ({law.smallest[-1]:.3f})",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", action="store_true")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.9, 0.99, 0.999])
    parser.add_argument("--spreads", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--longest", type=int, default=300, help="last age, if 3 / (1 - beta) is beyond")
    parser.add_argument("--precision", type=float, default=0.005, help="standard error of each of both figures")
    parser.add_argument("--most", type=int, default=8192, help="blocks that are simulated at most")
    parser.add_argument("--random", type=int, help="this many of the cells, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="CSV")
    args = parser.parse_args()
    if args.scales:
        scales(args.betas[-1], 3000)
        return
    slots = [(n, "exp_avg_sq") for n in SECOND] + [(n, "exp_avg") for n in FIRST]
    cells = [
        Cell(*slot, kind, how, spread, beta)
        for beta, spread, slot, kind, how in itertools.product(args.betas, args.spreads, slots, KINDS, ROUNDINGS)
    ]
    if args.random:
        cells = random.Random(args.seed).sample(cells, args.random)
    compare(cells, args.longest, args.precision, args.most, args.out, args.seed)


if __name__ == "__main__":
    main()
