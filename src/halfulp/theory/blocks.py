"""States in blocks that share a scale: stalling, lag and underflow of the codes.

A block's scale follows its largest element. With a power-of-two scale the grid stands still in between, and the plain
chain holds down to the format's smallest value; below it codes underflow. With an fp32 scale the grid moves with the
largest element: codes that stand still decay along with it, and are thrown about when it jumps up.

The model is a mean field. The elements of a block are independent given the path of its scale, with one distribution
over codes for each size of gradient in the block; the scale's path is drawn step by step from the law of the largest
element under these distributions. An ensemble of paths is followed, and averaged. Scales live on a logarithmic lattice:
octaves for a power of two, a whole part of ``log(1 / beta)`` for fp32, so that transition matrices can be kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from halfulp.formats import Format
from halfulp.theory.drive import SQUARE, Drive
from halfulp.theory.grid import fixed_grid
from halfulp.theory.transition import Step

__all__ = ["BlockLaw", "Blocks", "block_law"]

Index = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]

FINE = 0.05
"""Relative accuracy of a gradient's size within a block, as seen by the transition matrices."""
SIZES = 0.25
"""Sizes of gradients within a block are told apart by so much of their logarithm (of the drive's scale)."""


@dataclass(frozen=True)
class Blocks:
    """How a state is stored in blocks, and what drives it.

    Parameters
    ----------
    format, beta, rounding, drive
        As of :class:`~halfulp.theory.chain.Chain`; the format must be one with scales.
    scale_kind
        ``"pow2"`` or ``"fp32"``, see :class:`halfulp.scaling.Scaling`.
    block_size
        Elements that share a scale.
    spread
        Standard deviation of the logarithm of the gradient's ``sigma`` over the elements of a block: 0 for homogeneous
        blocks, about 1 in real layers.
    zero_floor
        Nearest rounding of a non-negative state never gives zero, as the library's optimizers do.
    """

    format: Format
    beta: float
    rounding: str
    drive: Drive = SQUARE
    scale_kind: str = "pow2"
    block_size: int = 128
    spread: float = 0.0
    zero_floor: bool = True

    def __post_init__(self) -> None:
        if not self.format.scaled:
            raise ValueError(f"{self.format.name} is stored without scales; use halfulp.theory.chain")
        if self.scale_kind not in ("pow2", "fp32"):
            raise ValueError(f"a scale is 'pow2' or 'fp32', got {self.scale_kind!r}")
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(f"rounding is 'nearest' or 'stochastic', got {self.rounding!r}")
        if not 0.0 < self.beta < 1.0:
            raise ValueError(f"beta is between 0 and 1, got {self.beta}")
        if self.block_size < 1 or self.spread < 0:
            raise ValueError(
                f"a block has elements, and a spread is not negative; got {self.block_size}, {self.spread}"
            )
        if not self.drive.nonnegative and not self.format.signed:
            raise ValueError(f"a normal drive needs a signed format, {self.format.name} has no sign")


@dataclass(frozen=True)
class BlockLaw:
    """Averages over the elements of blocks, by age.

    Parameters
    ----------
    stalled
        Share of codes that stand still at the update that a state of each age meets. With power-of-two scales this is
        the stalled fraction; with fp32 scales the values move along with the scale all the same.
    lag
        Log of the mean over blocks of a block's sum of stored values over the fp32 EMA's; of the root of the sum of
        squares, if signed.
    zeros, smallest
        Share of codes that are zero, and that are the smallest positive value (where ``zero_floor`` puts what would
        become zero).
    adam
        ``E v**0.5``, ``E v**-0.5``, ``E 1/v`` in units of each element's scale, over ``v > 0``: ``(ages, 3)``.
    beta, drive
        Of the blocks.
    """

    ages: npt.NDArray[np.int64]
    stalled: Array
    lag: Array
    zeros: Array
    smallest: Array
    adam: Array
    beta: float
    drive: Drive

    def moment(self, name: str) -> Array:
        """``"root"``, ``"inverse_root"`` or ``"inverse"`` at each age."""
        return np.asarray(self.adam[:, ("root", "inverse_root", "inverse").index(name)])


def block_law(blocks: Blocks, steps: int, *, paths: int | None = None, seed: int = 0) -> BlockLaw:
    """Law of a state in blocks at every age from 0 to `steps`.

    Parameters
    ----------
    blocks
        Storage and drive.
    steps
        Last age.
    paths
        Blocks that are followed, enough for figures to about .02 by default: 128 if they are heterogeneous, else 64 of
        4 bits or 16 of 8.
    seed
        Of the paths.

    Examples
    --------
    >>> from halfulp.formats import get_format
    >>> law = block_law(Blocks(get_format("fp4", signed=False), 0.9, "stochastic", spread=1.0), 30)
    >>> bool(0.5 < law.zeros[-1] < 0.9)
    True
    """
    if paths is None:
        paths = 128 if blocks.spread else (64 if blocks.format.bits == 4 else 16)
    if steps < 0 or paths < 1:
        raise ValueError(f"steps is not negative and paths positive, got steps={steps}, paths={paths}")
    return _block_law(blocks, steps, paths, seed)


@lru_cache(maxsize=64)
def _block_law(blocks: Blocks, steps: int, paths: int, seed: int) -> BlockLaw:
    ensemble = _Ensemble(blocks, paths, seed)
    rows = np.empty((steps + 1, 7))
    for age in range(steps + 1):
        rows[age] = ensemble.observe_and_step()
    ages = np.arange(steps + 1)
    drive, log_beta = blocks.drive, math.log(blocks.beta)
    exact = drive.mean * -np.expm1(ages * log_beta)
    with np.errstate(divide="ignore", invalid="ignore"):
        if drive.nonnegative:
            lag = np.log(rows[:, 1] / exact)
        else:
            noise = drive.variance * (1 - blocks.beta) / (1 + blocks.beta) * -np.expm1(2 * ages * log_beta)
            lag = 0.5 * np.log(rows[:, 1] / (exact**2 + noise))
    lag[0] = 0.0
    if (
        blocks.rounding == "stochastic" and drive.nonnegative
    ):  # unbiased whatever the scale does, since no value exceeds the grid
        lag = np.zeros_like(lag)
    return BlockLaw(ages, rows[:, 0], lag, rows[:, 2], rows[:, 3], rows[:, 4:], blocks.beta, drive)


class _Ensemble:
    """Scales, largest elements and code distributions of some blocks, stepped together.

    The largest element of each block is followed as a particle: it is what gives the scale its memory. The others are
    distributions, one a class of elements of a block whose gradients have about the same size.
    """

    def __init__(self, blocks: Blocks, paths: int, seed: int) -> None:
        self.blocks, self.generator, self.paths = blocks, np.random.default_rng(seed), paths
        self.grid = fixed_grid(blocks.format, blocks.drive, blocks.beta, 1.0, blocks.zero_floor)
        self.levels = self.grid.points
        self.zero = int(np.flatnonzero(self.levels == 0)[0])
        full = -math.log(blocks.beta)
        self.lattice = math.log(2) if blocks.scale_kind == "pow2" else full / max(1, math.ceil(full / 0.01))
        self.path, self.log_size, self.count = self._sizes()
        self.size = np.exp(self.log_size)
        everything = self.count.sum()
        power = 1 if blocks.drive.nonnegative else 2
        self.total = np.bincount(self.path, weights=self.count * self.size**power, minlength=paths)
        self.mass = np.zeros((len(self.path), len(self.levels)))  # elements, apart from the largest of each block
        self.mass[:, self.zero] = self.count
        self.elements = everything
        self.top_class: Index | None = None  # none before the first step
        self.top_level = np.full(paths, self.zero)
        self.index = np.zeros(paths, np.int64)
        self._matrices: dict[tuple[int, int], tuple[Any, Array]] = {}
        self._probability = np.unique(
            np.concatenate([[0.0], np.geomspace(1e-6, 0.5, 300), 1 - np.geomspace(1e-12, 0.5, 500)])
        )
        self._up, self._down = _quantiles(blocks.drive, self._probability)

    def _sizes(self) -> tuple[Index, Array, Array]:
        """Classes ``(path, log of the drive's scale, elements)``: each path is a block of its own."""
        n, paths = self.blocks.block_size, self.paths
        if self.blocks.spread == 0:
            phase = (np.arange(paths) + 0.5) / paths * math.log(2)  # where the scale stands within an octave
            return np.arange(paths), phase, np.full(paths, float(n))
        power = 2 if self.blocks.drive.nonnegative else 1
        logs = power * self.blocks.spread * self.generator.standard_normal((64 * paths, n))
        by_largest = logs.max(axis=1).argsort()  # paths at the quantiles of the largest, which decides the scale
        logs = logs[by_largest[32::64]]
        logs += self.generator.permutation((np.arange(paths)[:, None] + 0.5) / paths * math.log(2))
        path, size, count = [], [], []
        for p in range(paths):
            bins, inverse, counts = np.unique(np.round(logs[p] / SIZES), return_inverse=True, return_counts=True)
            path.append(np.full(len(bins), p))
            size.append(np.bincount(inverse, weights=logs[p]) / counts)
            count.append(counts.astype(float))
        return np.concatenate(path), np.concatenate(size), np.concatenate(count)

    def _input(self, power: Array | float, shape: int) -> tuple[Array, Array]:
        """Largest inputs, up and down, of as many draws as ``1 / power``."""
        up = np.interp(self.generator.random(shape) ** power, self._probability, self._up)
        if self.blocks.drive.nonnegative:
            return up, np.zeros_like(up)
        return up, np.interp(self.generator.random(shape) ** power, self._probability, self._down)

    def _largest(self, unit: Array) -> tuple[Index, Array]:
        """Draw the largest element of each block after the update: its class and exact value.

        An element that stands in a cell with probability is there or not, afresh in each step; this is right for the
        chance to overtake the largest, which stays.
        """
        beta, gain = self.blocks.beta, 1 - self.blocks.beta
        whole = np.floor(self.mass)
        number = whole + (self.generator.random(self.mass.shape) < self.mass - whole)
        cell, level = np.nonzero(number)
        power = 1 / number[cell, level]
        if self.top_class is not None:
            cell = np.concatenate([cell, self.top_class])
            level = np.concatenate([level, self.top_level])
            power = np.concatenate([power, np.ones(self.paths)])
        up, down = self._input(power, len(cell))
        start = beta * self.levels[level] * unit[self.path[cell]]
        high, low = start + gain * self.size[cell] * up, start - gain * self.size[cell] * down
        exact = np.where(high >= -low, high, low)
        order = np.lexsort((np.abs(exact), self.path[cell]))
        winner = order[np.flatnonzero(np.append(np.diff(self.path[cell][order]) != 0, True))]
        stayed = winner >= len(cell) - self.paths if self.top_class is not None else np.zeros(self.paths, bool)
        self._hand_over(cell[winner], level[winner], stayed)
        return cell[winner], exact[winner]

    def _hand_over(self, cell: Index, level: Index, stayed: npt.NDArray[np.bool_]) -> None:
        """The former largest elements rejoin the others, the new ones leave them."""
        if self.top_class is not None:
            back = ~stayed
            np.add.at(self.mass, (self.top_class[back], self.top_level[back]), 1.0)
        new = np.flatnonzero(~stayed)
        for c, j in zip(cell[new], level[new], strict=True):
            taken = min(self.mass[c, j], 1.0)
            self.mass[c, j] -= taken
            rest = self.mass[c].sum()
            if taken < 1 and rest > 0:  # less than one stood there: take the rest from the class
                self.mass[c] *= max(rest - (1 - taken), 0.0) / rest

    def _scale(self, absmax: Array) -> Index:
        exact = np.log(absmax / self.blocks.format.max) / self.lattice
        if self.blocks.scale_kind == "pow2":
            return np.ceil(exact - 1e-12).astype(np.int64)
        return np.floor(exact + self.generator.random(self.paths)).astype(np.int64)

    def observe_and_step(self) -> Array:
        """Averages at this age, and one step."""
        unit = np.exp(self.index * self.lattice) if self.top_class is not None else np.zeros(self.paths)
        seen = self._observe(unit)
        first = self.top_class is None
        cell, exact = self._largest(unit)
        following = self._scale(np.abs(exact))
        jump = following * 0 if first else following - self.index
        stalled = self._move(following, jump)
        new_level = self._round(exact / np.exp(following * self.lattice))
        if not first:
            moved = self.levels[new_level] * np.exp(following * self.lattice) != self.levels[self.top_level] * unit
            same = new_level == self.top_level
            stalled += float((~moved if self.blocks.scale_kind == "pow2" else same).sum())
        self.top_class, self.top_level, self.index = cell, new_level, following
        if self.blocks.scale_kind == "pow2":
            self._truncate(np.abs(exact) / np.exp(following * self.lattice))
        return np.concatenate([[stalled / self.elements], seen])

    def _observe(self, unit: Array) -> Array:
        values, mass, size = self.levels * unit[self.path][:, None], self.mass, self.size[:, None]
        if self.top_class is not None:
            top = np.zeros_like(mass)
            top[self.top_class, self.top_level] = 1.0
            mass = mass + top
        weighted = mass / self.elements
        relative = values / size
        positive = relative > 0
        safe = np.where(positive, relative, 1.0)
        smallest = weighted[:, self.zero + 1].sum() + (weighted[:, self.zero - 1].sum() if self.zero else 0.0)
        power = 1 if self.blocks.drive.nonnegative else 2
        block = np.bincount(self.path, weights=(mass * values**power).sum(axis=1), minlength=self.paths)
        return np.array([
            (block / self.total).mean(),
            weighted[:, self.zero].sum(), smallest, (weighted * positive * np.sqrt(safe)).sum(),
            (weighted * positive / np.sqrt(safe)).sum(), (weighted * positive / safe).sum(),
        ])  # fmt: skip

    def _round(self, y: Array) -> Index:
        """Codes of the largest elements."""
        y = np.clip(y, self.levels[0], self.levels[-1])
        low = np.clip(np.searchsorted(self.levels, y, side="right") - 1, 0, len(self.levels) - 2)
        if self.blocks.scale_kind == "fp32":  # the top code, by definition of the scale
            return np.where(y < 0, 0, len(self.levels) - 1)
        if self.blocks.rounding == "nearest":
            return np.asarray(low + (y > self.grid.split[low]))
        share = (y - self.levels[low]) / (self.levels[low + 1] - self.levels[low])
        return np.asarray(low + (self.generator.random(len(y)) < share))

    def _move(self, following: Index, jump: Index) -> float:
        """Move every distribution; returns how many elements' codes stand still."""
        bucket = np.round((self.log_size - following[self.path] * self.lattice) / FINE).astype(np.int64)
        keys, inverse = np.unique(np.stack([bucket, jump[self.path]], axis=1), axis=0, return_inverse=True)
        new, stalled = np.empty_like(self.mass), 0.0
        order = np.argsort(inverse.ravel(), kind="stable")
        groups = np.split(order, np.cumsum(np.bincount(inverse.ravel()))[:-1])
        for (b, j), members in zip(keys.tolist(), groups, strict=True):
            matrix, stay = self._matrix(b, j)
            stalled += float((self.mass[members] @ stay).sum())
            new[members] = (matrix @ self.mass[members].T).T
        self.mass = new
        return stalled

    def _truncate(self, exact: Array) -> None:
        """No element is above the largest: one that was rounded up past it takes its place, the rest is cut off.

        Only stochastic rounding lifts an element past a larger one, and only to the next level above the exact largest
        value. Of the mass there, what came from below that value is taken as the square of its position in the gap
        (a flat density).
        """
        assert self.top_class is not None
        magnitude = np.abs(self.levels)
        above = magnitude[None, :] > np.abs(self.levels[self.top_level])[self.path][:, None]
        positive = magnitude[self.zero :]
        low = np.clip(np.searchsorted(positive, exact, side="right") - 1, 0, len(positive) - 2)
        share = np.clip((exact - positive[low]) / (positive[low + 1] - positive[low]), 0.0, 1.0) ** 2
        next_level = np.isclose(magnitude[None, :], positive[low + 1][self.path][:, None])
        past = np.where(above & next_level, self.mass * share[self.path][:, None], 0.0)
        if self.blocks.rounding == "nearest":
            past[:] = 0.0
        chance = np.bincount(self.path, weights=past.sum(axis=1), minlength=self.paths)
        for p in np.flatnonzero(self.generator.random(self.paths) < chance):
            mine = np.flatnonzero(self.path == p)
            share = past[mine].ravel() / past[mine].sum()
            which = int(self.generator.choice(len(share), p=share))
            row, level = mine[which // len(self.levels)], which % len(self.levels)
            self.mass[row, level] -= min(1.0, self.mass[row, level])
            self.mass[self.top_class[p], self.top_level[p]] += 1.0
            self.top_class[p], self.top_level[p] = row, level
        above = magnitude[None, :] > np.abs(self.levels[self.top_level])[self.path][:, None]
        kept = np.where(above, 0.0, self.mass)
        wanted = self.count - np.bincount(self.top_class, minlength=len(self.count))
        after = kept.sum(axis=1)
        scale = np.where(after > 1e-12, wanted / np.where(after > 1e-12, after, 1.0), 1.0)
        self.mass = kept * np.maximum(scale, 0.0)[:, None]

    def _matrix(self, bucket: int, jump: int) -> tuple[Any, Array]:
        """Transposed transition matrix in units of the new scale, and the chance of each code to stand still."""
        found = self._matrices.get((bucket, jump))
        if found is None:
            step = Step(self.grid, self.blocks.drive, self.blocks.beta, self.blocks.rounding)
            shrink = math.exp(-jump * self.lattice)
            scale = math.exp(bucket * FINE)
            matrix = step.matrix(scale, 0, len(self.grid), shrink, capped=self.blocks.scale_kind == "fp32")
            stay = self._still(matrix, shrink)
            found = self._matrices[bucket, jump] = (matrix, stay)
        return found

    def _still(self, matrix: Any, shrink: float) -> Array:
        """Chance that nothing changes while the scale does: the value for a power of two, the code otherwise."""
        n = len(self.levels)
        if self.blocks.scale_kind == "fp32":
            return np.asarray(matrix.diagonal())
        target = np.abs(self.levels[None, :] - self.levels[:, None] * shrink).argmin(axis=1)
        exact = np.isclose(self.levels[target], self.levels * shrink, rtol=1e-9, atol=0)
        dense = matrix.toarray()
        return np.where(exact, dense[target, np.arange(n)], 0.0)


def _quantiles(drive: Drive, probability: Array) -> tuple[Array, Array]:
    """Quantiles of the drive upwards and, as positive numbers, downwards."""
    low, high = drive.support
    bulk = np.concatenate([np.linspace(low, high, 4000), np.geomspace(1e-12, max(high, 1e-11), 2000)])
    w = np.unique(np.concatenate([bulk, -bulk]) if low < 0 else bulk[bulk >= 0])
    cdf = drive.cdf(w)
    return np.interp(probability, cdf, w), -np.interp(1 - probability, cdf, w)
