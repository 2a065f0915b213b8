"""Block storage of values: scales, codes and rounding, computed in float32 like the library."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format

if TYPE_CHECKING:
    from halfulp.theory.blocks import Blocks

__all__ = ["Storing", "pow2_exponent"]

Single = npt.NDArray[np.float32]


def pow2_exponent(largest: npt.NDArray[Any], fmt: Format) -> npt.NDArray[np.int32]:
    """Return the exponent of the smallest power-of-two scale that fits a block's largest magnitude; 0 for zero blocks.

    Examples
    --------
    >>> from halfulp.numbers.formats import get_format
    >>> pow2_exponent(np.array([0.0, 448.0, 449.0]), get_format("float8_e4m3fn"))
    array([0, 0, 1], dtype=int32)
    """
    mantissa, exponent = np.frexp(largest)
    own_mantissa, own_exponent = math.frexp(fmt.reach)
    return np.where(largest > 0, exponent - own_exponent + (mantissa > own_mantissa), 0).astype(np.int32)


class Storing:
    """Rounding of values in blocks. The drive of the blocks says whether values are non-negative."""

    def __init__(self, blocks: Blocks, rng: np.random.Generator) -> None:
        self.blocks, self.rng = blocks, rng
        fmt = blocks.format
        if fmt.kind == "codebook":
            grid = np.array(fmt.grid(), dtype=np.float32)
            self.levels = grid[grid >= 0] if blocks.drive.nonnegative else grid
            self.middles: Single = (self.levels[1:] + self.levels[:-1]) / np.float32(2)

    def store(self, y: Single) -> tuple[Single, Single]:
        """Return the rounded values and their codes (in units of the scale)."""
        fmt = self.blocks.format
        if not fmt.scaled:
            code = self._round(y)
            return code, code
        largest = (y if self.blocks.drive.nonnegative else np.abs(y)).max(axis=1, keepdims=True)
        if self.blocks.scale_kind == "pow2":
            scale = np.ldexp(np.float32(1), pow2_exponent(largest, fmt))
        else:
            scale = largest / np.float32(fmt.reach)
        z = y * np.where(largest > 0, 1 / np.where(largest > 0, scale, np.float32(1)), np.float32(0))
        code = self._level(z) if fmt.kind == "codebook" else self._round(z)
        if self.blocks.zero_floor and self.blocks.drive.nonnegative and self.blocks.rounding == "nearest":
            np.copyto(code, np.float32(fmt.smallest), where=(code == 0) & (z > 0))
        return code * np.where(largest > 0, scale, np.float32(0)), code

    def _round(self, z: Single) -> Single:
        """Round to the grid of a float or integer format.

        Adding and subtracting a large number rounds to its spacing.
        """
        fmt = self.blocks.format
        spacing: Single | np.float32 = np.float32(1)
        if fmt.kind == "float":
            octave = (z.view(np.int32) & 0x7F800000).view(np.float32)
            if fmt.scaled:
                np.maximum(octave, np.float32(2.0**fmt.min_exponent), out=octave)
            spacing = octave * np.float32(fmt.epsilon)
        if self.blocks.rounding == "stochastic":
            dither = self.rng.random(z.shape, dtype=np.float32)
            dither -= np.float32(0.5)
            dither *= spacing
            z = z + dither
        large = spacing * np.float32(1.5 * 2**23)
        return np.asarray((z + large) - large)

    def _level(self, z: Single) -> Single:
        """Round to the levels of a codebook."""
        if self.blocks.rounding == "nearest":
            return np.asarray(self.levels[_count(self.middles, z)])
        low = np.minimum(_count(self.levels, z, equal=True), len(self.levels) - 1) - 1
        np.maximum(low, 0, out=low)
        share = (z - self.levels[low]) / (self.levels[low + 1] - self.levels[low])
        return np.asarray(self.levels[low + (self.rng.random(z.shape, dtype=np.float32) < share)])


def _count(limits: Single, z: Single, *, equal: bool = False) -> npt.NDArray[np.int64]:
    """Count the sorted limits below each number (or equal to it), with a table instead of a search."""
    ends, first = _table(limits.tobytes(), equal)
    count = first.take(z.view(np.uint32) >> np.uint32(CUT))
    above = ends.take(count)
    count += above <= z if equal else above < z
    return count


CUT = 14
"""Low bits of fp32 that the table of :func:`_count` ignores. Nine mantissa bits remain."""


@lru_cache(maxsize=16)
def _table(limits: bytes, equal: bool) -> tuple[Single, npt.NDArray[np.int64]]:
    """Return the limits and infinity, and the number of limits below the numbers with given upper bits of fp32."""
    ends = np.frombuffer(limits, dtype=np.float32)
    bits = np.arange(1 << (32 - CUT), dtype=np.uint32) << np.uint32(CUT)
    finite = (bits & np.uint32(0x7F800000)) < np.uint32(0x7F800000)
    side: Literal["right", "left"] = "right" if equal else "left"
    low, high = (
        np.searchsorted(ends, x.view(np.float32)[finite], side) for x in (bits, bits | np.uint32((1 << CUT) - 1))
    )
    if np.abs(high - low).max() > 1:
        raise ValueError(
            "two limits within a five-hundredth of each other: a table of 9 mantissa bits cannot tell them apart"
        )
    first = np.zeros(len(bits), dtype=np.int64)
    first[finite] = np.minimum(low, high)
    return np.append(ends, np.float32(np.inf)), first
