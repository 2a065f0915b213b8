"""Slow, direct simulations of stored averages, as an oracle for the theory. They use none of the library's code.

Values are rounded with ``frexp`` or by searching a list of levels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def round_free(y: Array, mantissa_bits: int, rng: np.random.Generator | None) -> Array:
    """Round to a float's mantissas at every exponent, stochastically if a generator is given."""
    unit = np.ldexp(1.0, np.frexp(np.abs(y))[1] - 1 - mantissa_bits)
    quotient = np.abs(y) / unit
    whole = np.rint(quotient) if rng is None else np.floor(quotient + rng.random(y.shape))
    return np.asarray(np.sign(y) * whole * unit)


def round_levels(y: Array, levels: Array, rng: np.random.Generator | None) -> Array:
    """Round to sorted levels, with saturation."""
    y = np.clip(y, levels[0], levels[-1])
    low = np.clip(np.searchsorted(levels, y, side="right") - 1, 0, len(levels) - 2)
    share = (y - levels[low]) / (levels[low + 1] - levels[low])
    return np.asarray(levels[low + (share > (0.5 if rng is None else rng.random(y.shape)))])


def simulate(
    beta: float,
    rounding: str,
    steps: int,
    *,
    mantissa_bits: int | None = None,
    levels: Array | None = None,
    scale: float = 1.0,
    square: bool = True,
    n: int = 100_000,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Return the stalled fraction at each age 0 .. `steps`, and the state's mean (root mean square) over the scale."""
    rng = np.random.default_rng(seed)
    free = levels is None
    power = 2.0 ** ((rng.permutation(n) + 0.5) / n) if free else np.full(n, scale)
    dice = rng if rounding == "stochastic" else None
    v = np.zeros(n)
    stalled, size = [], []
    for _ in range(steps + 1):
        size.append(float(np.mean(v / power)) if square else math.sqrt(float(np.mean((v / power) ** 2))))
        g = rng.standard_normal(n)
        exact = beta * v + (1 - beta) * power * (g * g if square else g)
        if levels is None:
            assert mantissa_bits is not None
            new = round_free(exact, mantissa_bits, dice)
        else:
            new = round_levels(exact, levels, dice)
        stalled.append(float(((new == v) & (exact != v)).sum() / (exact != v).sum()))
        v = new
    return np.array(stalled), np.array(size)
