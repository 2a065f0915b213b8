"""The part of a grid that holds the mass, and the law of several steps on it."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from halfulp.theory.transition import Step

__all__ = ["Section"]

Array = npt.NDArray[np.float64]

DEAD = 1e-9
"""Mass at each end of a section that may be moved to its edge."""
CROWDED = 1e-8
"""Mass at the end of a section above which it is widened."""
SLACK = 0.5
"""A section is narrowed if this share of it would suffice."""
NOTHING = 1e-12
"""Probability below which a transition in several steps is dropped."""
BAND = 64
"""Rows of a banded matrix that are multiplied together."""


class Section:
    """Points ``low`` to ``high - 1`` of the grid, and the matrix of `stride` steps between them, for one phase."""

    def __init__(self, step: Step, scale: float, stride: int = 1) -> None:
        self.step, self.scale, self.stride = step, scale, stride
        self.low, self.high = 0, 0
        self._matrix = _Banded(0, [])

    @property
    def inside(self) -> slice:
        """The points, as a slice."""
        return slice(self.low, self.high)

    def fit(self, mass: Array, growth: float, room: float) -> None:
        """Move the section to the mass, if it is too narrow or much too wide.

        Parameters
        ----------
        mass
            Mass at all points, one column per law. Mass outside is moved to the section's ends.
        growth, room
            Factor by which values may grow before the next fit, and additional growth, as a share of one extreme input.
        """
        points = self.step.grid.points
        low, high = _live(mass.sum(axis=1))
        reach = room * (1 - self.step.beta) * self.scale * np.array(self.step.drive.support)
        top, bottom = max(points[high - 1], 0.0) * growth + reach[1], points[low]
        if points[0] < 0:
            bottom = min(bottom, 0.0) * growth + reach[0]
        wanted = int(np.searchsorted(points, bottom)) - 2, int(np.searchsorted(points, top)) + 2
        low, high = max(wanted[0], 0), min(wanted[1], len(points))
        if low < self.low or high > self.high or high - low < SLACK * (self.high - self.low):
            self._move(low, high)
        self._clump(mass)

    def cover(self, mass: Array) -> None:
        """Widen the section where there is mass outside. The remaining outside mass is moved to its ends."""
        if mass[: self.low].sum() + mass[self.high :].sum() > CROWDED:
            low, high = _live(mass.sum(axis=1))
            more = (self.high - self.low) // 4 + 1  # mass that drifts out once will do so again
            low = self.low if low >= self.low else max(min(low, self.low - more), 0)
            high = self.high if high <= self.high else min(max(high, self.high + more), len(mass))
            self._move(low, high)
        self._clump(mass)

    def double(self) -> None:
        """Double the number of steps per stride."""
        self.stride *= 2
        self._matrix = self._matrix.squared()

    def advance(self, mass: Array) -> None:
        """Advance the law by one stride, in place. The section grows with it."""
        points = len(self.step.grid)
        while True:
            after = self._matrix.after(mass[self.inside])
            down = self.low > 0 and after[0].sum() > CROWDED
            up = self.high < points and after[-1].sum() > CROWDED
            if not down and not up:
                mass[self.inside] = after
                return
            more = (self.high - self.low) // 4 + 1
            self._move(max(self.low - more * down, 0), min(self.high + more * up, points))

    def _move(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self._matrix = _Banded.of(self.step.matrix(self.scale, low, high))
        for _ in range(int(math.log2(self.stride))):
            self._matrix = self._matrix.squared()

    def _clump(self, mass: Array) -> None:
        if self.low > 0:
            mass[self.low] += mass[: self.low].sum(axis=0)
            mass[: self.low] = 0.0
        if self.high < len(mass):
            mass[self.high - 1] += mass[self.high :].sum(axis=0)
            mass[self.high :] = 0.0


def _live(mass: Array) -> tuple[int, int]:
    """Return the first and last point (exclusive) with at most :data:`DEAD` of the mass beyond either."""
    low = int(np.searchsorted(np.cumsum(mass), DEAD))
    return low, len(mass) - int(np.searchsorted(np.cumsum(mass[::-1]), DEAD))


class _Banded:
    """A square matrix with entries only near its diagonal, as dense blocks of :data:`BAND` rows.

    Each part is (first row, first column, entries). Zero columns at the ends are cut.
    """

    def __init__(self, size: int, parts: Iterable[tuple[int, int, Array]]) -> None:
        self.size, self.parts = size, []
        for top, left, entries in parts:
            filled = np.flatnonzero((entries > NOTHING).any(axis=0))
            if len(filled):
                first, last = int(filled[0]), int(filled[-1]) + 1
                self.parts.append((top, left + first, np.ascontiguousarray(entries[:, first:last])))

    @classmethod
    def of(cls, matrix: Any) -> _Banded:
        """Convert a sparse array in row format."""
        return cls(matrix.shape[0], _dense_parts(matrix))

    def after(self, law: Array) -> Array:
        """Return the law of the next state, for laws in columns."""
        product = np.zeros_like(law)
        for top, left, entries in self.parts:
            product[left : left + entries.shape[1]] += entries.T @ law[top : top + len(entries)]
        return product

    def squared(self) -> _Banded:
        return _Banded(self.size, self._square_parts())

    def _square_parts(self) -> Iterator[tuple[int, int, Array]]:
        tops = [top for top, _, _ in self.parts]
        for top, left, entries in self.parts:
            right = left + entries.shape[1]
            met = self.parts[max(bisect_right(tops, left) - 1, 0) : bisect_left(tops, right)]
            met = [part for part in met if part[0] + len(part[2]) > left]
            if not met:
                continue
            first = min(start for _, start, _ in met)
            product = np.zeros((len(entries), max(start + e.shape[1] for _, start, e in met) - first))
            for row, start, e in met:
                low, high = max(row, left), min(row + len(e), right)
                product[:, start - first : start - first + e.shape[1]] += (
                    entries[:, low - left : high - left] @ e[low - row : high - row]
                )
            yield top, first, product


def _dense_parts(matrix: Any) -> Iterator[tuple[int, int, Array]]:
    size, ends = matrix.shape[0], matrix.indptr
    row = np.repeat(np.arange(size), np.diff(ends))
    for top in range(0, size, BAND):
        high = min(top + BAND, size)
        inside = slice(ends[top], ends[high])
        columns = matrix.indices[inside]
        left = int(columns.min())
        entries = np.zeros((high - top, int(columns.max()) + 1 - left))
        entries[row[inside] - top, columns - left] = matrix.data[inside]
        yield top, left, entries
