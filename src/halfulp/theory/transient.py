"""The law of the chain at every age after a reset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from halfulp.rules.drives import Drive
from halfulp.theory.arguments import check_drifts, check_number, check_steps
from halfulp.theory.chain import Chain
from halfulp.theory.section import Section

__all__ = ["Evolution", "Transient", "old_state", "transient", "transients"]

Array = npt.NDArray[np.float64]

REFIT = 1.6
"""Factor of the age after which sections are fitted again."""
STRIDES = 64
"""Number of strides of each length. After twice as many steps, strides are 2, 4, 8 ... steps long."""
YOUNG = 1 << 17
"""Age up to which the law of an old state has every age."""
MOMENTS = ("stalled", "due", "mean", "square", "zeros", "root", "inverse_root", "inverse")
POWERS = np.array([0, 0, 1, 2, 0, 0.5, -0.5, -1])
"""Averages over the law: probability of a stalled update and of any update; ``v``, its square, ``v == 0``; and over
``v > 0`` those of ``v**0.5``, ``v**-0.5`` and ``v**-1``, where ``v`` is the value.
"""


@dataclass(frozen=True)
class Transient:
    """Behaviour of a state at each age, from 0 to the last. Values are in units of the drive's scale.

    `moments` are averages over the law at each age, of shape ``(len(ages), len(MOMENTS))``. `fall` are the e-folds by
    which the drive's scale falls per step.
    """

    ages: npt.NDArray[np.int64]
    moments: Array
    beta: float
    drive: Drive
    start: float
    fall: float

    def moment(self, name: str) -> Array:
        """Return the average of one of the moments (see the source) at each age."""
        return np.asarray(self.moments[:, MOMENTS.index(name)])

    @property
    def stalled(self) -> Array:
        """Stalled fraction of the update of a state of each age."""
        due = self.moment("due")
        return np.where(due > 0, self.moment("stalled") / np.where(due > 0, due, 1.0), 0.0)

    @property
    def mean(self) -> Array:
        """Mean stored value."""
        return self.moment("mean")

    @property
    def deviation(self) -> Array:
        """Standard deviation of the stored value."""
        return np.asarray(np.sqrt(np.maximum(self.moment("square") - self.mean**2, 0.0)))

    @property
    def exact_mean(self) -> Array:
        """Mean of the same EMA in full precision."""
        start = self.start * np.exp(self.ages * math.log(self.beta))
        return np.asarray(start + self.drive.mean * (1 - self.beta) * self._inputs(1))

    @property
    def exact_deviation(self) -> Array:
        """Standard deviation of the same EMA in full precision."""
        return np.asarray((1 - self.beta) * np.sqrt(self.drive.variance * self._inputs(2)))

    def _inputs(self, power: int) -> Array:
        """Sum over the inputs so far of a power of their weight in today's unit, ``(beta * exp(fall))**age``."""
        log_ratio = power * (math.log(self.beta) + self.fall)
        ages = self.ages.astype(float)
        return np.asarray(np.expm1(ages * log_ratio) / math.expm1(log_ratio) if log_ratio else ages)

    @property
    def lag(self) -> Array:
        """Log ratio of the stored to the exact value: of means, or of root mean squares for a signed state."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.drive.nonnegative:
                lag = np.log(self.mean / self.exact_mean)
            else:
                lag = 0.5 * np.log(self.moment("square") / (self.exact_mean**2 + self.exact_deviation**2))
        return np.where(self.ages > 0, lag, 0.0)


def transient(chain: Chain, steps: int, *, start: float = 0.0) -> Transient:
    """Return the law of a state at every age from 0 to `steps`.

    It starts at a value in units of the drive's scale, rounded to the grid: 0 after a reset. The evolution is cached:
    asking again costs nothing, and asking for more steps continues from the last one. Old states advance several steps
    at a time, and ages in between are interpolated.

    Examples
    --------
    >>> from halfulp.numbers.formats import get_format
    >>> law = transient(Chain(get_format("fp8"), 0.999, "nearest"), 1000)
    >>> law.stalled[[10, 100, 1000]].round(2)
    array([0.49, 0.93, 1.  ])
    """
    check_steps(steps)
    return transients(chain, (0.0,), steps, start=start)[0]


def transients(chain: Chain, drifts: tuple[float, ...], steps: int, *, start: float = 0.0) -> tuple[Transient, ...]:
    """Return the laws under a falling gradient scale, one per rate, at little more than the cost of one.

    Drifts are e-folds of the gradient's ``sigma`` per window ``1 / (1 - beta)``, at least 0. Values other than 0 need a
    free grid. Values of the state are in units of the drive's scale at each age.
    """
    check_drifts(drifts)
    if any(drifts) and not chain.grid.free:
        raise ValueError("a drift needs a free grid (scale=None)")
    check_number("start", start, "a finite number", math.isfinite)
    evolution = _evolution(chain, drifts, start)
    evolution.follow(steps)
    return tuple(evolution.result(i, np.arange(steps + 1)) for i in range(len(drifts)))


def old_state(chain: Chain, steps: int, *, start: float = 0.0) -> Transient:
    """Like :func:`transient`, for up to 10^12 steps: from :data:`YOUNG` on, ages are about one percent apart."""
    evolution = _evolution(chain, (0.0,), start)
    evolution.follow(steps)
    known = evolution.ages[: evolution.count]
    return evolution.result(0, np.append(np.arange(min(steps, YOUNG) + 1), known[known > YOUNG]))


@lru_cache(maxsize=64)
def _evolution(chain: Chain, drifts: tuple[float, ...], start: float) -> Evolution:
    return Evolution(chain, chain.scales, drifts, start)


class Evolution:
    """The law in each phase, advanced from age 0, with one column of masses per drift.

    Late steps are taken 2, 4, 8 ... at a time, with squares of the matrix. A state of age ``t`` hardly changes within a
    small share of ``t`` steps. `scales` are those of the drive in each phase, in units of the grid.
    """

    stepped = False
    """Whether scales jump without a drift."""

    def __init__(self, chain: Chain, scales: Array, drifts: tuple[float, ...] = (0.0,), start: float = 0.0) -> None:
        self.chain, self.start = chain, start
        self.points = chain.grid.points
        self.falls = [r * (1 - chain.beta) * (2 if chain.drive.nonnegative else 1) for r in drifts]
        self.rolled = [0] * len(drifts)
        # a stride covers at most one phase of the drift
        self.longest = math.log(2) / (max(self.falls) * len(scales)) if any(self.falls) else math.inf
        self.age, self.stride, self.next_fit = 0, 1, 0
        self.sections = [Section(chain.step, s) for s in scales]
        self.mass = np.zeros((len(scales), len(self.points), len(drifts)))
        for k, scale in enumerate(scales):
            self.mass[k, chain.grid.index(start * scale)] = 1 / len(scales)
        self.count = 0
        self.ages = np.zeros(1024, np.int64)
        self.moments = np.zeros((1024, len(drifts), len(MOMENTS)))
        self._observe = [self._observables(s) for s in scales]
        self._doubled = np.searchsorted((self.points[1:] + self.points[:-1]) / 2, 2 * self.points)
        self._fit()
        self._record()

    def follow(self, steps: int) -> None:
        """Advance to an age of at least `steps`."""
        while self.age < steps:
            self.advance()

    def result(self, which: int, ages: npt.NDArray[np.int64]) -> Transient:
        """Return the law under one of the drifts, at ages up to the present one."""
        from scipy.interpolate import CubicSpline, PchipInterpolator

        moments = self.moments[: self.count, which]
        if self.count > 1:
            # scales that change in steps leave ripples in the moments, through which a spline would oscillate
            curve = PchipInterpolator if self.stepped or self.falls[which] else CubicSpline
            moments = np.asarray(curve(self.ages[: self.count], moments)(ages))
        return Transient(ages, moments, self.chain.beta, self.chain.drive, self.start, self.falls[which])

    def advance(self) -> None:
        """Advance by one stride."""
        if self.age >= self.next_fit:
            self._fit()
        if self._next_stride() > self.stride:
            self.stride *= 2
            for section in self.sections:
                section.double()
        for section, mass in zip(self.sections, self.mass, strict=True):
            section.advance(mass)
        self.age += self.stride
        self._rescale()
        self._record()

    def _next_stride(self) -> int:
        """Return the number of steps of the next stride."""
        longer = self.age >= 2 * STRIDES * self.stride and 2 * self.stride <= self.longest
        return 2 * self.stride if longer else self.stride

    def _phases_fallen(self, fall: float) -> int:
        """Whole phases by which the drive's scale has fallen in the middle of the next stride."""
        middle = self.age + (self._next_stride() + 1) / 2
        return round(middle * fall / math.log(2) * len(self.sections))

    def _fit(self) -> None:
        """Fit the sections, with room for the growth of an exact average until the next fit."""
        self.next_fit = int(self.age * REFIT) + 3
        log_beta = math.log(self.chain.beta)
        growth = math.expm1(self.next_fit * log_beta) / math.expm1(self.age * log_beta) if self.age else 1.0
        for section, mass in zip(self.sections, self.mass, strict=True):
            section.fit(mass, growth if self.chain.drive.nonnegative else math.sqrt(growth), 0.25 if self.age else 1.0)

    def _observables(self, scale: float) -> Array:
        value = self.points / scale
        positive = value > 0
        safe = np.where(positive, value, 1.0)
        due = np.ones_like(value)
        due[self.points == 0] -= self.chain.drive.idle
        root = np.sqrt(safe)
        columns = (
            self.chain.step.stalls(scale), due, value, value * value, (value == 0).astype(float),
            positive * root, positive / root, positive / safe,
        )  # fmt: skip
        return np.stack(columns, axis=1)

    def _record(self) -> None:
        if self.count == len(self.ages):
            self.ages = np.concatenate([self.ages, np.zeros_like(self.ages)])
            self.moments = np.concatenate([self.moments, np.zeros_like(self.moments)])
        self.ages[self.count] = self.age
        for section, mass, observe in zip(self.sections, self.mass, self._observe, strict=True):
            self.moments[self.count] += mass[section.inside].T @ observe[section.inside]
        # the scale falls by whole phases; the remainder is corrected in the values
        left = np.array(self.falls) * self.age - np.array(self.rolled) * math.log(2) / len(self.sections)
        self.moments[self.count] *= np.exp(left[:, None] * POWERS)
        self.count += 1

    def _rescale(self) -> None:
        """Lower the drive's scale by whole phases: to the next phase, or to the last phase with values doubled."""
        for which, fall in enumerate(self.falls):
            due, law = self._phases_fallen(fall), self.mass[:, :, which]
            if self.rolled[which] == due:
                continue
            for _ in range(due - self.rolled[which]):
                wrapped = np.bincount(self._doubled, weights=law[0], minlength=len(self.points))
                law[:-1], law[-1] = law[1:].copy(), wrapped
            self.rolled[which] = due
            for section, mass in zip(self.sections, self.mass, strict=True):
                section.cover(mass)
