"""Drives: the inputs of averages (gradients, their squares, or weights) and their distributions.

A :class:`Drive` describes what a state averages, from the declaration of a slot to the theory of its stalling. That
theory does not depend on the scale of the input, only on how it varies. The distribution of a drive is therefore in
units of its own scale: the gradient's standard deviation ``sigma`` for gradients, and ``sigma**2`` for squares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["GRADIENT", "SQUARE", "WEIGHT", "Drive", "as_drive"]

Array = npt.NDArray[np.float64]

TAIL = 1e-9
"""The probability left out at each end of a drive."""


@dataclass(frozen=True)
class Drive:
    """The distribution of one input of an average.

    Parameters
    ----------
    kind
        ``"gradient"`` is ``N(ratio * sigma, sigma**2)``, for a first moment. ``"square"`` is ``sigma**2 * chi2_shared /
        shared``, for a second moment. ``"weight"`` is the random walk of a weight, which has no scale of its own (see
        :mod:`halfulp.theory.walk`).
    shared
        The number of squares whose mean is one input.
    ratio
        The mean of a gradient over its standard deviation.
    whole_first
        Whether the average starts with the first input instead of building up from zero.
    mixture
        Pairs ``(share, scale)``: in each step the gradient is drawn with one of these factors of ``sigma``. A scale of
        0 is a step without gradient, and unequal scales give heavy tails. The shares add up to 1.

    Examples
    --------
    >>> Drive("square").mean, Drive("square").variance
    (1.0, 2.0)
    >>> Drive("square", mixture=((0.9, 0.0), (0.1, 1.0))).mean
    0.1
    """

    kind: Literal["gradient", "square", "weight"]
    shared: float = 1.0
    ratio: float = 0.0
    whole_first: bool = False
    mixture: tuple[tuple[float, float], ...] = ((1.0, 1.0),)

    def __post_init__(self) -> None:
        if self.kind not in ("gradient", "square", "weight"):
            raise ValueError(f"a drive is 'gradient', 'square' or 'weight', got {self.kind!r}")
        if not self.shared > 0:
            raise ValueError(f"the number of shared squares is positive, got {self.shared}")
        if not math.isfinite(self.ratio):
            raise ValueError(f"the ratio of mean and deviation is finite, got {self.ratio}")
        shares = [share for share, _ in self.mixture]
        if not math.isclose(sum(shares), 1.0) or min(shares) < 0 or min(s for _, s in self.mixture) < 0:
            raise ValueError(f"a mixture is (share, scale) pairs with shares that add up to 1, got {self.mixture}")

    @property
    def nonnegative(self) -> bool:
        """Whether the average is never negative."""
        return self.kind == "square"

    @property
    def symmetric(self) -> bool:
        """Whether the distribution is symmetric around zero."""
        return self.kind == "gradient" and self.ratio == 0

    @property
    def idle(self) -> float:
        """The share of steps without gradient."""
        return sum(share for share, scale in self.mixture if scale == 0)

    @property
    def active(self) -> Drive:
        """The drive of the steps with a gradient."""
        rest = [(share, scale) for share, scale in self.mixture if scale]
        return replace(self, mixture=tuple((share / (1 - self.idle), scale) for share, scale in rest))

    def _power(self, scale: float) -> float:
        return scale * scale if self.kind == "square" else scale

    @cached_property
    def mean(self) -> float:
        """The mean of the drive."""
        base = 1.0 if self.kind == "square" else self.ratio
        return sum(share * self._power(scale) * base for share, scale in self.mixture)

    @cached_property
    def variance(self) -> float:
        """The variance of the drive."""
        square = 1 + 2 / self.shared if self.kind == "square" else 1 + self.ratio**2
        return sum(share * self._power(scale) ** 2 * square for share, scale in self.mixture) - self.mean**2

    @cached_property
    def support(self) -> tuple[float, float]:
        """The interval that leaves out a probability of :data:`TAIL` at each end."""
        from scipy.special import gammainccinv, ndtri

        largest = max(self._power(scale) for _, scale in self.mixture)
        if self.kind == "square":
            return 0.0, float(2 / self.shared * gammainccinv(self.shared / 2, TAIL)) * largest
        reach = float(-ndtri(TAIL))
        return min(0.0, self.ratio - reach) * largest, max(0.0, self.ratio + reach) * largest

    def cdf_and_mean(self, w: Array) -> tuple[Array, Array]:
        """Return ``P(W <= w)`` and ``E[W; W <= w]``."""
        cdf, partial = np.zeros_like(w), np.zeros_like(w)
        for share, scale in self.mixture:
            factor = self._power(scale)
            if factor == 0:
                cdf += share * (w >= 0)
                continue
            c, m = self._base(w / factor if factor != 1 else w)
            cdf += share * c
            partial += share * factor * m
        return cdf, partial

    def cdf(self, w: Array) -> Array:
        """Return ``P(W <= w)``."""
        from scipy.special import erf

        if self.kind == "square" and self.shared == 1 and self.mixture == ((1.0, 1.0),):  # twice as fast
            return np.asarray(erf(np.sqrt(0.5 * np.maximum(w, 0.0))))
        return self.cdf_and_mean(w)[0]

    def _base(self, w: Array) -> tuple[Array, Array]:
        from scipy.special import erf, gammainc, ndtr

        if self.kind == "gradient":
            z = w - self.ratio
            cdf = ndtr(z)
            return cdf, self.ratio * cdf - np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        w = np.clip(w, 0.0, 1e300)
        if self.shared == 1:
            root = np.sqrt(0.5 * w)
            cdf = erf(root)
            return cdf, cdf - 2 / math.sqrt(math.pi) * root * np.exp(-0.5 * w)
        half = self.shared / 2
        return gammainc(half, half * w), gammainc(half + 1, half * w)

    def sample(self, generator: np.random.Generator, size: int) -> Array:
        """Draw `size` inputs."""
        scales = np.array([scale for _, scale in self.mixture])
        picked = scales[generator.choice(len(scales), size=size, p=[share for share, _ in self.mixture])]
        if self.kind == "gradient":
            return np.asarray(picked * (self.ratio + generator.standard_normal(size)))
        if self.shared == 1:
            return np.asarray((picked * generator.standard_normal(size)) ** 2)
        return np.asarray(picked**2 * generator.chisquare(self.shared, size) / self.shared)


GRADIENT = Drive("gradient")
"""Normal gradients with zero mean, for the first moment."""

SQUARE = Drive("square")
"""Squares of such gradients, for the second moment."""

WEIGHT = Drive("weight")
"""Weights, for an average of the model."""

SLOTS = {"exp_avg": GRADIENT, "exp_avg_sq": SQUARE}


def as_drive(slot: str | Drive) -> Drive:
    """Return a drive unchanged, or look up that of one of Adam's moments by name.

    Examples
    --------
    >>> as_drive("exp_avg_sq") is SQUARE
    True
    """
    if isinstance(slot, Drive):
        return slot
    if slot not in SLOTS:
        raise ValueError(f"slot is 'exp_avg' (first moment), 'exp_avg_sq' (second moment) or a Drive, got {slot!r}")
    return SLOTS[slot]
