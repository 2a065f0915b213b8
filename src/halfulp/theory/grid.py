"""The values that a stored state can take, as states of a Markov chain.

There are two kinds of grid. A *free* grid has a float's mantissas at every exponent, like 16-bit floats and floats with
a scale. A *fixed* grid is the format itself, with subnormals, a largest value and no scale.

Where the grid is much finer than one update it is thinned: rounding hardly affects the law there, and a few points
suffice. Mass between thinned points is split so that the mean is preserved. Stalling is always computed from the true
spacing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format
from halfulp.rules.drives import Drive

__all__ = ["Grid", "fixed_grid", "free_grid"]

Array = npt.NDArray[np.float64]

FINENESS = {"square": 3, "gradient": 5}
"""Default for ``fineness``: a thinned grid has one to two times this many points per deviation of an update."""
HEADROOM = 7
"""Octaves of a free grid above the drive's scale (second moment)."""


@dataclass(frozen=True)
class Grid:
    """States of the chain, in increasing order.

    Parameters
    ----------
    below, above
        True distance from each point to its neighbours in the format; infinite at the ends of a fixed grid.
    split
        For each gap between points, where nearest rounding switches from the lower to the upper end; NaN in thinned
        gaps, where mass is split in proportion.
    free
        Whether the grid has every octave, so that twice a point is a point.
    """

    points: Array
    below: Array
    above: Array
    split: Array
    free: bool

    @classmethod
    def of(cls, points: Array, split: Array) -> Grid:
        """Return a fixed grid that has no values beside these."""
        gaps = np.diff(points, prepend=-math.inf, append=math.inf)
        return cls(points, gaps[:-1], gaps[1:], split, False)

    def __len__(self) -> int:
        return len(self.points)

    def index(self, value: float) -> int:
        """Return the index of the point nearest to a value."""
        return int(np.abs(self.points - value).argmin())


def _power(value: float) -> float:
    """Return the largest power of two that is at most a value."""
    return 2.0 ** math.floor(math.log2(value))


def _octave_points(
    exponents: range, mantissa_bits: int, coarse: float, log_points: int, bottom: int | None, tail: float
) -> tuple[Array, Array, Array]:
    """Return the positive points and their true distances to the neighbours. `bottom` is the smallest normal exponent.

    From the exponent `tail` on, an octave has at most 32 points.
    """
    points, below, above = [], [], []
    for e in exponents:
        unit = 2.0 ** (max(e, bottom if bottom is not None else e) - mantissa_bits)
        step = max(unit, min(2.0 ** (e - log_points), coarse) if log_points else coarse)
        if e >= tail:
            step = max(step, 2.0 ** (e - 5))
        if step <= 2.0**e:
            octave = 2.0**e + step * np.arange(round(2.0**e / step))
            down = np.full(len(octave), unit)
            if bottom is None or e > bottom:
                down[0] = unit / 2
            points.append(octave)
            below.append(down)
            above.append(np.full(len(octave), unit))
    return np.concatenate(points), np.concatenate(below), np.concatenate(above)


def _span(drive: Drive, beta: float, fineness: int | None) -> tuple[float, float, float]:
    """Return the smallest and largest relevant magnitude and the thinned spacing, in units of the drive's scale.

    Splitting mass over a gap of ``1/n`` standard deviations of an update adds at most ``1 / (6 n**2)`` to its variance.
    """
    gain, fineness = 1 - beta, fineness or FINENESS[drive.kind]
    largest = max(abs(w) for w in drive.support)
    if drive.nonnegative:
        coarse = _power(gain * math.sqrt(drive.variance) / fineness)
        low = 2.0 ** math.floor(math.log2(gain * drive.mean) - 16)
        return low, max(2.0**HEADROOM, _power(gain * largest) * 4), coarse
    noise = math.sqrt(drive.variance)
    deviation = noise * math.sqrt(gain / (1 + beta))
    coarse = _power(gain * noise / fineness)
    # on coarse grids stochastic rounding gives first moments heavy tails: a 4-bit one at 0.999 needs this much
    top = max(256 * deviation, 4 * gain * largest, 8 * abs(drive.mean))
    return coarse, 2 * _power(top), coarse


def _tail(drive: Drive) -> float:
    """Exponent above which second moments are so far above their mean that a coarse grid suffices."""
    return 3 + math.log2(drive.mean) if drive.nonnegative else math.inf


def free_grid(fmt: Format, drive: Drive, beta: float, fineness: int | None = None) -> Grid:
    """Return a float format's mantissas at every exponent, for drives of scale 1 to 2."""
    low, high, coarse = _span(drive, beta, fineness)
    exponents = range(math.floor(math.log2(low)), math.ceil(math.log2(high)))
    tables = _octave_points(exponents, fmt.mantissa_bits, coarse, 4 if drive.nonnegative else 0, None, _tail(drive))
    return _assemble(*tables, drive, 0.0 if drive.nonnegative else math.nan, 0.0, True)


def fixed_grid(
    fmt: Format, drive: Drive, beta: float, scale: float, zero_floor: bool, fineness: int | None = None
) -> Grid:
    """Return the format's own values. `scale` is the drive's, in units of the format."""
    if fmt.kind == "float" and fmt.bits == 16:
        low, high, coarse = (scale * v for v in _span(drive, beta, fineness))
        smallest = fmt.min_exponent - fmt.mantissa_bits
        bottom = max(math.floor(math.log2(low)), smallest)
        exponents = range(bottom, max(bottom + 1, min(math.ceil(math.log2(high)), math.ceil(math.log2(fmt.max)))))
        log_points = 4 if drive.nonnegative else 0
        positive, below, above = _octave_points(
            exponents, fmt.mantissa_bits, max(_power(coarse), 2.0**smallest), log_points, fmt.min_exponent,
            _tail(drive) + math.log2(scale),
        )  # fmt: skip
        unit = 2.0**smallest
        first = (0.0 if zero_floor else positive[0] / 2) if positive[0] == unit else math.nan
        return _assemble(positive, below, above, drive, first, unit, False)
    values = np.array(fmt.grid())
    if drive.nonnegative:
        values = values[values >= 0]
    split = (values[1:] + values[:-1]) / 2
    if zero_floor and drive.nonnegative:
        split[0] = values[0]
    return Grid.of(values, split)


def _assemble(
    positive: Array, below: Array, above: Array, drive: Drive, first: float, zero_gap: float, free: bool
) -> Grid:
    """Add zero and the negative side. Zero's gap is split at `first`, and its true width is `zero_gap`."""
    gaps = np.diff(positive)
    fine = np.isclose(gaps, above[:-1], rtol=1e-9)
    split = np.where(fine, (positive[1:] + positive[:-1]) / 2, np.nan)
    if drive.nonnegative:
        return Grid(
            np.concatenate([[0.0], positive]),
            np.concatenate([[math.inf], below]),
            np.concatenate([[zero_gap], above]),
            np.concatenate([[first], split]),
            free,
        )
    return Grid(
        np.concatenate([-positive[::-1], [0.0], positive]),
        np.concatenate([above[::-1], [zero_gap], below]),
        np.concatenate([below[::-1], [zero_gap], above]),
        np.concatenate([-split[::-1], [-first, first], split]),
        free,
    )
