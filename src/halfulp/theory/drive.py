"""What an EMA averages, as a distribution: squared gradients (chi-square) or gradients (normal).

A :class:`Drive` is in units of its own scale: the gradient's standard deviation ``sigma`` for a normal drive, its
square for a chi-square one. The chain needs two functions of it, the distribution and its partial mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["GRADIENT", "SQUARE", "Drive"]

Array = npt.NDArray[np.float64]

TAIL = 1e-9
"""Probability that is left out at each end of a drive."""


@dataclass(frozen=True)
class Drive:
    """Law of one input of an EMA.

    Parameters
    ----------
    kind
        ``"square"``: ``sigma**2 * chi2_dof / dof``, a second moment, shared by `dof` coordinates; ``"normal"``:
        ``N(ratio * sigma, sigma**2)``, a first moment or a weight.
    dof
        Degrees of freedom of a square.
    ratio
        Mean over standard deviation of a normal drive.
    mixture
        ``(share, scale)`` pairs: at each step the gradient is drawn with one of these factors of ``sigma``. A scale of
        0 is a step without gradient; unequal scales are heavy tails. Shares add up to 1.

    Examples
    --------
    >>> Drive("square").mean, Drive("square").variance
    (1.0, 2.0)
    >>> Drive("square", mixture=((0.9, 0.0), (0.1, 1.0))).mean
    0.1
    """

    kind: Literal["square", "normal"]
    dof: float = 1.0
    ratio: float = 0.0
    mixture: tuple[tuple[float, float], ...] = ((1.0, 1.0),)

    def __post_init__(self) -> None:
        if self.kind not in ("square", "normal"):
            raise ValueError(f"a drive is 'square' or 'normal', got {self.kind!r}")
        if not self.dof > 0:
            raise ValueError(f"degrees of freedom are positive, got {self.dof}")
        if not math.isfinite(self.ratio):
            raise ValueError(f"the ratio of mean and deviation is finite, got {self.ratio}")
        shares = [share for share, _ in self.mixture]
        if not math.isclose(sum(shares), 1.0) or min(shares) < 0 or min(s for _, s in self.mixture) < 0:
            raise ValueError(f"a mixture is (share, scale) pairs with shares that add up to 1, got {self.mixture}")

    @property
    def nonnegative(self) -> bool:
        """Whether the EMA never becomes negative."""
        return self.kind == "square"

    @property
    def symmetric(self) -> bool:
        """Whether the law is even."""
        return self.kind == "normal" and self.ratio == 0

    def _power(self, scale: float) -> float:
        return scale * scale if self.kind == "square" else scale

    @cached_property
    def mean(self) -> float:
        """Mean of the drive."""
        base = 1.0 if self.kind == "square" else self.ratio
        return sum(share * self._power(scale) * base for share, scale in self.mixture)

    @cached_property
    def variance(self) -> float:
        """Variance of the drive."""
        square = 1 + 2 / self.dof if self.kind == "square" else 1 + self.ratio**2
        return sum(share * self._power(scale) ** 2 * square for share, scale in self.mixture) - self.mean**2

    @cached_property
    def support(self) -> tuple[float, float]:
        """Where all but :data:`TAIL` of each end lies."""
        from scipy.special import gammainccinv, ndtri

        largest = max(self._power(scale) for _, scale in self.mixture)
        if self.kind == "square":
            return 0.0, float(2 / self.dof * gammainccinv(self.dof / 2, TAIL)) * largest
        reach = float(-ndtri(TAIL))
        return min(0.0, self.ratio - reach) * largest, max(0.0, self.ratio + reach) * largest

    def cdf_and_mean(self, w: Array) -> tuple[Array, Array]:
        """``P(W <= w)`` and ``E[W; W <= w]``."""
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
        """``P(W <= w)``."""
        from scipy.special import erf

        if self.kind == "square" and self.dof == 1 and self.mixture == ((1.0, 1.0),):  # half the work
            return np.asarray(erf(np.sqrt(0.5 * np.maximum(w, 0.0))))
        return self.cdf_and_mean(w)[0]

    def _base(self, w: Array) -> tuple[Array, Array]:
        from scipy.special import erf, gammainc, ndtr

        if self.kind == "normal":
            z = w - self.ratio
            cdf = ndtr(z)
            return cdf, self.ratio * cdf - np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        w = np.clip(w, 0.0, 1e300)
        if self.dof == 1:
            root = np.sqrt(0.5 * w)
            cdf = erf(root)
            return cdf, cdf - 2 / math.sqrt(math.pi) * root * np.exp(-0.5 * w)
        half = self.dof / 2
        return gammainc(half, half * w), gammainc(half + 1, half * w)

    def sample(self, generator: np.random.Generator, size: int) -> Array:
        """Draw `size` inputs."""
        scales = np.array([scale for _, scale in self.mixture])
        picked = scales[generator.choice(len(scales), size=size, p=[share for share, _ in self.mixture])]
        if self.kind == "normal":
            return np.asarray(picked * (self.ratio + generator.standard_normal(size)))
        if self.dof == 1:
            return np.asarray((picked * generator.standard_normal(size)) ** 2)
        return np.asarray(picked**2 * generator.chisquare(self.dof, size) / self.dof)


SQUARE = Drive("square")
"""Squares of normal gradients: the second moment."""

GRADIENT = Drive("normal")
"""Normal gradients without mean: the first moment."""
