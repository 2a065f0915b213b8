"""Stalling of formats without exponent in even blocks with a power-of-two scale, up to any age.

The method follows an ensemble of blocks, each with its own scale. The first steps are taken one by one, stored like the
library's. After that the elements of a block advance by 2, 4, 8 ... steps at a time, as in the chain. Their next codes
are drawn from a power of the chain's transition matrix on the block's grid, and the scale is set again from the largest
element. So the scale, which the elements of a block share, is followed in each block. A chain whose unit doubles for
the typical block (:mod:`halfulp.theory.rising_unit`) doubles it too late and never lets it fall.

The stalled fraction is the chain's probability at each stored code, averaged over the ensemble. In a step that changes
the block's scale, an update stalls only if the new scale can represent the old value. This matters because the values
of dynamic codebooks are not on the grid of half their scale, and the largest element of a block moves back and forth
across the end of an octave.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format
from halfulp.rules.drives import Drive
from halfulp.theory.arguments import check_steps
from halfulp.theory.blocks import Blocks
from halfulp.theory.grid import Grid
from halfulp.theory.stepper import StoredAverage
from halfulp.theory.storing import Storing, pow2_exponent
from halfulp.theory.transition import Step

__all__ = ["sampled_law"]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

PHASES, BLOCKS = 16, 16
"""Number of positions of the gradient's scale within an octave, and of blocks at each."""
BLOCK_SIZE = 128
STRIDES = 64
"""Strides of each length. A stride is at most the age divided by this."""
BEYOND = 1.25
"""How far elements that outgrow their block within a stride are followed, relative to the block's largest code."""


def sampled_law(fmt: Format, beta: float, rounding: str, drive: Drive, steps: int) -> tuple[Index, Array]:
    """Return ages, and the stalled fraction at each, in even blocks of 128 with power-of-two scales.

    The last age is at least `steps`. Ages are complete up to 128, then increasingly sparse. The format is an integer or
    a codebook of 8 bits or fewer. Nearest rounding never gives zero in a second moment. Laws are cached by length, one
    per octave.

    Examples
    --------
    >>> from halfulp.numbers.formats import get_format
    >>> from halfulp.rules.drives import SQUARE
    >>> ages, stalled = sampled_law(get_format("uint4"), 0.999, "nearest", SQUARE, 1000)
    >>> bool(stalled[ages == 100] > 0.95)
    True
    """
    if fmt.kind == "float" or fmt.bits > 8:
        raise ValueError(
            f"{fmt.name} is not an integer or codebook of 8 bits: ask for halfulp.theory.transient.transient"
        )
    check_steps(steps)
    return _law(Blocks(fmt, beta, rounding, drive), 1 << max(steps, 63).bit_length())


@lru_cache(maxsize=64)
def _law(blocks: Blocks, steps: int) -> tuple[Index, Array]:
    ensemble = _Sampled(blocks)
    while ensemble.ages[-1] < steps:
        ensemble.advance()
    return np.array(ensemble.ages), np.array(ensemble.stalled)


class _Sampled:
    """The ensemble: first values in the gradient's unit, then codes, and the exponent of each block's scale."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks, self.rng = blocks, np.random.Generator(np.random.SFC64(0))
        self.phases = 2.0 ** ((np.arange(PHASES) + 0.5) / PHASES)
        self.phase = np.repeat(np.arange(PHASES), BLOCKS)
        start = np.zeros((PHASES * BLOCKS, BLOCK_SIZE), dtype=np.float32)
        self.average = StoredAverage(blocks.beta, Storing(blocks, self.rng).store, start)
        self.ages, self.stalled, self.stride = [0], [0.0], 1
        levels = np.array(blocks.format.grid())
        low = 0.0 if blocks.drive.nonnegative else -blocks.format.reach
        self.levels = levels[(levels >= low) & (levels <= blocks.format.reach)]
        self.step = Step(_grid(self.levels, blocks), blocks.drive, blocks.beta, blocks.rounding)
        self.offset = int(np.searchsorted(self.step.grid.points, self.levels[0]))
        self.matrices: dict[tuple[int, int], Array] = {}
        self.cumulated: dict[tuple[int, int], Array] = {}
        self.tables: dict[tuple[int, int], Array] = {}
        self.other = {up: _positions(self.levels, self.levels / 2.0**up) for up in (1, -1)}

    def advance(self) -> None:
        """Advance by one stride."""
        if min(self.ages[-1], 1 / (1 - self.blocks.beta)) >= 2 * STRIDES * self.stride:
            if self.stride == 1:
                self._encode()
            self.stride *= 2
            self.matrices = {key: matrix @ matrix for key, matrix in self.matrices.items()}
            self.cumulated = {}
        if self.stride == 1:
            self._single()
        else:
            self._together()

    def _encode(self) -> None:
        """Convert the values to codes and exponents."""
        value = self.average.value
        self.exponent = pow2_exponent(np.abs(value).max(axis=1), self.blocks.format)
        self.code = self._nearest(value / np.exp2(self.exponent)[:, None])

    def _single(self) -> None:
        """Advance every element by one step, stored like the library's.

        Its stalled fraction is that of the last age.
        """
        shape = self.average.value.shape
        noise = self.blocks.drive.sample(self.rng, math.prod(shape)).reshape(shape)
        update = self.average.step((noise * self.phases[self.phase, None]).astype(np.float32))
        self.stalled[-1] = update.stalled
        self.ages.append(self.ages[-1] + 1)
        self.stalled.append(self.stalled[-1])

    def _together(self) -> None:
        """Advance several steps at a time."""
        points = self.step.grid.points
        where = np.empty_like(self.code)
        for key, members in self._groups():
            rows = self.code[members] + self.offset
            drawn = np.searchsorted(self._rising(key), rows + self.rng.random(rows.shape), side="right")
            where[members] = drawn - rows * len(points)
        values = points[where]
        up = pow2_exponent(np.abs(values).max(axis=1), self.blocks.format)
        self.code = where - self.offset
        moved = np.flatnonzero(up)
        self.code[moved] = self._place(values[moved] / np.exp2(up[moved])[:, None])
        self.exponent[moved] += up[moved]
        self.ages.append(self.ages[-1] + self.stride)
        self.stalled.append(self._stalled())
        live = {key for key, _ in self._groups()}
        self.matrices = {key: matrix for key, matrix in self.matrices.items() if key in live}
        self.cumulated = {key: rising for key, rising in self.cumulated.items() if key in live}

    def _rising(self, key: tuple[int, int]) -> Array:
        """Return the cumulative probabilities of a stride, row after row, as one list that rises by 1 per row."""
        if key not in self.matrices:
            matrix = self._matrix(self._scale(key))
            for _ in range(int(math.log2(self.stride))):
                matrix = matrix @ matrix
            self.matrices[key] = matrix
        if key not in self.cumulated:
            rising = np.minimum(np.cumsum(self.matrices[key], axis=1), 1.0)
            rising[:, -1] = 1.0
            rising += np.arange(len(rising), dtype=np.float64)[:, None]
            self.cumulated[key] = rising.ravel()
        return self.cumulated[key]

    def _matrix(self, scale: float) -> Array:
        """Return the transition matrix of a step between points.

        The next scale's grid applies just above the largest code. That grid may lack the largest code. The mass that
        stochastic rounding would put there goes to the points beside it, which preserves the mean.
        """
        matrix = np.asarray(self.step.matrix(scale, 0, len(self.step.grid)).toarray())
        if self.blocks.rounding == "nearest":
            return matrix
        points, drive = self.step.grid.points, self.blocks.drive
        gain, last = (1 - self.blocks.beta) * scale, self.offset + len(self.levels) - 1
        for at, out in ((last, 1), (self.offset, -1))[: 1 if drive.nonnegative else 2]:
            if self.levels[at - self.offset] / 2 in self.levels:
                continue
            # in terms of -y below zero, since a normal drive without mean is even
            start = out * self.blocks.beta * points
            inner, end, outer = (out * points[at + k * out] for k in (-1, 0, 1))
            far, near = (outer - start) / gain, (end - start) / gain
            (cdf_far, mean_far), (cdf_near, mean_near) = drive.cdf_and_mean(far), drive.cdf_and_mean(near)
            shared = (far * cdf_far - mean_far - near * cdf_near + mean_near) / (far - near)
            mass = np.minimum(np.maximum(shared - cdf_near, 0.0), matrix[:, at])
            matrix[:, at] -= mass
            matrix[:, at - out] += mass * (outer - end) / (outer - inner)
            matrix[:, at + out] += mass * (end - inner) / (outer - inner)
        return matrix

    def _groups(self) -> list[tuple[tuple[int, int], Index]]:
        """Return the blocks of each phase and scale."""
        return [
            ((phase, int(e)), np.flatnonzero((self.phase == phase) & (self.exponent == e)))
            for phase in range(PHASES)
            for e in np.unique(self.exponent[self.phase == phase])
        ]

    def _scale(self, key: tuple[int, int]) -> float:
        return float(self.phases[key[0]]) / 2.0 ** key[1]

    def _stalled(self) -> float:
        total = 0.0
        for (phase, exponent), members in self._groups():
            code = self.code[members]
            stalls, within, within_half = self._table((phase, exponent))
            rises = -np.expm1(within[code].sum(axis=1))
            falls = np.exp(within_half[code].sum(axis=1))
            stays = stalls[code].sum(axis=1)
            total += float(stays.sum() - (rises + falls) @ stays)
            for up, chance in ((1, rises), (-1, falls)):
                some = np.flatnonzero(chance > 1e-6)
                if len(some):
                    there = self.other[up][code[some]]
                    lost = np.where(there >= 0, self._table((phase, exponent + up))[0][there], 0.0)
                    total += float(chance[some] @ lost.sum(axis=1))
        return total / self.code.size

    def _table(self, key: tuple[int, int]) -> Array:
        """Return per code the probability of a stall, and log probabilities of staying within the grid and its half."""
        if key not in self.tables:
            inside = slice(self.offset, self.offset + len(self.levels))
            gain = (1 - self.blocks.beta) * self._scale(key)
            rows = [self.step.stalls(self._scale(key))[inside]]
            for end in (self.blocks.format.reach, self.blocks.format.reach / 2):
                within = self.blocks.drive.cdf((end - self.blocks.beta * self.levels) / gain)
                if not self.blocks.drive.nonnegative:
                    within = within - self.blocks.drive.cdf((-end - self.blocks.beta * self.levels) / gain)
                rows.append(np.log(np.maximum(within, 1e-300)))
            self.tables[key] = np.stack(rows)
        return self.tables[key]

    def _nearest(self, values: Array) -> Index:
        return np.asarray(np.searchsorted((self.levels[1:] + self.levels[:-1]) / 2, values))

    def _place(self, values: Array) -> Index:
        """Return the codes of values on another block's scale."""
        if self.blocks.rounding == "nearest":
            code = self._nearest(values)
            if self.blocks.drive.nonnegative:
                code[(code == 0) & (values > 0)] = 1
            return code
        low = np.clip(np.searchsorted(self.levels, values, side="right") - 1, 0, len(self.levels) - 2)
        share = (values - self.levels[low]) / (self.levels[low + 1] - self.levels[low])
        return np.asarray(low + (self.rng.random(values.shape) < share), dtype=np.int64)


def _positions(levels: Array, values: Array) -> Index:
    """Return the indices of values among the levels, or -1."""
    at = np.minimum(np.searchsorted(levels, values), len(levels) - 1)
    return np.where(levels[at] == values, at, -1)


def _grid(levels: Array, blocks: Blocks) -> Grid:
    """Return the codes of a block and, above them, some of the next scale's, to which larger values are rounded."""
    reach = blocks.format.reach
    above = 2 * levels[(2 * levels > reach) & (2 * levels <= BEYOND * reach)]
    below = 2 * levels[(2 * levels < -reach) & (2 * levels >= -BEYOND * reach)]
    points = np.concatenate([below, levels, above])
    split = (points[1:] + points[:-1]) / 2
    if blocks.drive.nonnegative:
        split[0] = 0.0  # the floor
    if len(above):
        split[len(below) + len(levels) - 1] = reach  # from here on the next scale applies
    if len(below):
        split[len(below) - 1] = -reach
    return Grid.of(points, split)
