"""States in blocks that share a scale: stalling, lag and underflow of the codes.

A block's scale follows its largest element. With a power-of-two scale the grid stands still in between, and the plain
chain holds down to the format's smallest value; below it codes underflow. With an fp32 scale the grid moves with the
largest element: codes that stand still decay along with it, and are thrown about when it jumps up.

What a jump gives back depends on which element jumps, so that the elements of a block are not independent given its
scale. Their law is followed as an ensemble: blocks of independent elements, stored and rounded in each step, beside the
same averages in full precision, in float32 as the library computes. Its figures are averages over the ensemble, and
:attr:`BlockLaw.errors` says how sure they are: :func:`block_law` follows as many blocks as it takes.

The ensemble also takes what was measured in a run: the sizes of gradients within its blocks, and how their scale went
from step to step (:class:`Blocks` describes log-normal sizes of a constant scale).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format
from halfulp.rules.drives import SQUARE, Drive
from halfulp.theory.sizes import draw_sizes
from halfulp.theory.stepper import StoredAverage, successor
from halfulp.theory.storing import Storing

__all__ = ["BlockLaw", "Blocks", "block_law", "follow", "follow_gradients"]

Array = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
MOMENTS = ("stalled", "codes_stalled", "due", "lag", "zeros", "smallest", "root", "inverse_root", "inverse")
ERRORS = ("stalled", "lag", "zeros")
BATCH, MOST = 128, 8192
"""Blocks that are followed at a time, which stay in a processor's cache, and in all."""


@dataclass(frozen=True)
class Blocks:
    """How a state is stored in blocks, and what drives it.

    Parameters
    ----------
    format, beta, rounding, drive
        As of :class:`~halfulp.theory.chain.Chain`. A format without scales has its exponents free.
    scale_kind
        ``"pow2"`` or ``"fp32"``, see :class:`halfulp.numbers.scaling.Scaling`.
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
        Decay and drive of the blocks.
    errors
        ``(len(ages), 3)``: standard errors of :attr:`stalled`, :attr:`lag` and :attr:`zeros` as figures of an infinite
        ensemble, from the differences between blocks, which are independent.
    paths
        Blocks that were followed.
    """

    ages: npt.NDArray[np.int64]
    moments: Array
    beta: float
    drive: Drive
    errors: Array
    paths: int

    def moment(self, name: str) -> Array:
        """One of the columns of :attr:`moments` at each age."""
        return np.asarray(self.moments[:, MOMENTS.index(name)])

    def error(self, name: str) -> Array:
        """Standard error of ``"stalled"``, ``"lag"`` or ``"zeros"`` at each age."""
        return np.asarray(self.errors[:, ERRORS.index(name)])

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


def block_law(
    blocks: Blocks, steps: int, *, paths: int | None = None, precision: float = 0.01, seed: int = 0
) -> BlockLaw:
    """Law of a state in blocks at every age from 0 to `steps`.

    Parameters
    ----------
    blocks
        Storage and drive.
    steps
        Last age.
    paths
        Blocks that are followed; by default as many times 128 as `precision` takes, at most 8192.
    precision
        Standard error of :attr:`~BlockLaw.stalled`, :attr:`~BlockLaw.lag` and :attr:`~BlockLaw.zeros` that is allowed
        at any age. Even blocks have 0.01 with 128 or 256 of them; the lag of log-normal blocks, where one element makes
        the sum, may take a thousand.
    seed
        Seed of the ensemble.

    Examples
    --------
    >>> from halfulp.numbers.formats import get_format
    >>> law = block_law(Blocks(get_format("fp4", signed=False), 0.9, "stochastic", spread=1.0), 30)
    >>> bool(0.5 < law.zeros[-1] < 0.9), bool(law.errors.max() <= 0.01)
    (True, True)
    """
    if steps < 0 or (paths is not None and paths < 1):
        raise ValueError(f"steps is not negative and paths positive, got steps={steps}, paths={paths}")
    if not precision > 0:
        raise ValueError(f"precision is a standard error above 0, e.g. 0.01; got {precision}")
    return _block_law(blocks, steps, paths, precision, seed)


@lru_cache(maxsize=64)
def _block_law(blocks: Blocks, steps: int, paths: int | None, precision: float, seed: int) -> BlockLaw:
    laws: list[BlockLaw] = []
    wanted = paths or MOST
    while len(laws) * BATCH < wanted:
        first = len(laws) * BATCH
        sizes = draw_sizes(min(BATCH, wanted - first), blocks.block_size, blocks.spread, seed, first=first)
        laws.append(follow(blocks, sizes, np.ones(steps + 1), seed=seed + 2 * first))
        if paths is None and _together(laws).errors.max() <= precision:
            break
    return _together(laws)


def _together(laws: list[BlockLaw]) -> BlockLaw:
    """One ensemble of several."""
    if len(laws) == 1:
        return laws[0]
    law, shares = laws[0], np.array([x.paths for x in laws], dtype=np.float64)
    shares /= shares.sum()
    moments = np.tensordot(shares, [x.moments for x in laws], axes=1)
    degree, column = 1 if law.drive.nonnegative else 2, MOMENTS.index("lag")
    ratios = np.exp(degree * np.array([x.lag for x in laws]))
    moments[:, column] = np.log(shares @ ratios) / degree
    weights = np.repeat(shares[:, None, None], len(ERRORS), axis=2) * np.ones((1, len(law.ages), 1))
    weights[:, :, ERRORS.index("lag")] *= ratios / (shares @ ratios)
    errors = np.sqrt(np.square(weights * np.array([x.errors for x in laws])).sum(axis=0))
    return replace(law, moments=moments, errors=errors, paths=sum(x.paths for x in laws))


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
        Seed of inputs and rounding.
    """
    ensemble = _Ensemble(blocks, sizes, seed)
    power = 2 if blocks.drive.nonnegative else 1

    def inputs(level: Array) -> Single:
        factor = np.asarray(np.reshape(level, (-1, 1)) ** power, dtype=np.float32)
        return np.asarray(_draw(blocks.drive, ensemble.rng, sizes.shape) * ensemble.size * factor)

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
        Seed of the rounding.

    Examples
    --------
    >>> from halfulp.numbers.formats import get_format
    >>> steps = np.random.default_rng(0).standard_normal((50, 16, 64))
    >>> law = follow_gradients(Blocks(get_format("bf16"), 0.99, "nearest"), steps, np.ones((16, 64)))
    >>> bool(0.1 < law.stalled[-1] < 0.2)
    True
    """
    squares = blocks.drive.nonnegative
    ensemble = _Ensemble(blocks, sizes, seed)
    scaled = ((g * ensemble.unit).astype(np.float32) for g in gradients)
    return ensemble.law((g * g if squares else g for g in scaled), period)


class _Ensemble:
    """Stored values of all elements, the scales of their blocks, and the same averages in full precision.

    All in float32, as the library computes, each block in units of a power of two near its largest gradient.
    """

    def __init__(self, blocks: Blocks, sizes: Array, seed: int) -> None:
        self.blocks, self.rng = blocks, np.random.Generator(np.random.SFC64(seed + 1))
        self.storing = Storing(blocks, self.rng)
        largest = np.abs(sizes).max(axis=1, keepdims=True)
        power = 2 if blocks.drive.nonnegative else 1
        self.unit = np.exp2(-np.floor(np.log2(np.where(largest > 0, largest, 1.0))))
        self.size = ((sizes * self.unit) ** power).astype(np.float32)
        self.inverse_size = 1 / np.maximum(self.size, np.float32(1e-37))
        self.ones = np.ones(sizes.shape[1], dtype=np.float32)
        self.zero()

    def zero(self) -> None:
        """Start afresh."""
        self.average = StoredAverage(self.blocks.beta, self.storing.store, np.zeros_like(self.size))
        self.exact = np.zeros_like(self.size)

    def law(self, inputs: Iterable[Single], period: int | None = None) -> BlockLaw:
        """Figures at every age, from what is averaged at each step."""
        rows, errors, ages = [], [], []
        for step, x in enumerate(inputs):
            ages.append(step % period if period else step)
            if ages[-1] == 0:
                self.zero()
            row, error = self.advance(x)
            rows.append(row)
            errors.append(error)
        return BlockLaw(
            np.array(ages), np.array(rows), self.blocks.beta, self.blocks.drive, np.array(errors), len(self.size)
        )

    def advance(self, inputs: Single) -> tuple[list[float], list[float]]:
        """Figures of the state of this age and of the update that it meets, which is done; and their errors."""
        seen, errors = self._observe()
        codes = self.average.codes
        update = self.average.step(inputs)
        self.exact = successor(self.blocks.beta, self.exact, inputs)
        due, lost = self._by_block(update.due), self._by_block(update.lost)
        updates = max(float(due.sum()), 1.0)
        stalled = float(lost.sum()) / updates
        codes_stalled = np.count_nonzero((self.average.codes == codes) & update.due) / updates
        error = float(np.linalg.norm(lost - stalled * due)) / updates
        return [stalled, codes_stalled, updates / inputs.size, *seen], [error, *errors]

    def _by_block(self, x: npt.NDArray[np.bool_]) -> Array:
        return np.asarray((x.astype(np.float32) @ self.ones).astype(np.float64))

    def _observe(self) -> tuple[list[float], list[float]]:
        """Figures of the stored values, and the standard errors of lag and zeros."""
        value, code = self.average.value, self.average.codes
        blocks, degree = len(value), 1 if self.blocks.drive.nonnegative else 2
        stored, exact = ((x if degree == 1 else x * x) @ self.ones for x in (value, self.exact))
        lag = lag_error = 0.0
        if exact.all():
            ratio = stored.astype(np.float64) / exact
            mean = max(float(ratio.mean()), 1e-300)
            lag = math.log(mean) / degree
            lag_error = float(ratio.std()) / (mean * degree * math.sqrt(blocks))
        empty = self._by_block(value == 0) / value.shape[1]
        zeros, zeros_error = float(empty.mean()), float(empty.std()) / math.sqrt(blocks)
        smallest = 0.0
        if self.blocks.format.scaled:
            smallest = np.count_nonzero(np.abs(code) == np.float32(self.blocks.format.smallest)) / code.size
        relative = value * self.inverse_size
        positive = relative > 0
        inverse = np.divide(np.float32(1), relative, out=np.zeros_like(relative), where=positive)
        np.maximum(relative, np.float32(0), out=relative)
        moments = (float(m.mean(dtype=np.float64)) for m in (np.sqrt(relative), np.sqrt(inverse), inverse))
        return [lag, zeros, smallest, *moments], [lag_error, zeros_error]


def _draw(drive: Drive, rng: np.random.Generator, shape: tuple[int, ...]) -> Single:
    """Inputs in units of their scale."""
    if drive.shared != 1 or drive.mixture != ((1.0, 1.0),):
        return drive.sample(rng, math.prod(shape)).reshape(shape).astype(np.float32)
    noise = rng.standard_normal(shape, dtype=np.float32)
    if drive.nonnegative:
        noise *= noise
        return noise
    return noise + np.float32(drive.ratio) if drive.ratio else noise
