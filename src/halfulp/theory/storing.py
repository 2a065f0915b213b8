"""How values become what is stored in blocks: scales, codes and rounding, in float32 as the library computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from halfulp.theory.blocks import Blocks

__all__ = ["Storing"]

Single = npt.NDArray[np.float32]


class Storing:
    """The rounding of values in blocks.

    Parameters
    ----------
    blocks
        Format, scale kind, rounding and floor; whether values are non-negative is that of its drive.
    rng
        Of stochastic rounding.
    """

    def __init__(self, blocks: Blocks, rng: np.random.Generator) -> None:
        self.blocks, self.rng = blocks, rng
        fmt = blocks.format
        if fmt.kind == "codebook":
            grid = np.array(fmt.grid(), dtype=np.float32)
            self.levels = grid[grid >= 0] if blocks.drive.nonnegative else grid
            self.splits = (self.levels[1:] + self.levels[:-1]) / 2

    def store(self, y: Single) -> tuple[Single, Single]:
        """Rounded values and their codes (in units of the scale)."""
        fmt = self.blocks.format
        if not fmt.scaled:
            code = self._round(y)
            return code, code
        largest = (y if self.blocks.drive.nonnegative else np.abs(y)).max(axis=1, keepdims=True)
        scale = largest / np.float32(fmt.reach)
        if self.blocks.scale_kind == "pow2":
            scale = np.exp2(np.ceil(np.log2(np.where(scale > 0, scale, np.float32(1)))))
        z = y * np.where(largest > 0, 1 / np.where(largest > 0, scale, np.float32(1)), np.float32(0))
        code = self._level(z) if fmt.kind == "codebook" else self._round(z)
        if self.blocks.zero_floor and self.blocks.drive.nonnegative and self.blocks.rounding == "nearest":
            np.copyto(code, np.float32(fmt.smallest), where=(code == 0) & (z > 0))
        return code * np.where(largest > 0, scale, np.float32(0)), code

    def _round(self, z: Single) -> Single:
        """On the grid of a float or integer format: adding a large number and taking it off rounds to its spacing."""
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
        """Among the levels of a codebook."""
        if self.blocks.rounding == "nearest":
            return np.asarray(self.levels[np.searchsorted(self.splits, z)])
        low = np.clip(np.searchsorted(self.levels, z, side="right") - 1, 0, len(self.levels) - 2)
        share = (z - self.levels[low]) / (self.levels[low + 1] - self.levels[low])
        return np.asarray(self.levels[low + (self.rng.random(z.shape, dtype=np.float32) < share)])
