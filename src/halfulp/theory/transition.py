"""One step of the chain, from a stored value to the next, in closed form.

From the point ``x_i`` the exact successor is ``Y = beta x_i + (1 - beta) s W``. Let ``F`` be the distribution function
of ``Y`` and ``H(y) = E max(0, y - Y)``. The mass on points up to ``x_j`` is

* nearest:    ``F(split_j)``, where the split is midway between ``x_j`` and ``x_{j+1}``;
* stochastic: ``(H(x_{j+1}) - H(x_j)) / (x_{j+1} - x_j)``, since rounding splits linearly and ``H' = F``;

and its differences along ``j`` are the transition probabilities. Thinned gaps split linearly under both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from halfulp.rules.drives import Drive
from halfulp.theory.grid import Grid

__all__ = ["Step"]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """The law of one step on a grid."""

    grid: Grid
    drive: Drive
    beta: float
    rounding: str

    def _h(self, w: Array) -> Array:
        cdf, partial = self.drive.cdf_and_mean(w)
        return w * cdf - partial

    def matrix(self, scale: float, low: int, high: int) -> Any:
        """Return the transition matrix between the points ``low`` to ``high - 1``, as a sparse array in row format.

        Row ``i`` is the law of the successor of point ``low + i``. Mass that would leave the section goes to its ends.
        """
        from scipy.sparse import csr_array

        n = high - low
        points = self.grid.points[low:high]
        at_rest = self.drive.idle if self.rounding == "nearest" else 0.0
        if 0 < at_rest < 1 and np.isnan(self.grid.split[low : high - 1]).any():
            return self._idle(low, high) * at_rest + replace(self, drive=self.drive.active).matrix(scale, low, high) * (
                1 - at_rest
            )
        gain = (1 - self.beta) * scale
        start = self.beta * points
        first = np.searchsorted(points, start + gain * self.drive.support[0], side="right") - 1
        last = np.searchsorted(points, start + gain * self.drive.support[1], side="left")
        first, last = np.clip(first, 0, n - 1), np.clip(last, 0, n - 1)
        width = last - first + 1
        ends = np.cumsum(width)
        row = np.repeat(np.arange(n), width)
        column = np.arange(ends[-1]) - np.repeat(ends - width - first, width)
        up_to = self._up_to(points, self.grid.split[low : high - 1], start, gain, row, column)
        up_to[ends - 1] = 1.0
        mass = np.diff(up_to, prepend=0.0)
        mass[ends - width] = up_to[ends - width]
        return csr_array((np.maximum(mass, 0.0), column, np.append(0, ends)), shape=(n, n))

    def _idle(self, low: int, high: int) -> Any:
        """Return the transitions of a step with zero gradient under nearest rounding.

        Nothing dithers a pure decay. Even on a thinned grid it is therefore rounded on the true spacing, so that decays
        below half of it stall. Results between points are split so that the mean is preserved.
        """
        from scipy.sparse import csr_array

        points, split = self.grid.points[low:high], self.grid.split[low : high - 1]
        y, row = self.beta * points, np.arange(len(points))
        at = np.clip(np.searchsorted(points, y, side="right") - 1, 0, len(points) - 2)
        unit, offset = self.grid.above[low:high][at], y - points[at]
        kept = np.isfinite(unit) & (unit > 0)
        safe = np.where(kept, unit, 1.0)
        offset = np.where(kept, np.round(offset / safe) * safe, offset)
        share = np.clip(offset / (points[at + 1] - points[at]), 0.0, 1.0)
        share = np.where(np.isnan(split[at]), share, y > split[at])
        mass, column = np.concatenate([1 - share, share]), np.concatenate([at, at + 1])
        return csr_array((mass, (np.concatenate([row, row]), column)), shape=(len(points), len(points)))

    def _up_to(self, points: Array, split: Array, start: Array, gain: float, row: Index, column: Index) -> Array:
        """Return the mass of each row on the points up to each column, which is arbitrary at a row's last column."""
        shared = np.append(np.isnan(split) if self.rounding == "nearest" else np.ones(len(split), bool), False)
        edge = np.append(split, np.nan)
        if not shared.any():
            return self.drive.cdf((edge[column] - start[row]) / gain)
        linear = shared[column]
        linear[:-1] &= row[1:] == row[:-1]
        linear[-1] = False
        up_to = np.empty(len(row))
        needed = linear.copy()
        needed[1:] |= linear[:-1]
        h = np.zeros(len(row))
        h[needed] = self._h((points[column[needed]] - start[row[needed]]) / gain)
        at = np.flatnonzero(linear)
        up_to[at] = (h[at + 1] - h[at]) / (np.diff(points, append=np.nan)[column[at]] / gain)
        near = ~linear
        up_to[near] = self.drive.cdf((edge[column[near]] - start[row[near]]) / gain)
        return up_to

    def stalls(self, scale: float) -> Array:
        """Return the probability that each point's next update stalls, on the true spacing.

        A zero input to a zero state is not an update.
        """
        grid, gain = self.grid, (1 - self.beta) * scale
        x, below, above = grid.points, grid.below, grid.above

        def w(y: Array) -> Array:
            return (y - self.beta * x) / gain

        if self.rounding == "nearest":
            lower, upper = np.append(np.nan, grid.split), np.append(grid.split, np.nan)
            lower = np.where(np.isnan(lower), x - below / 2, lower)
            upper = np.where(np.isnan(upper), x + above / 2, upper)
            stalled = self.drive.cdf(w(upper)) - self.drive.cdf(w(lower))
        else:
            middle = self._h(w(x))

            def share(gap: Array, sign: float, end: float) -> Array:
                """Return the mass up to the point (above) or strictly below it."""
                safe = np.where(np.isfinite(gap) & (gap > 0), gap, 1.0)
                slope = sign * (self._h(w(x + sign * safe)) - middle) / (safe / gain)
                return np.where(np.isfinite(gap), np.where(gap > 0, slope, self.drive.cdf(w(x))), end)

            stalled = share(above, 1.0, 1.0) - share(below, -1.0, 0.0)
        no_update = self.drive.idle
        at_zero = x == 0
        if at_zero.any():
            at_rest = no_update if self.drive.nonnegative or above[at_zero][0] > 0 else 0.0
            stalled = np.where(at_zero, np.maximum(stalled - at_rest, 0.0), stalled)
            if grid.free:
                stalled = np.where(at_zero, 0.0, stalled)
        return np.clip(stalled, 0.0, 1.0)
