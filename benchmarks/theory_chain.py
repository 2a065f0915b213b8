"""The chain against Monte Carlo on the exact grids: the worst deviations over formats, roundings and betas.

Free grids are simulated with a float's mantissas at every exponent; fixed grids (integers, codebooks, and floats with
their subnormals and largest value) with the library's own rounding. Each coordinate has its own phase.

Printed for each cell: the largest deviation of the stalled fraction at any age (sampling error is about
``4 * 0.5 / sqrt(coordinates)`` over many ages), of its average over the last fifth of the ages, and of the mean (root
mean square, if signed), relative.

Usage: python benchmarks/theory_chain.py [--coordinates 100000] [--only FORMAT] [--betas 0.9 0.999]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import numpy as np
import torch

from halfulp import get_format
from halfulp.formats import FORMATS, Format
from halfulp.rounding import decode, encode
from halfulp.theory.chain import Chain
from halfulp.theory.drive import GRADIENT, SQUARE, Drive
from halfulp.theory.transient import transient

BETAS = (0.9, 0.95, 0.99, 0.999, 0.9999)


def free_round(y: np.ndarray, mantissa_bits: int, rng: np.random.Generator | None) -> np.ndarray:
    """A float's mantissas at every exponent; stochastic if a generator is given."""
    _, exponent = np.frexp(np.abs(y))
    unit = np.ldexp(1.0, exponent - 1 - mantissa_bits)
    quotient = np.abs(y) / unit
    whole = np.rint(quotient) if rng is None else np.floor(quotient + rng.random(y.shape))
    return np.sign(y) * whole * unit


def fixed_round(y: np.ndarray, fmt: Format, rng: np.random.Generator | None) -> np.ndarray:
    """The library's own rounding, without scale."""
    words = None if rng is None else torch.from_numpy(rng.integers(0, 1 << 32, y.shape, dtype=np.int64))
    return decode(encode(torch.from_numpy(y).float(), fmt, words), fmt).double().numpy()


def monte_carlo(
    fmt: Format, beta: float, rounding: str, drive: Drive, scale: float | None, steps: int, n: int, seed: int = 0
) -> Iterator[tuple[float, float]]:
    """Stalled fraction at each age, and mean (or root mean square) of the state of that age over its scale."""
    rng = np.random.default_rng(seed)
    power = 2.0 ** ((rng.permutation(n) + 0.5) / n) if scale is None else np.full(n, scale)
    v = np.zeros(n)
    dice = rng if rounding == "stochastic" else None
    for _ in range(steps + 1):
        value = v / power
        level = value.mean() if drive.nonnegative else math.sqrt(np.square(value).mean())
        exact = beta * v + (1 - beta) * power * drive.sample(rng, n)
        new = free_round(exact, fmt.mantissa_bits, dice) if scale is None else fixed_round(exact, fmt, dice)
        due = exact != v
        yield ((new == v) & due).sum() / max(due.sum(), 1), float(level)
        v = new


def cells(only: str | None, betas: tuple[float, ...]) -> Iterator[tuple[Format, float, str, Drive, float | None]]:
    for fmt in FORMATS.values():
        if fmt.is_float32 or (only and fmt.name != only):
            continue
        for beta in betas:
            for rounding in ("nearest", "stochastic"):
                for drive in (SQUARE, GRADIENT) if fmt.signed else (SQUARE,):
                    if fmt.kind == "float":
                        yield fmt, beta, rounding, drive, None
                    if fmt.kind != "float" or (fmt.bits <= 8 and beta <= 0.99):
                        noise = 1.0 if drive.nonnegative else math.sqrt((1 - beta) / (1 + beta))
                        yield fmt, beta, rounding, drive, fmt.max / (3 if drive.nonnegative else 4) / noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coordinates", type=int, default=100_000)
    parser.add_argument("--only")
    parser.add_argument("--betas", type=float, nargs="+", default=BETAS)
    parser.add_argument("--longest", type=int, default=3000, help="ages of a cell: 3 / (1 - beta), at most so many")
    args = parser.parse_args()
    print(
        f"{'format':14} {'grid':5} {'slot':10} {'rounding':10} {'beta':>6} {'ages':>5} "
        f"{'stall':>7} {'late':>8} {'mean':>7}"
    )
    worst: dict[str, list[float]] = {"v": [0, 0, 0], "m": [0, 0, 0]}
    for fmt, beta, rounding, drive, scale in cells(args.only and get_format(args.only).name, tuple(args.betas)):
        steps = min(math.ceil(3 / (1 - beta)), args.longest)
        law = transient(Chain(fmt, beta, rounding, drive, scale), steps)
        stalled, mean = law.stalled, law.mean if drive.nonnegative else np.sqrt(law.moment("square"))
        simulated = np.array(list(monte_carlo(fmt, beta, rounding, drive, scale, steps, args.coordinates)))
        off = np.abs(stalled - simulated[:, 0])
        late = abs((stalled - simulated[:, 0])[-(steps // 5) :].mean())
        positive = simulated[:, 1] > 0
        relative = np.abs(mean / np.where(positive, simulated[:, 1], 1.0) - 1)[positive]
        figures = [off.max(), late, relative[relative.size // 20 :].max() if relative.size else 0.0]
        slot = "exp_avg_sq" if drive.nonnegative else "exp_avg"
        key = "v" if drive.nonnegative else "m"
        worst[key] = [max(a, b) for a, b in zip(worst[key], figures, strict=True)]
        print(
            f"{fmt.name:14} {'free' if scale is None else 'fixed':5} {slot:10} {rounding:10} {beta:6g} {steps:5d} "
            f"{figures[0]:7.4f} {figures[1]:8.5f} {figures[2]:7.4f}",
            flush=True,
        )
    for key, (a, b, c) in worst.items():
        print(f"worst for {key}: stalled {a:.4f} at any age, {b:.5f} over the last fifth, mean {c:.4f}")


if __name__ == "__main__":
    main()
