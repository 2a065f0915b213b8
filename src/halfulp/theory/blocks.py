"""States in blocks that share a scale: stalling, lag and underflow.

A block's scale follows its largest element. With a power-of-two scale the grid is fixed between changes of the scale,
and the plain chain is valid down to the format's smallest value, below which codes underflow. With an fp32 scale the
grid moves with the largest element: stalled codes decay with it, and change abruptly when it jumps up.

The effect of a jump depends on which element jumps, so the elements of a block are dependent even given its scale.
Their law is therefore estimated by an ensemble: blocks of independent elements are stored and rounded at each step,
alongside the same averages in full precision, in float32 like the library. The results are averages over the ensemble.
:attr:`BlockLaw.errors` holds their standard errors, and :func:`block_law` uses as many blocks as it needs.

The ensemble also accepts measured gradient sizes within blocks, and how their scale changed from step to step.
:class:`Blocks` describes log-normal sizes at constant scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format
from halfulp.numbers.quantizer import check_rounding
from halfulp.numbers.scaling import Scaling
from halfulp.rules.drives import SQUARE, Drive
from halfulp.theory.arguments import check_beta, check_signed, check_spread, check_steps
from halfulp.theory.sizes import draw_sizes
from halfulp.theory.stepper import StoredAverage, successor
from halfulp.theory.storing import Storing

__all__ = ["BlockLaw", "Blocks", "block_law", "follow", "follow_gradients"]

Array = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
MOMENTS = ("stalled", "codes_stalled", "due", "lag", "zeros", "smallest", "root", "inverse_root", "inverse")
ERRORS = ("stalled", "lag", "zeros")
BATCH, MOST = 128, 8192
"""Blocks processed together, which fit in a processor's cache, and the largest number in total."""


@dataclass(frozen=True)
class Blocks:
    """Storage of a state in blocks, and its drive. The first fields are those of :class:`~halfulp.theory.chain.Chain`.

    Parameters
    ----------
    scale_kind
        ``"pow2"`` or ``"fp32"``, see :class:`halfulp.numbers.scaling.Scaling`. A format without scales has unlimited
        exponents.
    block_size
        Elements per scale.
    spread
        Standard deviation of the logarithm of the gradient's ``sigma`` over the elements of a block: 0 for homogeneous
        blocks, about 1 in real layers.
    zero_floor
        Whether nearest rounding of a non-negative state never gives zero, as in the library's optimizers.
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
        Scaling(self.scale_kind)  # type: ignore[arg-type]  # which refuses an unknown kind
        check_rounding(self.rounding)
        check_beta(self.beta)
        check_steps(self.block_size, "block_size", least=1)
        check_spread(self.spread)
        check_signed(self.format, self.drive)


@dataclass(frozen=True)
class BlockLaw:
    """Averages over the elements of blocks, by age.

    Parameters
    ----------
    ages
        Steps since the states were zero, from 0 to the last age; restarting at 0 when they are reset.
    moments
        Averages at each age, ``(len(ages), len(MOMENTS))``: the quantities below, and over ``v > 0`` those of
        ``v**0.5``, ``v**-0.5`` and ``1 / v``, with ``v`` in units of each element's scale.
    errors
        Standard errors of :attr:`stalled`, :attr:`lag` and :attr:`zeros`, ``(len(ages), 3)``, estimated from the
        differences between blocks, which are independent.
    paths
        Number of blocks in the ensemble.
    """

    ages: npt.NDArray[np.int64]
    moments: Array
    beta: float
    drive: Drive
    errors: Array
    paths: int

    def moment(self, name: str) -> Array:
        """Return a column of :attr:`moments`."""
        return np.asarray(self.moments[:, MOMENTS.index(name)])

    def error(self, name: str) -> Array:
        """Return the standard error of ``"stalled"``, ``"lag"`` or ``"zeros"`` at each age."""
        return np.asarray(self.errors[:, ERRORS.index(name)])

    @property
    def stalled(self) -> Array:
        """Stalled fraction of the update of a state of each age: the stored value does not change."""
        return self.moment("stalled")

    @property
    def codes_stalled(self) -> Array:
        """Share of codes unchanged by that update. With fp32 scales their values move with the scale."""
        return self.moment("codes_stalled")

    @property
    def due(self) -> Array:
        """Share of elements whose update would change the value. Stalled fractions are relative to it."""
        return self.moment("due")

    @property
    def lag(self) -> Array:
        """Log of the ratio of two means over blocks: of a block's sum of stored values, and of its sum of exact values.

        For signed states, the sums are of squares, and the result is halved.
        """
        return self.moment("lag")

    @property
    def zeros(self) -> Array:
        """Share of codes that are zero (underflow)."""
        return self.moment("zeros")

    @property
    def smallest(self) -> Array:
        """Share of codes at the smallest positive value, which ``zero_floor`` uses instead of zero."""
        return self.moment("smallest")


def block_law(
    blocks: Blocks, steps: int, *, paths: int | None = None, precision: float = 0.01, seed: int = 0
) -> BlockLaw:
    """Return the law of a state in blocks at every age from 0 to `steps`.

    Parameters
    ----------
    paths
        Number of blocks. Default: the multiple of 128 that `precision` needs, at most 8192.
    precision
        Largest standard error of :attr:`~BlockLaw.stalled`, :attr:`~BlockLaw.lag` and :attr:`~BlockLaw.zeros` at any
        age. Even blocks reach 0.01 with 128 or 256 of them. The lag of log-normal blocks, where one element dominates
        the sum, may need a thousand.

    Examples
    --------
    >>> from halfulp.numbers.formats import get_format
    >>> law = block_law(Blocks(get_format("fp4", signed=False), 0.9, "stochastic", spread=1.0), 30)
    >>> bool(0.5 < law.zeros[-1] < 0.9), bool(law.errors.max() <= 0.01)
    (True, True)
    """
    check_steps(steps)
    if paths is not None:
        check_steps(paths, "paths", least=1)
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
    """Combine several ensembles into one."""
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
    """Return the law of a state whose gradients have given sizes. ``block_size`` and ``spread`` are not used.

    Parameters
    ----------
    sizes
        Root mean square gradient of each element, ``(blocks, elements)``.
    levels
        Factor at each step, for all elements or ``(steps, blocks)``. The first belongs to the update of a state of age
        0, the last to the update after the last age.
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
    """Return the law of a state that averages given gradients. ``block_size`` and ``spread`` are not used.

    Parameters
    ----------
    gradients
        ``(blocks, elements)`` at each step. The first belongs to the update of a state of age 0. They are squared if
        the drive is a square.
    sizes
        Units of the stored values, ``(blocks, elements)``: the root mean square gradient.
    period
        Steps between resets of the state.

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

    All values are float32, like the library's, in units of a power of two near each block's largest gradient.
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
        """Reset all states to zero."""
        self.average = StoredAverage(self.blocks.beta, self.storing.store, np.zeros_like(self.size))
        self.exact = np.zeros_like(self.size)

    def law(self, inputs: Iterable[Single], period: int | None = None) -> BlockLaw:
        """Return the averages at every age, given the inputs of each step."""
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
        """Update the states.

        Return the averages of their present values and of that update, and the standard errors.
        """
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
        """Return the averages of the stored values, and the standard errors of lag and zeros."""
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
    """Draw inputs in units of their scale."""
    if drive.shared != 1 or drive.mixture != ((1.0, 1.0),):
        return drive.sample(rng, math.prod(shape)).reshape(shape).astype(np.float32)
    noise = rng.standard_normal(shape, dtype=np.float32)
    if drive.nonnegative:
        noise *= noise
        return noise
    return noise + np.float32(drive.ratio) if drive.ratio else noise
