"""The chain against Monte Carlo on the exact grids: how far off, over formats, roundings and betas, and the noise.

Free grids are simulated with a float's mantissas at every exponent; fixed grids (integers, codebooks, and floats with
their subnormals and largest value) with the library's own rounding. Each coordinate has its own phase. Cells of one
beta and slot see the same gradients.

Printed for each cell: the largest deviation of the stalled fraction at any age (in brackets: the largest in standard
errors of the simulation), that of its average over the last fifth of the ages, and that of the mean (root mean square,
if signed) there, relative (in brackets: standard errors, from ten groups of coordinates).

Usage: python benchmarks/theory_chain.py [--coordinates 200000] [--betas 0.9 0.999] [--grid free|fixed] [--random 40]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from halfulp import get_format
from halfulp.formats import FORMATS, Format
from halfulp.rounding import decode, encode
from halfulp.theory.chain import Chain
from halfulp.theory.drive import GRADIENT, SQUARE, Drive
from halfulp.theory.transient import transient

BETAS = (0.9, 0.95, 0.99, 0.999, 0.9999)
GROUPS = 10


@dataclass(frozen=True)
class Cell:
    """A way to round, and the scale of the gradients on a fixed grid."""

    fmt: Format
    rounding: str
    scale: float | None

    def round(self, y: np.ndarray, words: np.ndarray) -> np.ndarray:
        """`words`: 32 random bits an element, as int64."""
        if self.scale is None:
            return free_round(y, self.fmt.mantissa_bits, words if self.rounding == "stochastic" else None)
        bits = torch.from_numpy(words) if self.rounding == "stochastic" else None
        return decode(encode(torch.from_numpy(y).float(), self.fmt, bits), self.fmt).double().numpy()


def free_round(y: np.ndarray, mantissa_bits: int, words: np.ndarray | None) -> np.ndarray:
    """A float's mantissas at every exponent, on the bits of a double; to nearest even without random words."""
    dropped = 52 - mantissa_bits
    bits = y.view(np.int64)
    if words is None:
        up = (np.int64(1) << (dropped - 1)) - 1 + ((bits >> dropped) & 1)
    else:
        up = words << (dropped - 32)
    return ((bits + up) >> dropped << dropped).view(np.float64)


def monte_carlo(
    cells: list[Cell], beta: float, drive: Drive, steps: int, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stalled fraction and mean (or mean square) of the state of each age, ``(cells, ages, GROUPS)`` each."""
    rng = np.random.default_rng(seed)
    free = 2.0 ** (rng.permutation((np.arange(n) + 0.5) / n))
    powers = [free if c.scale is None else np.full(n, c.scale) for c in cells]
    states = [np.zeros(n) for _ in cells]
    stalled, size = np.zeros((2, len(cells), steps + 1, GROUPS))
    for age in range(steps + 1):
        x = drive.sample(rng, n)
        words = rng.integers(0, 1 << 32, n, dtype=np.int64)
        for i, (cell, power) in enumerate(zip(cells, powers, strict=True)):
            value = (states[i] / power).reshape(GROUPS, -1)
            size[i, age] = value.mean(axis=1) if drive.nonnegative else np.square(value).mean(axis=1)
            exact = beta * states[i] + (1 - beta) * power * x
            new = cell.round(exact, words)
            due, stood = exact != states[i], new == states[i]
            due, stood = due.reshape(GROUPS, -1), stood.reshape(GROUPS, -1)
            stalled[i, age] = (stood & due).sum(axis=1) / np.maximum(due.sum(axis=1), 1)
            states[i] = new
    return stalled, size


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
                    # formats of as many fraction bits are one grid, as long as exponents are free
                    if fmt.kind == "float" and (fmt.mantissa_bits, rounding) not in seen:
                        seen.add((fmt.mantissa_bits, rounding))
                        free.append(Cell(fmt, rounding, None))
                    if fmt.bits <= 8:
                        fixed.append(Cell(fmt, rounding, fmt.max / (3 if drive.nonnegative else 4) / noise))
            if grid != "fixed":
                yield beta, drive, free
            if grid != "free":
                yield beta, drive, fixed


def at_random(count: int, seed: int) -> Iterator[tuple[float, Drive, list[Cell]]]:
    """Betas, fraction bits and drives that nothing else names."""
    rng = np.random.default_rng(seed)
    base = get_format("float16")  # free exponents: only fraction bits and sign matter
    for _ in range(count):
        beta = 1 - 10 ** rng.uniform(-4, -0.4)
        drive = SQUARE if rng.random() < 0.5 else GRADIENT
        if rng.random() < 0.3:
            drive = Drive("square", dof=float(rng.integers(2, 12)))
        elif rng.random() < 0.3:
            drive = Drive("normal", ratio=float(rng.uniform(0, 2)))
        fmt = replace(
            base,
            name=f"{(bits := int(rng.integers(0, 10)))} fraction bits",
            mantissa_bits=bits,
            exponent_bits=15 - bits,
        )
        yield beta, drive, [Cell(fmt, str(rng.choice(["nearest", "stochastic"])), None)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coordinates", type=int, default=200_000)
    parser.add_argument("--betas", type=float, nargs="+", default=BETAS)
    parser.add_argument("--grid", choices=["free", "fixed"])
    parser.add_argument("--random", type=int, default=0, help="so many cells drawn at random instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=int, default=3000, help="ages of a cell: 3 / (1 - beta), at most so many")
    args = parser.parse_args()
    n = -(-args.coordinates // GROUPS) * GROUPS
    print(
        f"{'format':16} {'grid':5} {'drive':16} {'rounding':10} {'beta':>7} {'ages':>5} "
        f"{'any age':>15} {'last fifth':>17} {'mean':>15}"
    )
    worst: dict[str, list[float]] = {"v": [0, 0, 0], "m": [0, 0, 0]}
    count = 0
    work = at_random(args.random, args.seed) if args.random else batches(tuple(args.betas), args.grid)
    for beta, drive, cells in work:
        steps = min(math.ceil(3 / (1 - beta)), args.longest)
        stalled, size = monte_carlo(cells, beta, drive, steps, n, args.seed)
        late = slice(-max(steps // 5, 1), None)
        for i, cell in enumerate(cells):
            law = transient(Chain(cell.fmt, beta, cell.rounding, drive, cell.scale), steps)
            simulated = stalled[i].mean(axis=1)
            off = np.abs(law.stalled - simulated)
            error = np.sqrt(np.maximum(simulated * (1 - simulated), 1e-9) / n)
            by_group = stalled[i, late].mean(axis=0)
            late_off = abs(law.stalled[late].mean() - by_group.mean())
            mine = law.mean[late].mean() if drive.nonnegative else math.sqrt(law.moment("square")[late].mean())
            groups = size[i, late].mean(axis=0) if drive.nonnegative else np.sqrt(size[i, late].mean(axis=0))
            level = max(groups.mean(), 1e-12)
            mean_off, mean_error = abs(mine / level - 1), groups.std(ddof=1) / level / math.sqrt(GROUPS)
            key = "v" if drive.nonnegative else "m"
            if groups.mean() > 0:
                worst[key] = [max(a, b) for a, b in zip(worst[key], (off.max(), late_off, mean_off), strict=True)]
            count += 1
            sigmas = (off / error)[simulated > 0].max(initial=0)
            shape = f"dof {drive.dof:g}" if drive.nonnegative else f"ratio {drive.ratio:.2f}"
            print(
                f"{cell.fmt.name:16} {'free' if cell.scale is None else 'fixed':5} {drive.kind + ', ' + shape:16} "
                f"{cell.rounding:10} {beta:7.4g} {steps:5d} {off.max():7.4f} ({sigmas:4.1f}) "
                f"{late_off:8.5f} ({by_group.std(ddof=1) / math.sqrt(GROUPS):.5f}) {mean_off:6.4f} ({mean_error:.4f})",
                flush=True,
            )
    print(f"{count} cells, {n} coordinates each")
    for key, (a, b, c) in worst.items():
        print(f"worst for {key}: stalled {a:.4f} at any age, {b:.5f} over the last fifth, mean {c:.4f}")


if __name__ == "__main__":
    main()
