"""States in blocks that share a scale: stalling, lag and underflow of the codes.

A block's scale follows its largest element. With a power-of-two scale the grid stands still in between, and the plain
chain holds down to the format's smallest value; below it codes underflow. With an fp32 scale the grid moves with the
largest element: codes that stand still decay along with it, and are thrown about when it jumps up.

What a jump gives back depends on which element jumps, so that the elements of a block are not independent given its
scale. Their law is followed as an ensemble: blocks of independent elements, stored and rounded in each step, beside the
same averages in full precision. Its figures are averages over the ensemble, with sampling errors of half a percent.

The ensemble also takes what was measured in a run: the sizes of gradients within its blocks, and how their scale went
from step to step (:class:`Blocks` describes log-normal sizes of a constant scale).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from halfulp.formats import Format
from halfulp.theory.drive import SQUARE, Drive

__all__ = ["BlockLaw", "Blocks", "block_law", "draw_sizes", "follow", "follow_gradients"]

Array = npt.NDArray[np.float64]
MOMENTS = ("stalled", "codes_stalled", "due", "lag", "zeros", "smallest", "root", "inverse_root", "inverse")


@dataclass(frozen=True)
class Blocks:
    """How a state is stored in blocks, and what drives it.

    Parameters
    ----------
    format, beta, rounding, drive
        As of :class:`~halfulp.theory.chain.Chain`. A format without scales has its exponents free.
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
        if self.format.is_float32:
            raise ValueError("float32 is not rounded: there is no law to follow")
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
    ages
        Steps since the states were zero: every one up to the last, and again from 0 where they are zeroed.
    moments
        ``(len(ages), len(MOMENTS))``: the figures below, and over ``v > 0`` the averages of ``v**0.5``, ``v**-0.5``
        and ``1 / v``, ``v`` in units of each element's scale.
    beta, drive
        Of the blocks.
    """

    ages: npt.NDArray[np.int64]
    moments: Array
    beta: float
    drive: Drive

    def moment(self, name: str) -> Array:
        """One of the columns of :attr:`moments` at each age."""
        return np.asarray(self.moments[:, MOMENTS.index(name)])

    @property
    def stalled(self) -> Array:
        """Stalled fraction of the update that a state of each age meets: the stored value is what it was."""
        return self.moment("stalled")

    @property
    def codes_stalled(self) -> Array:
        """Share of codes that stand still at that update; with fp32 scales their values move along with the scale."""
        return self.moment("codes_stalled")

    @property
    def due(self) -> Array:
        """Share of elements whose update would change the value; of these the above are shares."""
        return self.moment("due")

    @property
    def lag(self) -> Array:
        """Log of the mean over blocks of a block's sum of stored over its sum of exact values.

        Of squares, and half of that, if signed.
        """
        return self.moment("lag")

    @property
    def zeros(self) -> Array:
        """Share of codes that are zero: underflow."""
        return self.moment("zeros")

    @property
    def smallest(self) -> Array:
        """Share of codes that are the smallest positive value, where ``zero_floor`` puts what would become zero."""
        return self.moment("smallest")


def block_law(blocks: Blocks, steps: int, *, paths: int = 128, seed: int = 0) -> BlockLaw:
    """Law of a state in blocks at every age from 0 to `steps`.

    Parameters
    ----------
    blocks
        Storage and drive.
    steps
        Last age.
    paths
        Blocks that are followed.
    seed
        Of the ensemble.

    Examples
    --------
    >>> from halfulp.formats import get_format
    >>> law = block_law(Blocks(get_format("fp4", signed=False), 0.9, "stochastic", spread=1.0), 30)
    >>> bool(0.5 < law.zeros[-1] < 0.9)
    True
    """
    if steps < 0 or paths < 1:
        raise ValueError(f"steps is not negative and paths positive, got steps={steps}, paths={paths}")
    return _block_law(blocks, steps, paths, seed)


@lru_cache(maxsize=64)
def _block_law(blocks: Blocks, steps: int, paths: int, seed: int) -> BlockLaw:
    return follow(blocks, draw_sizes(paths, blocks.block_size, blocks.spread, seed), np.ones(steps + 1), seed=seed)


def draw_sizes(paths: int, block_size: int, spread: float, seed: int = 0) -> Array:
    """Log-normal ``sigma`` of the elements of blocks, ``(paths, block_size)``; blocks at all phases of an octave."""
    rng = np.random.default_rng(seed)
    phases = 2 ** rng.permutation((np.arange(paths) + 0.5) / paths)
    return np.asarray(phases[:, None] * np.exp(spread * rng.standard_normal((paths, block_size))))


def follow(blocks: Blocks, sizes: Array, levels: Array, *, seed: int = 0) -> BlockLaw:
    """Law of a state whose gradients have given sizes.

    Parameters
    ----------
    blocks
        Storage and drive; ``block_size`` and ``spread`` are not used.
    sizes
        Gradient's root mean square of each element, ``(blocks, elements)``.
    levels
        Factor at each step, of all elements or ``(steps, blocks)``: the first is of the step that a state of age 0
        meets, the last of the step after the last age.
    seed
        Of inputs and rounding.
    """
    ensemble = _Ensemble(blocks, sizes, seed)
    power = 2 if blocks.drive.nonnegative else 1

    def inputs(level: Array) -> Array:
        noise = blocks.drive.sample(ensemble.rng, sizes.size).reshape(sizes.shape)
        return np.asarray(ensemble.size * np.reshape(level, (-1, 1)) ** power * noise)

    return ensemble.law(inputs(level) for level in levels)


def follow_gradients(
    blocks: Blocks, gradients: Iterable[Array], sizes: Array, *, period: int | None = None, seed: int = 0
) -> BlockLaw:
    """Law of a state that meets given gradients.

    Parameters
    ----------
    blocks
        Storage, and by its drive whether squares are averaged; ``block_size`` and ``spread`` are not used.
    gradients
        ``(blocks, elements)`` at each step; the first is of the step that a state of age 0 meets.
    sizes
        What stored values are measured in, ``(blocks, elements)``: the gradient's root mean square.
    period
        Steps after which the state is zeroed, again and again.
    seed
        Of the rounding.

    Examples
    --------
    >>> from halfulp.formats import get_format
    >>> steps = np.random.default_rng(0).standard_normal((50, 16, 64))
    >>> law = follow_gradients(Blocks(get_format("bf16"), 0.99, "nearest"), steps, np.ones((16, 64)))
    >>> bool(0.1 < law.stalled[-1] < 0.2)
    True
    """
    squares = blocks.drive.nonnegative
    return _Ensemble(blocks, sizes, seed).law((g * g if squares else g for g in gradients), period)


class _Ensemble:
    """Stored values of all elements, the scales of their blocks, and the same averages in full precision."""

    def __init__(self, blocks: Blocks, sizes: Array, seed: int) -> None:
        self.blocks, self.rng = blocks, np.random.default_rng(seed + 1)
        self.size = sizes ** (2 if blocks.drive.nonnegative else 1)
        self.zero()
        if blocks.format.scaled:
            grid = np.array(blocks.format.grid())
            self.levels = grid[grid >= 0] if blocks.drive.nonnegative else grid
            self.splits = (self.levels[1:] + self.levels[:-1]) / 2
            if blocks.zero_floor and blocks.drive.nonnegative:
                self.splits[0] = 0.0

    def zero(self) -> None:
        """Start afresh."""
        self.value, self.exact, self.code = (np.zeros_like(self.size) for _ in range(3))

    def law(self, inputs: Iterable[Array], period: int | None = None) -> BlockLaw:
        """Figures at every age, from what is averaged at each step."""
        rows, ages = [], []
        for step, x in enumerate(inputs):
            ages.append(step % period if period else step)
            if ages[-1] == 0:
                self.zero()
            rows.append(self.advance(x))
        return BlockLaw(np.array(ages), np.array(rows), self.blocks.beta, self.blocks.drive)

    def advance(self, inputs: Array) -> Array:
        """Figures of the state of this age and of the update that it meets, which is done."""
        seen = self._observe()
        beta = self.blocks.beta
        step = (1 - beta) * inputs
        successor = beta * self.value + step
        self.exact = beta * self.exact + step
        value, code = self._store(successor)
        due = successor != self.value
        count = int(due.sum())
        updates = max(count, 1)
        stalled = ((value == self.value) & due).sum() / updates, ((code == self.code) & due).sum() / updates
        self.value, self.code = value, code
        return np.concatenate([stalled, [count / due.size], seen])

    def _store(self, y: Array) -> tuple[Array, Array]:
        """Rounded values and their codes (in units of the scale)."""
        fmt, dice = self.blocks.format, self.blocks.rounding == "stochastic"
        if not fmt.scaled:
            unit = np.exp2(np.floor(np.log2(np.where(y == 0, 1.0, np.abs(y)))) - fmt.mantissa_bits)
            code = np.floor(y / unit + self.rng.random(y.shape)) if dice else np.rint(y / unit)
            return code * unit, code * unit
        largest = np.abs(y).max(axis=1, keepdims=True)
        scale = largest / fmt.reach
        if self.blocks.scale_kind == "pow2":
            scale = np.exp2(np.ceil(np.log2(np.where(scale > 0, scale, 1.0))))
        z = y / np.where(largest > 0, scale, 1.0)
        if dice:
            low = np.clip(np.searchsorted(self.levels, z, side="right") - 1, 0, len(self.levels) - 2)
            share = (z - self.levels[low]) / (self.levels[low + 1] - self.levels[low])
            code = self.levels[low + (self.rng.random(z.shape) < share)]
        else:
            code = self.levels[np.searchsorted(self.splits, z)]
        return code * np.where(largest > 0, scale, 0.0), code

    def _observe(self) -> Array:
        power = 1 if self.blocks.drive.nonnegative else 2
        stored, exact = (np.sum(np.abs(x) ** power, axis=1) for x in (self.value, self.exact))
        lag = math.log(np.mean(stored / exact)) / power if exact.all() else 0.0
        relative = self.value / self.size
        positive = relative > 0
        safe = np.where(positive, relative, 1.0)
        root = np.sqrt(safe)
        zeros, smallest = np.mean(self.value == 0), 0.0
        if self.blocks.format.scaled:
            smallest = np.mean(np.abs(self.code) == self.blocks.format.smallest)
        moments = (np.mean(positive * m) for m in (root, 1 / root, 1 / safe))
        return np.array([lag, zeros, smallest, *moments])
