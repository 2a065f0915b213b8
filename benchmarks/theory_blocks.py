"""States in blocks: the predicted law against simulations with the library's own quantizers, and what scale to take.

The prediction (:mod:`halfulp.theory.blocks`) follows ensembles of its own; the simulation
(:mod:`halfulp.theory.simulation`) stores tensors with the library's codes and scales. Gradients, their sizes and random
words are drawn apart. Each side takes as many blocks as its standard errors need to come below ``--precision`` (up to
8192). Printed for some ages, for the stalled fraction of values, the lag and the share of zeros: predicted, simulated,
difference, and the standard error of the difference; then the worst, and what differences over their standard errors
look like (root mean square 1 and mean 0 if both follow the same law).

``--scales`` prints what a scale kind costs instead: error of Adam's update (:mod:`halfulp.theory.cost`) averaged over a
run without resets, lag at its end, and share of zeros.

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
from halfulp.theory.blocks import Blocks, block_law
from halfulp.theory.cost import cycle_cost, update_error
from halfulp.theory.drive import GRADIENT, SQUARE
from halfulp.theory.simulation import simulate_blocks

SECOND = (
    "float8_e4m3fn", "float8_e5m2", "ufloat8_e5m3", "ufloat8_e4m4", "ufloat4_e2m2", "ufloat4_e3m1", "ufloat4_e4m0",
    "uint4", "udynamic8", "ulinear8",
)  # fmt: skip
FIRST = ("float8_e4m3fn", "float8_e3m4", "float8_e5m2", "float4_e2m1fn", "int4", "dynamic8", "linear8")
ROUNDINGS = ("nearest", "stochastic")
KINDS = ("pow2", "fp32")
SPREADS = (0.0, 1.0)


@dataclass(frozen=True)
class Cell:
    """One way to store one state."""

    format: str
    slot: str
    scale: str
    rounding: str
    spread: float
    beta: float


def compare(cells: list[Cell], longest: int, precision: float, most: int, out: Path | None, seed: int) -> None:
    """Print and keep both figures of every cell."""
    names = ("stalled", "lag", "zeros")
    header = [f.name for f in fields(Cell)] + ["age", "blocks", "blocks_simulated"]
    header += [f"{n}{suffix}" for n in names for suffix in ("", "_error", "_simulated", "_simulated_error")]
    rows, worst, beyond, scores = [], np.zeros(3), 0, []
    print(f"{'format':14} {'slot':10} {'scale':5} {'rounding':10} {'spread':>6} {'beta':>6} {'age':>5}  " +
          "  ".join(f"{n:>7} simul. off/error" for n in names))  # fmt: skip
    for number, cell in enumerate(cells, 4096 * seed):
        square = cell.slot == "exp_avg_sq"
        steps = min(round(3 / (1 - cell.beta)), longest)
        drive = SQUARE if square else GRADIENT
        blocks = Blocks(get_format(cell.format), cell.beta, cell.rounding, drive, cell.scale, 128, cell.spread, square)
        law = block_law(blocks, steps, precision=precision, seed=number)
        quantizer = Quantizer(get_format(cell.format), Scaling(cell.scale), cell.rounding, square)  # type: ignore[arg-type]
        mean, error, count = simulate_blocks(
            quantizer, beta=cell.beta, steps=steps, slot=cell.slot, spread=cell.spread,
            precision=precision, most=most, seed=number,
        )  # fmt: skip
        for age in sorted({a for a in (1, 3, 10, 30, 100, 300, 1000) if a < steps} | {steps}):
            line, row = "", [*astuple(cell), age, law.paths, count]
            for i, name in enumerate(names):
                mine, sure, theirs, about = (
                    law.moment(name)[age],
                    law.error(name)[age],
                    mean[age - 1, i],
                    error[age - 1, i],
                )
                mine = max(mine, math.log(1e-6)) if name == "lag" else mine
                off, both = mine - theirs, math.hypot(sure, about)
                worst[i] = max(worst[i], abs(off))
                beyond += abs(off) > 0.02
                scores += [off / both] if both > 1e-4 else []
                line += f"  {mine:7.3f} {theirs:6.3f} {off:+.3f}/{both:.3f}"
                row += [round(float(x), 5) for x in (mine, sure, theirs, about)]
            rows.append(row)
            where = f"{cell.format:14} {cell.slot:10} {cell.scale:5} {cell.rounding:10} {cell.spread:6g} {cell.beta:6g}"
            print(f"{where} {age:5d}{line}", flush=True)
        if out:
            with out.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([header, *rows])
    print(
        f"{len(cells)} cells, {len(rows)} ages; worst: "
        + ", ".join(f"{n} {w:.4f}" for n, w in zip(names, worst, strict=True))
    )
    print(
        f"beyond 0.02: {beyond} of {3 * len(rows)} figures; difference over its standard error: root mean square "
        f"{np.sqrt(np.mean(np.square(scores))):.2f}, mean {np.mean(scores):+.2f}, largest {np.abs(scores).max():.1f}"
    )


def scales(beta: float, steps: int) -> None:
    print(f"beta2 {beta:g}, {steps} steps: mean error of Adam's update; lag at the end; zeros (smallest) at the end")
    for spread in SPREADS:
        for name in SECOND:
            for kind, how in itertools.product(KINDS, ROUNDINGS):
                law = block_law(Blocks(get_format(name), beta, how, SQUARE, kind, 128, spread), steps)
                cost = cycle_cost(update_error(law, 0.9, steps))[-1]
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
