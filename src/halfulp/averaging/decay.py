"""Decay schedules of an average, and functions that convert one decay into another.

A schedule is any function of the update's number, starting at 1. These are frozen dataclasses with a readable repr.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "Cosine", "Decay", "Linear", "MeanTeacher", "PowerLaw", "Ramp", "Uniform", "Warmup", "as_decay", "half_life",
    "power_exponent", "power_width", "scale_decay",
]  # fmt: skip

Decay = Callable[[int], float]


@dataclass(frozen=True)
class _Constant:
    decay: float

    def __call__(self, n: int) -> float:
        return self.decay


@dataclass(frozen=True)
class Warmup:
    """``clamp(1 - (1 + (n - 1) / inv_gamma) ** -power, min_decay, decay)``, and 0 in the first update.

    The warm-up of ema-pytorch and of Crowson's k-diffusion. With `power` 2/3 the decay reaches 0.9999 after about a
    million updates, with 3/4 after 215 000. With 1 the average is the uniform mean until `decay` is reached.

    Parameters
    ----------
    decay, min_decay
        Largest and smallest decay.
    inv_gamma, power
        Positive constants of the formula.

    Examples
    --------
    >>> schedule = Warmup(decay=0.999)
    >>> [round(schedule(n), 3) for n in (1, 10, 1000, 100_000)]
    [0.0, 0.785, 0.99, 0.999]
    """

    decay: float = 0.9999
    inv_gamma: float = 1.0
    power: float = 2 / 3
    min_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self.decay)
        if self.inv_gamma <= 0 or self.power <= 0:
            raise ValueError(f"inv_gamma and power are positive, got {self.inv_gamma} and {self.power}")

    def __call__(self, n: int) -> float:
        """Return the decay of update `n`."""
        if n <= 1:
            return 0.0
        return min(max(1 - (1 + (n - 1) / self.inv_gamma) ** -self.power, self.min_decay), self.decay)


@dataclass(frozen=True)
class Ramp:
    """The ramp of TensorFlow and diffusers: ``min(decay, (1 + n) / (10 + n))``.

    Parameters
    ----------
    decay
        Final decay.

    Examples
    --------
    >>> Ramp(0.99)(8), Ramp(0.99)(10_000)
    (0.5, 0.99)
    """

    decay: float = 0.9999

    def __post_init__(self) -> None:
        _check(self.decay)

    def __call__(self, n: int) -> float:
        """Return the decay of update `n`."""
        return min(self.decay, (1 + n) / (10 + n))


@dataclass(frozen=True)
class MeanTeacher:
    """Uniform mean until `decay` is reached: ``min(1 - 1 / n, decay)`` (Tarvainen & Valpola, arXiv 1703.01780).

    Parameters
    ----------
    decay
        Final decay.

    Examples
    --------
    >>> MeanTeacher(0.99)(4), MeanTeacher(0.99)(1000)
    (0.75, 0.99)
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        _check(self.decay)

    def __call__(self, n: int) -> float:
        """Return the decay of update `n`."""
        return min(1 - 1 / n, self.decay)


@dataclass(frozen=True)
class Uniform:
    """Running mean of SWA: ``1 - 1 / n``, or ``1 - 1 / (n + 1)`` if the start counts (arXiv 1803.05407).

    Parameters
    ----------
    counts_start
        Whether the initial weights are part of the mean.

    Examples
    --------
    >>> Uniform()(4), Uniform(counts_start=True)(4)
    (0.75, 0.8)
    """

    counts_start: bool = False

    def __call__(self, n: int) -> float:
        """Return the decay of update `n`."""
        return n / (n + 1) if self.counts_start else 1 - 1 / n


@dataclass(frozen=True)
class PowerLaw:
    """Averaging window that is a fixed share of the training so far: ``(1 - 1 / n) ** (gamma + 1)``.

    Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv 2312.02696. The weight of
    step ``i`` in the average of step ``n`` grows as ``i ** gamma``. `sigma` is the width of that profile relative to
    ``n``, between 0 and ``1 / sqrt(12)``.

    Parameters
    ----------
    gamma
        Exponent. 0 gives the uniform mean.

    Examples
    --------
    >>> round(PowerLaw.of_width(0.1).gamma, 4)
    6.9372
    """

    gamma: float

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma is at least 0, got {self.gamma}")

    @classmethod
    def of_width(cls, sigma: float) -> PowerLaw:
        """Return the profile whose standard deviation is `sigma` of the training so far."""
        return cls(power_exponent(sigma))

    @property
    def sigma(self) -> float:
        """Width of the profile relative to the training so far."""
        return power_width(self.gamma)

    def __call__(self, n: int) -> float:
        """Return the decay of update `n`."""
        return (1 - 1 / n) ** (self.gamma + 1)


@dataclass(frozen=True)
class Linear:
    """Linear schedule from `start` to `end` in `steps` updates, constant afterwards.

    Parameters
    ----------
    start, end
        Decay of the first update, and of update `steps`.
    steps
        Number of updates, at least 1.

    Examples
    --------
    >>> schedule = Linear(0.5, 1.0, 11)
    >>> schedule(1), schedule(6), schedule(99)
    (0.5, 0.75, 1.0)
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check(self.start, self.end, steps=self.steps)

    def __call__(self, n: int) -> float:
        """Return the decay of update `n`."""
        return self.start + (self.end - self.start) * min(max(n - 1, 0) / max(self.steps - 1, 1), 1.0)


@dataclass(frozen=True)
class Cosine:
    """Half-cosine schedule from `start` to `end` in `steps` updates, constant afterwards (BYOL and DINO: to 1).

    Parameters
    ----------
    start, end
        Decay of the first update, and of update `steps`.
    steps
        Number of updates, at least 1.

    Examples
    --------
    >>> schedule = Cosine(0.5, 1.0, 11)
    >>> schedule(1), round(schedule(6), 3), schedule(99)
    (0.5, 0.75, 1.0)
    """

    start: float = 0.996
    end: float = 1.0
    steps: int = 10_000

    def __post_init__(self) -> None:
        _check(self.start, self.end, steps=self.steps)

    def __call__(self, n: int) -> float:
        """Return the decay of update `n`."""
        share = min(max(n - 1, 0) / max(self.steps - 1, 1), 1.0)
        return self.end - (self.end - self.start) * (math.cos(math.pi * share) + 1) / 2


def as_decay(decay: float | Decay) -> Decay:
    """Return a schedule, given a number or a schedule."""
    if callable(decay):
        return decay
    _check(decay)
    return _Constant(float(decay))


def _check(*decays: float, steps: int = 1) -> None:
    for decay in decays:
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0.0 <= decay <= 1.0:
            raise ValueError(f"a decay lies between 0 and 1 (a schedule is a function of the update), got {decay!r}")
    if steps < 1:
        raise ValueError(f"a schedule takes at least one update, got {steps}")


def scale_decay(decay: float, batch_ratio: float) -> float:
    """Return the decay that keeps the dynamics of an EMA when the batch grows: ``decay ** batch_ratio``.

    Busbridge et al., How to Scale Your EMA, arXiv 2307.13813. The optimizer follows its own rule (SGD: ``lr`` times the
    ratio; Adam: times its square root). The smaller decay also stalls fewer updates.

    Parameters
    ----------
    decay
        Decay at the old batch size, in [0, 1].
    batch_ratio
        New batch size divided by the old one.

    Examples
    --------
    >>> round(scale_decay(0.999, 8), 6)
    0.992028
    """
    _check(decay)
    if not batch_ratio > 0:
        raise ValueError(f"the ratio of batch sizes is positive, got {batch_ratio}")
    return float(decay**batch_ratio)


def half_life(decay: float) -> float:
    """Return the number of updates after which half of an average is left: ``log(1/2) / log(decay)``.

    Parameters
    ----------
    decay
        Decay in [0, 1].

    Examples
    --------
    >>> round(half_life(0.999), 1)
    692.8
    """
    _check(decay)
    if decay in (0.0, 1.0):
        return 0.0 if decay == 0.0 else math.inf
    return math.log(0.5) / math.log(decay)


def power_width(gamma: float) -> float:
    """Return the relative width of a power profile: ``sqrt((g + 1) / ((g + 2)^2 (g + 3)))`` with ``g = gamma``.

    Parameters
    ----------
    gamma
        Exponent, as in :class:`PowerLaw`.

    Examples
    --------
    >>> round(power_width(6.94), 3)
    0.1
    """
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def power_exponent(sigma: float) -> float:
    """Return the exponent of the power profile with a given relative width, the inverse of :func:`power_width`.

    Parameters
    ----------
    sigma
        Relative width.

    Raises
    ------
    ValueError
        If `sigma` lies outside ``(0, 1 / sqrt(12)]``. The upper end is the width of the uniform mean.

    Examples
    --------
    >>> round(power_exponent(0.1), 2)
    6.94
    """
    if not 0 < sigma <= power_width(0.0):
        raise ValueError(f"a relative width lies in (0, {power_width(0.0):.4f}], got {sigma}")
    low, high = 0.0, 1.0
    while power_width(high) > sigma:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if power_width(middle) > sigma else (low, middle)
    return (low + high) / 2
