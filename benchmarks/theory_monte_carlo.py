"""Simulation of stored averages on the exact grids for tens of thousands of steps: the oracle of ``theory_chain.py``.

It shares nothing with the chain. Values of each coordinate are followed one update at a time, in fp32 like a kernel's,
and rounded by the library's own rounding (fixed grids) or on the bits of the value (free exponents).

It is fast because most updates of an old state are lost, which six passes over fp32 vectors detect. An update of less
than half a gap (nearest) or less than the random share of a gap (stochastic) is certainly lost. Only the others, with a
margin for fp32, are rounded. Coordinates are followed in groups that fit in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from halfulp.numbers.formats import Format
from halfulp.numbers.rounding import decode, encode
from halfulp.rules.drives import Drive

GROUPS = 10
MARGIN = 1e-3
"""Share of a gap by which fp32 may misjudge an update (2e-4 at 10 fraction bits), with a margin."""
BLOCK = 16
"""Number of steps whose inputs are drawn together."""


@dataclass(frozen=True)
class Cell:
    """A rounding, and the scale of the drive on a fixed grid (``None``: free exponents)."""

    fmt: Format
    rounding: str
    scale: float | None

    def round(self, y: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rounded values, and the inverse gaps above and below each.

        `words` has 32 random bits per element (uint32).
        """
        stochastic = self.rounding == "stochastic"
        if self.scale is None:
            return free_round(y, self.fmt.mantissa_bits, words if stochastic else None)
        bits = torch.from_numpy(words.astype(np.int64)) if stochastic else None
        codes = encode(torch.from_numpy(y), self.fmt, bits)
        index = (codes.view(torch.int16).long() & 0xFFFF if self.fmt.bits == 16 else codes.long()).numpy()
        above, below = self._inverse_gaps
        return decode(codes, self.fmt).numpy(), above[index], below[index]

    @cached_property
    def _inverse_gaps(self) -> tuple[np.ndarray, np.ndarray]:
        """Return by code one over the distance to the next value above and below; 0 beyond the ends."""
        values = np.array(self.fmt.grid())
        inverse = np.concatenate([[0.0], 1 / np.diff(values), [0.0]])
        above, below = np.zeros((2, 1 << self.fmt.bits), np.float32)
        for code in range(1 << self.fmt.bits):
            value = self.fmt.decode(code)
            if np.isfinite(value):
                at = np.searchsorted(values, value)
                above[code], below[code] = inverse[at + 1], inverse[at]
        return above, below


def free_round(y: np.ndarray, mantissa_bits: int, words: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Round to a float's mantissas at every exponent, on the bits of fp32, and return inverse gaps too."""
    dropped = np.uint32(23 - mantissa_bits)
    bits = y.view(np.uint32)
    if words is None:
        up = ((np.uint32(1) << (dropped - np.uint32(1))) - np.uint32(1)) + ((bits >> dropped) & np.uint32(1))
    else:
        up = words >> (np.uint32(32) - dropped)
    new = ((bits + up) >> dropped << dropped).view(np.float32)
    mantissa, exponent = np.frexp(np.abs(new))
    outward = np.ldexp(np.float32(1.0), mantissa_bits + 1 - exponent)
    inward = np.where(mantissa == 0.5, 2 * outward, outward)
    outward, inward = np.where(new == 0, np.float32(1e30), (outward, inward))
    return new, np.where(new >= 0, outward, inward), np.where(new >= 0, inward, outward)


def draw(drive: Drive, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw inputs in fp32."""
    if drive.mixture == ((1.0, 1.0),) and drive.dof == 1:
        z = rng.standard_normal(shape, dtype=np.float32)
        return z * z if drive.nonnegative else z + np.float32(drive.ratio)
    return drive.sample(rng, shape[0] * shape[1]).reshape(shape).astype(np.float32)


def monte_carlo(
    cells: list[Cell], beta: float, drive: Drive, steps: int, n: int, seed: int, thin: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return the stalled fraction and mean (or mean square) of the states at each age.

    Parameters
    ----------
    cells
        Cells with the same inputs, in ``GROUPS`` independent groups of coordinates.
    beta, drive
        Decay and drive of the average. The drive must not be exactly zero with positive probability, since each update
        counts as due.
    steps, n, seed
        Last age, number of coordinates, and seed of the random numbers.
    thin
        Means are taken at ages that are multiples of this; the others are NaN.

    Returns
    -------
    stalled, size
        ``(cells, steps + 1, GROUPS)`` each. Sizes are in units of the drive's scale.
    """
    stalled = np.zeros((len(cells), steps + 1, GROUPS))
    size = np.full((len(cells), steps + 1, GROUPS), np.nan)
    phases = 2.0 ** (np.random.default_rng(seed).permutation((np.arange(n) + 0.5) / n))
    for group, phase in enumerate(phases.reshape(GROUPS, -1).astype(np.float32)):
        rng = np.random.Generator(np.random.SFC64([seed, group]))
        walks = [Walk(c, beta, phase if c.scale is None else np.full_like(phase, c.scale)) for c in cells]
        for first in range(0, steps + 1, BLOCK):
            shape = min(BLOCK, steps + 1 - first), len(phase)
            inputs = draw(drive, rng, shape) * np.float32(1 - beta)
            words = rng.integers(0, 1 << 32, shape, dtype=np.uint32)
            shares = np.minimum(words, ~words).astype(np.float32) * np.float32(2.0**-32) - np.float32(MARGIN)
            for i, walk in enumerate(walks):
                for j in range(shape[0]):
                    age = first + j
                    if age % thin == 0:
                        size[i, age, group] = walk.size(drive.nonnegative)
                    stalled[i, age, group] = walk.advance(inputs[j], words[j], shares[j])
    return stalled, size


class Walk:
    """States of one cell, with data that quickly shows whether an update is lost."""

    def __init__(self, cell: Cell, beta: float, scale: np.ndarray) -> None:
        self.cell, self.beta, self.scale = cell, np.float32(beta), scale
        self.gain = 1 - beta
        zero = np.zeros_like(scale)
        self.value, above, below = cell.round(zero, np.zeros(len(zero), np.uint32))
        self.leak, self.above, self.below = zero.copy(), above * scale, -below * scale
        self.change, self.gaps = zero.copy(), zero.copy()

    def size(self, nonnegative: bool) -> float:
        """Return the mean, or mean square, in units of the drive's scale."""
        if nonnegative:
            return float(self.leak.mean(dtype=np.float64)) / self.gain
        return float(np.square(self.leak).mean(dtype=np.float64)) / self.gain**2

    def advance(self, inputs: np.ndarray, words: np.ndarray, shares: np.ndarray) -> float:
        """Apply one update from ``(1 - beta) x``. Return the share that was lost."""
        change, gaps = self.change, self.gaps
        np.subtract(inputs, self.leak, out=change)
        np.multiply(change, self.above, out=gaps)
        np.multiply(change, self.below, out=change)
        np.maximum(gaps, change, out=gaps)  # length of the update, in gaps
        doubtful = np.flatnonzero(gaps > (shares if self.cell.rounding == "stochastic" else 0.5 - MARGIN))
        if not len(doubtful):
            return 1.0
        old, scale = self.value[doubtful], self.scale[doubtful]
        new, above, below = self.cell.round(self.beta * old + scale * inputs[doubtful], words[doubtful])
        self.value[doubtful], self.leak[doubtful] = new, np.float32(self.gain) * new / scale
        self.above[doubtful], self.below[doubtful] = above * scale, -below * scale
        return 1.0 - np.count_nonzero(new != old) / len(old) * (len(old) / len(gaps))
