"""The chain of a format without exponent: the unit of its grid doubles as the block's largest element grows.

In an even block with a power-of-two scale the grid stands still until an element outgrows it. Then the unit doubles,
and every code is rounded to half. Each phase does so once its law has it that half of all blocks have an element that
is too large, a mean field: the unit follows the typical block, and elements are independent given the unit.

Against ensembles of blocks (:mod:`halfulp.theory.blocks`) the cost of a cycle is within a few percent for 8 bits and a
third for 4 bits, at a hundredth of the time. That is what the planner needs; predictions of stalling take the ensemble.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format
from halfulp.theory.chain import Chain
from halfulp.theory.transient import Transient, Walk
from halfulp.theory.window import Window

__all__ = ["block_transient"]

Array = npt.NDArray[np.float64]

PHASES = 8
"""Positions of the scale within an octave of the unit."""


def block_transient(fmt: Format, beta: float, rounding: str, steps: int, *, block_size: int = 128) -> Transient:
    """Law of a second moment in homogeneous blocks with power-of-two scales, at every age from 0 to `steps`.

    Parameters
    ----------
    fmt
        A format of 8 bits or fewer.
    beta, rounding
        As of :class:`~halfulp.theory.chain.Chain`. Nearest rounding never gives zero, as the library's optimizers do.
    steps
        Last age.
    block_size
        Elements that share a scale.

    Examples
    --------
    >>> from halfulp.numbers.formats import get_format
    >>> law = block_transient(get_format("uint4"), 0.999, "nearest", 1000)
    >>> law.stalled[[10, 100, 1000]].round(2)
    array([0.74, 0.97, 1.  ])
    """
    if not fmt.scaled:
        raise ValueError(f"{fmt.name} is stored without scales: ask for halfulp.theory.transient.transient")
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    walk = _walk(fmt, beta, rounding, block_size)
    while walk.age < steps:
        walk.advance()
    return walk.result(0, steps)


@lru_cache(maxsize=64)
def _walk(fmt: Format, beta: float, rounding: str, block_size: int) -> _RisingUnit:
    return _RisingUnit(Chain(fmt, beta, rounding, scale=fmt.max, zero_floor=True), block_size)


class _RisingUnit(Walk):
    """The law in each phase on the grid of codes; a unit that doubles is a scale of the drive that is halved."""

    stepped = True

    def __init__(self, chain: Chain, block_size: int) -> None:
        self.block_size = block_size
        points, self.scales = chain.grid.points, 2.0 ** ((np.arange(PHASES) + 0.5) / PHASES)
        self._halved = _halving(points, chain.grid.split if chain.rounding == "nearest" else None)
        zero = (points == 0).astype(float)
        self.scales *= 2.0 ** math.ceil(math.log2(chain.format.reach / (1 - chain.beta)))
        for k in range(PHASES):
            while self._outgrown(chain, zero, self.scales[k]):
                self.scales[k] /= 2
        super().__init__(chain, self.scales)

    def _outgrown(self, chain: Chain, law: Array, scale: float) -> bool:
        """Whether half of the blocks have an element whose successor is beyond the grid."""
        gain = (1 - chain.beta) * scale
        beyond = 1 - chain.drive.cdf((chain.format.reach - chain.beta * chain.grid.points) / gain)
        return float(law @ beyond) * self.block_size > math.log(2)

    def _rescale(self) -> None:
        moved = False
        for k, mass in enumerate(self.mass):
            while self._outgrown(self.chain, mass[:, 0] / mass.sum(), self.scales[k]):
                mass[:] = self._halved @ mass
                self.scales[k] /= 2
                self.windows[k] = Window(self.chain.step, self.scales[k], self.stride)
                self._observe[k] = self._observables(self.scales[k])
                moved = True
        if moved:
            self._fit()


def _halving(points: Array, split: Array | None) -> Array:
    """Law of each point's half rounded to the points: to nearest (ties to even) with splits, else stochastically."""
    half, count = points / 2, np.arange(len(points))
    low = np.clip(np.searchsorted(points, half, side="right") - 1, 0, len(points) - 2)
    if split is None:
        share = (half - points[low]) / (points[low + 1] - points[low])
    else:
        share = np.where(half == split[low], low % 2, half > split[low])
    matrix = np.zeros((len(points), len(points)))
    matrix[low, count], matrix[low + 1, count] = 1 - share, share
    return matrix
