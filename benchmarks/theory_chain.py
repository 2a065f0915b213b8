"""The chain against Monte Carlo on the exact grids: deviations over formats, roundings and betas, and their noise.

Free grids are simulated with a float's mantissas at every exponent. Fixed grids (integers, codebooks, and floats with
their subnormals and largest value) use the library's own rounding. Each coordinate has its own phase. Cells with the
same beta and slot get the same gradients.

For each cell the script prints the largest deviation of the stalled fraction at any age (in brackets: in standard
errors of the simulation at that age), of its average over ages within a tenth of each other, and of its average over
the last fifth of the ages. It also prints the relative deviation of the mean there (root mean square, if signed; in
brackets: standard errors, from ten groups of coordinates).

With ``--out`` every cell is a row of a CSV file, and cells in it are not run again.

Usage: python benchmarks/theory_chain.py [--coordinates 200000] [--betas 0.9 0.999] [--grid free|fixed] [--slot v|m]
           [--formats float8_e5m2 ...] [--random 40] [--seed 0] [--longest 30000] [--out FILE]
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from theory_monte_carlo import GROUPS, Cell, monte_carlo

from halfulp import get_format
from halfulp.numbers.formats import FORMATS
from halfulp.rules.drives import GRADIENT, SQUARE, Drive
from halfulp.theory.chain import Chain
from halfulp.theory.transient import transient

BETAS = (0.9, 0.95, 0.99, 0.999, 0.9999)
KEY = ("format", "scale", "drive", "rounding", "beta", "ages", "coordinates", "seed")
CHUNK = 8
"""Number of cells that are simulated together and stored when the run is interrupted."""


def batches(betas: tuple[float, ...], grid: str | None) -> Iterator[tuple[float, Drive, list[Cell]]]:
    for beta in betas:
        for drive in (SQUARE, GRADIENT):
            noise = 1.0 if drive.nonnegative else math.sqrt((1 - beta) / (1 + beta))
            free, fixed = [], []
            seen = set()
            for fmt in FORMATS.values():
                if fmt.is_float32 or not (fmt.signed or drive.nonnegative):
                    continue
                for rounding in ("nearest", "stochastic"):
                    # formats with the same fraction bits share one grid if exponents are free
                    if fmt.kind == "float" and (fmt.mantissa_bits, rounding) not in seen:
                        seen.add((fmt.mantissa_bits, rounding))
                        free.append(Cell(fmt, rounding, None))
                    if fmt.bits <= 8:
                        fixed.append(Cell(fmt, rounding, fmt.max / (3 if drive.nonnegative else 4) / noise))
            if grid != "fixed":
                yield beta, drive, free
            if grid != "free":
                yield beta, drive, fixed


def at_random(count: int, seed: int, grid: str | None) -> Iterator[tuple[float, Drive, list[Cell]]]:
    """Yield betas, fraction bits, drives, and scales on fixed grids that occur nowhere else."""
    rng = np.random.default_rng(seed)
    base = get_format("float16")  # free exponents, so only fraction bits and sign matter
    for _ in range(count):
        beta = 1 - 10 ** rng.uniform(-4, -0.4)
        drive = SQUARE if rng.random() < 0.5 else GRADIENT
        if rng.random() < 0.3:
            drive = Drive("square", shared=float(rng.integers(2, 12)))
        elif rng.random() < 0.3:
            drive = Drive("gradient", ratio=float(rng.uniform(0, 2)))
        rounding = str(rng.choice(["nearest", "stochastic"]))
        if grid == "fixed":
            names = [f.name for f in FORMATS.values() if not f.is_float32 and (f.signed or drive.nonnegative)]
            fmt = get_format(str(rng.choice(names)))
            typical = 1.0 if drive.nonnegative else abs(drive.ratio) + math.sqrt((1 - beta) / (1 + beta))
            yield beta, drive, [Cell(fmt, rounding, min(fmt.max, 1e4) / typical / 10 ** rng.uniform(0.3, 1.5))]
        else:
            bits = int(rng.integers(0, 10))
            name = f"{bits} fraction bits"
            fmt = replace(base, name=name, mantissa_bits=bits, exponent_bits=15 - bits)
            yield beta, drive, [Cell(fmt, rounding, None)]


def compare(cell: Cell, beta: float, drive: Drive, stalled: np.ndarray, size: np.ndarray, n: int) -> dict[str, float]:
    """Return the results of a cell from simulated ``(ages, GROUPS)`` values of `n` coordinates."""
    started = time.process_time()
    law = transient(Chain(cell.fmt, beta, cell.rounding, drive, cell.scale), len(stalled) - 1)
    seconds = time.process_time() - started
    late = slice(-max(len(stalled) // 5, 1), None)
    simulated, by_group = stalled.mean(axis=1), stalled[late].mean(axis=0)
    off = law.stalled - simulated
    worst = int(np.abs(off).argmax())
    error = math.sqrt(max(simulated[worst] * (1 - simulated[worst]), 1 / n) / n)
    edges = np.unique((1.1 ** np.arange(math.log(len(off)) / math.log(1.1))).astype(int))
    tenths = [off[a:b].mean() for a, b in itertools.pairwise([*edges, len(off)])]
    known = np.isfinite(size[late, 0])
    mine = (law.mean if drive.nonnegative else law.moment("square"))[late][known].mean()
    groups = size[late][known].mean(axis=0)
    if not drive.nonnegative:
        mine, groups = np.sqrt(mine), np.sqrt(groups)
    level = groups.mean() or math.nan  # no mean if no state ever leaves zero
    return {
        "any_age": abs(off[worst]),
        "at_age": worst,
        "errors": abs(off[worst]) / error,
        "tenth": np.abs(tenths).max(),
        "last_fifth": abs(off[late].mean()),
        "last_fifth_error": by_group.std(ddof=1) / math.sqrt(GROUPS),
        "mean": abs(mine / level - 1),
        "mean_error": groups.std(ddof=1) / level / math.sqrt(GROUPS),
        "chain_seconds": seconds,
    }


def show(row: dict[str, str]) -> str:
    f = {k: float(v) for k, v in row.items() if k not in ("format", "scale", "drive", "rounding")}
    return (
        f"{row['format']:16} {row['scale']:8} {row['drive']:18} {row['rounding']:10} {f['beta']:<7.5g} "
        f"{f['ages']:5.0f} {f['any_age']:7.4f} ({f['errors']:4.1f}) {f['tenth']:8.5f} "
        f"{f['last_fifth']:8.5f} ({f['last_fifth_error']:.5f}) {f['mean']:8.4f} ({f['mean_error']:.4f}) "
        f"{f['chain_seconds']:6.2f} {f['simulation_seconds']:6.0f}"
    )


def summarize(rows: list[dict[str, str]]) -> None:
    """Print the worst deviations. Only means known to 0.5 % count: in other cells few states ever leave zero."""
    for slot, kind in (("v", "square"), ("m", "normal")):
        mine = [row for row in rows if row["drive"].startswith(kind)]
        if not mine:
            continue
        known = [float(row["mean"]) for row in mine if float(row["mean_error"]) < 0.005]
        worst = {k: max(float(row[k]) for row in mine) for k in ("any_age", "tenth", "last_fifth")}
        mean = f"mean {max(known, default=math.nan):.4f} ({len(known)} cells)"
        print(
            f"{slot}, {len(mine)} cells: stalled {worst['any_age']:.4f} at any age, {worst['tenth']:.5f} over a tenth, "
            f"{worst['last_fifth']:.5f} over the last fifth, {mean}"
        )


def write(path: Path, rows: list[dict[str, str]]) -> None:
    partial = path.with_suffix(".tmp")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coordinates", type=int, default=200_000)
    parser.add_argument("--betas", type=float, nargs="+", default=BETAS)
    parser.add_argument("--grid", choices=["free", "fixed"])
    parser.add_argument("--slot", choices=["v", "m"])
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--random", type=int, default=0, help="so many cells drawn at random instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=int, default=30_000, help="ages of a cell: 3 / (1 - beta), at most so many")
    parser.add_argument("--out", type=Path, help="CSV file to go on from")
    args = parser.parse_args()
    torch.set_num_threads(1)
    n = -(-args.coordinates // GROUPS) * GROUPS
    print(
        f"{'format':16} {'scale':8} {'drive':18} {'rounding':10} {'beta':7} {'ages':>5} {'any age':>14} {'tenth':>8} "
        f"{'last fifth':>18} {'mean':>17} {'chain s':>7} {'MC s':>5}"
    )
    rows = [] if args.out is None or not args.out.exists() else list(csv.DictReader(args.out.open()))
    done = {tuple(row[k] for k in KEY) for row in rows}
    work = at_random(args.random, args.seed, args.grid) if args.random else batches(tuple(args.betas), args.grid)
    for beta, drive, cells in work:
        steps = min(math.ceil(3 / (1 - beta)), args.longest)
        shape = f"square, dof {drive.dof:g}" if drive.nonnegative else f"normal, mean {drive.ratio:.3g}"
        todo = {}
        for cell in cells:
            scale = "free" if cell.scale is None else f"{cell.scale:.6g}"
            key = (cell.fmt.name, scale, shape, cell.rounding, f"{beta:.6g}", str(steps), str(n), str(args.seed))
            wanted = (args.formats is None or cell.fmt.name in args.formats) and args.slot != "vm"[drive.nonnegative]
            if wanted and key not in done:
                todo[cell] = key
        for start in range(0, len(todo), CHUNK):
            chunk = list(todo.items())[start : start + CHUNK]
            started = time.process_time()
            thin = 8 if steps > 1000 else 1
            stalled, size = monte_carlo([cell for cell, _ in chunk], beta, drive, steps, n, args.seed, thin)
            seconds = (time.process_time() - started) / len(chunk)
            for i, (cell, key) in enumerate(chunk):
                figures = compare(cell, beta, drive, stalled[i], size[i], n) | {"simulation_seconds": seconds}
                rows.append(dict(zip(KEY, key, strict=True)) | {k: f"{v:.5g}" for k, v in figures.items()})
                print(show(rows[-1]), flush=True)
            if args.out is not None:
                write(args.out, rows)
    summarize(rows)


if __name__ == "__main__":
    main()
