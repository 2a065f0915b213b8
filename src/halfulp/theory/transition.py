"""One step of the chain: from a stored value to the next, in closed form.

From the point ``x_i`` the exact successor is ``Y = beta x_i + (1 - beta) s W``. Write ``F`` for the distribution of
``Y`` and ``H(y) = E max(0, y - Y)``. The mass that lands on points up to ``x_j`` is

* nearest:    ``F(split_j)``, the split being the middle between ``x_j`` and ``x_{j+1}``;
* stochastic: ``(H(x_{j+1}) - H(x_j)) / (x_{j+1} - x_j)``, since rounding shares linearly and ``H' = F``;

and its differences along ``j`` are the transition probabilities. Thinned gaps share linearly under both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from halfulp.theory.drive import Drive
from halfulp.theory.grid import Grid

__all__ = ["Step", "stall_by_point"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """The law of one step on a grid.

    Parameters
    ----------
    grid, drive
        States and input.
    beta
        Decay.
    rounding
        ``"nearest"`` or ``"stochastic"``.
    """

    grid: Grid
    drive: Drive
    beta: float
    rounding: str

    def _h(self, w: Array) -> Array:
        cdf, partial = self.drive.cdf_and_mean(w)
        return w * cdf - partial

    def matrix(self, scale: float, low: int, high: int, shrink: float = 1.0, *, capped: bool = False) -> Any:
        """Transposed transition matrix between the points ``low`` to ``high - 1``.

        Mass that would leave the window goes to its ends. A sparse array of ``(high - low,) * 2``; a vector of
        probabilities is multiplied from the right. `shrink` multiplies the old values: the grid's unit before
        over the one after, where it moves. `capped`: given that no value exceeds the grid's ends.
        """
        from scipy.sparse import csr_array

        n = high - low
        points = self.grid.points[low:high]
        split = self.grid.split[low : high - 1]
        shared = np.isnan(split) if self.rounding == "nearest" else np.ones(n - 1, bool)
        gain = (1 - self.beta) * scale
        start = self.beta * shrink * points
        first = np.searchsorted(points, start + gain * self.drive.support[0], side="right") - 1
        last = np.searchsorted(points, start + gain * self.drive.support[1], side="left")
        first, last = np.clip(first, 0, n - 1), np.clip(last, 0, n - 1)
        width = last - first + 1
        row = np.repeat(np.arange(n), width)
        column = np.arange(len(row)) - np.repeat(np.cumsum(width) - width - first, width)
        up_to = np.ones(len(row))  # mass on points up to the column's; 1 at the last of a row
        gap = column < last[row]
        linear = gap.copy()
        linear[gap] = shared[column[gap]]
        if linear.any():
            here = linear | np.concatenate([[False], linear[:-1]])
            h = np.zeros(len(row))
            h[here] = self._h((points[column[here]] - start[row[here]]) / gain)
            at = np.flatnonzero(linear)
            width_w = (points[column[at] + 1] - points[column[at]]) / gain
            up_to[at] = (h[at + 1] - h[at]) / width_w
        near = gap & ~linear
        up_to[near] = self.drive.cdf((split[column[near]] - start[row[near]]) / gain)
        if capped:
            up_to = self._cap(up_to, (points[[0, -1]] - start[:, None]) / gain, row)
        mass = np.diff(up_to, prepend=0.0)
        mass[np.cumsum(width) - width] = up_to[np.cumsum(width) - width]
        keep = mass > 1e-18
        return csr_array((mass[keep], (column[keep], row[keep])), shape=(n, n))

    def _cap(self, up_to: Array, ends: Array, row: npt.NDArray[np.int64]) -> Array:
        """Condition on the exact value being within the grid; where it cannot be, leave things as they are."""
        inside = self.drive.cdf(ends)
        if self.grid.points[0] == 0:
            inside[:, 0] = 0.0
        share = (inside[:, 1] - inside[:, 0])[row]
        last = np.append(row[1:] != row[:-1], True)
        possible = (share > 1e-9) & ~last
        scaled = (up_to - inside[row, 0]) / np.where(possible, share, 1.0)
        return np.where(possible, np.clip(scaled, 0.0, 1.0), up_to)

    def stalls(self, scale: float, low: int = 0, high: int | None = None) -> Array:
        """Probability that the update of each point is lost, on the true spacing."""
        return stall_by_point(self, scale, low, len(self.grid) if high is None else high)


def stall_by_point(step: Step, scale: float, low: int, high: int) -> Array:
    """Probability, for each point, that its next update is lost. A zero that meets a zero is no update."""
    grid, gain = step.grid, (1 - step.beta) * scale
    x, below, above = grid.points[low:high], grid.below[low:high], grid.above[low:high]

    def w(y: Array) -> Array:
        return (y - step.beta * x) / gain

    if step.rounding == "nearest":
        edges = np.concatenate([[np.nan], grid.split, [np.nan]])
        lower, upper = edges[low:high], edges[low + 1 : high + 1]
        lower = np.where(np.isnan(lower), x - below / 2, lower)
        upper = np.where(np.isnan(upper), x + above / 2, upper)
        stalled = step.drive.cdf(w(upper)) - step.drive.cdf(w(lower))
    else:
        middle = step._h(w(x))

        def share(gap: Array, sign: float, end: float) -> Array:
            """Mass up to the point (above) or strictly below it."""
            safe = np.where(np.isfinite(gap) & (gap > 0), gap, 1.0)
            slope = sign * (step._h(w(x + sign * safe)) - middle) / (safe / gain)
            return np.where(np.isfinite(gap), np.where(gap > 0, slope, step.drive.cdf(w(x))), end)

        stalled = share(above, 1.0, 1.0) - share(below, -1.0, 0.0)
    no_update = sum(share for share, factor in step.drive.mixture if factor == 0)
    at_zero = x == 0
    if at_zero.any():
        at_rest = no_update if step.drive.nonnegative or grid.above[low:high][at_zero][0] > 0 else 0.0
        stalled = np.where(at_zero, np.maximum(stalled - at_rest, 0.0), stalled)
        if grid.free:
            stalled = np.where(at_zero, 0.0, stalled)
    return np.clip(stalled, 0.0, 1.0)
