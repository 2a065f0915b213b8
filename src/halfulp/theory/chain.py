"""The exact law of a stored EMA coordinate, as a Markov chain on the format's grid.

A :class:`Chain` specifies the format, the decay, the rounding and the drive.
:func:`~halfulp.theory.transient.transient` follows its law step by step from a reset (or any start).
:func:`~halfulp.theory.stationary.stationary` finds its limit. Both average over the position of the drive's scale
within an octave of the grid, unless the chain specifies it.

The law is exact up to truncation (1e-10 of the mass), the number of phases, and the thinning of grids that are much
finer than an update (:mod:`halfulp.theory.grid`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format
from halfulp.numbers.quantizer import check_rounding
from halfulp.rules.drives import SQUARE, Drive
from halfulp.theory.arguments import check_beta, check_signed
from halfulp.theory.grid import Grid, fixed_grid, free_grid
from halfulp.theory.transition import Step

__all__ = ["Chain"]

Array = npt.NDArray[np.float64]
MOST_PHASES = 96


@dataclass(frozen=True)
class Chain:
    """Storage and drive of a state.

    Parameters
    ----------
    format
        The grid. float32 counts as exact and has no chain.
    beta, rounding
        Decay, in (0, 1), and ``"nearest"`` or ``"stochastic"``.
    drive
        Law of the input.
    scale
        ``None``: the exponent range is unlimited and the phase unknown, as for a float with a scale. A number: the
        drive's scale in units of a fixed grid (``sigma**2`` for a square drive, ``sigma`` for a normal one), with
        subnormals, saturation and underflow.
    zero_floor
        Whether nearest rounding of a non-negative state never gives zero (fixed grids).
    phases
        Number of positions of the scale within an octave to average over. Default: by format.
    fineness
        Points of a thinned grid per standard deviation of an update. Default: by drive. Thinning increases the variance
        of the law by at most ``1 / (6 fineness**2)``.
    """

    format: Format
    beta: float
    rounding: str
    drive: Drive = SQUARE
    scale: float | None = None
    zero_floor: bool = False
    phases: int | None = None
    fineness: int | None = None

    def __post_init__(self) -> None:
        check_beta(self.beta)
        check_rounding(self.rounding)
        if self.format.is_float32:
            raise ValueError("float32 is not rounded: there is no chain to follow")
        check_signed(self.format, self.drive)
        if self.scale is None and self.format.kind != "float":
            raise ValueError(
                f"{self.format.name} has no free exponent: give the drive's scale= in units of its grid, or use "
                "halfulp.theory.blocks for a scale that follows the block"
            )
        if self.scale is not None and not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale is a positive number in units of the grid, got {self.scale}")

    @cached_property
    def grid(self) -> Grid:
        """States of the chain."""
        if self.scale is None:
            return free_grid(self.format, self.drive, self.beta, self.fineness)
        return fixed_grid(self.format, self.drive, self.beta, self.scale, self.zero_floor, self.fineness)

    @property
    def step(self) -> Step:
        """Law of one step."""
        return Step(self.grid, self.drive, self.beta, self.rounding)

    @cached_property
    def scales(self) -> Array:
        """Scale of the drive in each phase, in units of the grid."""
        if self.scale is not None:
            return np.array([self.scale])
        # averages over phases converge exponentially once phases are closer than the law is wide; 16-bit states with
        # long memories have narrow laws: at 0.999 the error is 0.0002 with 8 phases, and negligible with 12
        default = 4 if self.drive.symmetric else 12 if self.format.mantissa_bits >= 7 else 8
        if self.drive.mean:  # if inputs hardly vary, the stalled fraction changes within a small part of an octave
            width = math.sqrt(self.drive.variance) / abs(self.drive.mean)
            default = min(max(default, math.ceil(1.5 / width)), MOST_PHASES)
        n = default if self.phases is None else self.phases
        return np.asarray(2.0 ** ((np.arange(n) + 0.5) / n))
