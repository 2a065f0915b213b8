"""The chain's law at every age after a reset."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from halfulp.theory.chain import Chain
from halfulp.theory.drive import Drive

__all__ = ["Transient", "transient", "transients"]

Array = npt.NDArray[np.float64]

DEAD = 1e-11
"""Mass at each end of the live window that is moved to the window's edge."""
DENSE_STEPS = 4096
"""Steps that are followed one by one; later ones are taken 2, 4, 8 ... at a time."""
STRIDE_STEPS = 2048
"""Strides of each length."""
MOMENTS = ("stalled", "due", "mean", "square", "zeros", "root", "inverse_root", "inverse")
"""Averages over the law: probability of a lost and of any update; of the value ``v``, its square, ``v == 0``, and over
``v > 0`` of ``v**0.5``, ``v**-0.5``, ``v**-1``."""


@dataclass(frozen=True)
class Transient:
    """What happens to a state of each age. Values are in units of the drive's scale.

    Parameters
    ----------
    ages
        Steps since the start, increasing; every one up to :data:`DENSE_STEPS`, then at growing distances.
    moments
        ``(len(ages), len(MOMENTS))``: averages over the law at each age.
    beta, drive, start
        Of the chain.
    fall
        E-folds by which the drive's scale falls in a step.
    final
        Law at the last age, ``(phases, points)``; ``None`` if the walk has gone on since.
    """

    ages: npt.NDArray[np.int64]
    moments: Array
    beta: float
    drive: Drive
    start: float
    fall: float
    final: Array | None = field(repr=False)

    def moment(self, name: str) -> Array:
        """Average of one of the moments (see the source) at each age."""
        return np.asarray(self.moments[:, MOMENTS.index(name)])

    @property
    def stalled(self) -> Array:
        """Stalled fraction of the update that a state of each age meets."""
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
        log_beta, ages = math.log(self.beta), self.ages.astype(float)
        start = self.start * np.exp(ages * log_beta)
        if not self.fall:
            return np.asarray(start + self.drive.mean * -np.expm1(ages * log_beta))
        # sum of (1 - beta) beta**(t - j) decay**j over the inputs j = 1 .. t, in units of today's scale
        decay = math.exp(-self.fall)
        ratio = self.beta / decay
        tail = (1 - self.beta) * -np.expm1(ages * math.log(ratio)) / (1 - ratio)
        return np.asarray(start + self.drive.mean * tail)

    @property
    def exact_deviation(self) -> Array:
        """Standard deviation of the same EMA in full precision (no drift)."""
        factor = (1 - self.beta) / (1 + self.beta) * -np.expm1(2 * self.ages * math.log(self.beta))
        return np.asarray(np.sqrt(self.drive.variance * factor))

    @property
    def lag(self) -> Array:
        """Log ratio of the stored to the exact value: of the means, or of the root mean squares of a signed state."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.drive.nonnegative:
                lag = np.log(self.mean / self.exact_mean)
            else:
                lag = 0.5 * np.log(self.moment("square") / (self.exact_mean**2 + self.exact_deviation**2))
        return np.where(self.ages > 0, lag, 0.0)

    def interpolate(self, values: Array, ages: npt.ArrayLike) -> Array:
        """Values given at :attr:`ages`, at any ages up to the last."""
        return np.asarray(np.interp(np.asarray(ages, float), self.ages, values))


def transient(chain: Chain, steps: int, *, start: float = 0.0) -> Transient:
    """Law of a state at every age from 0 to `steps`.

    Parameters
    ----------
    chain
        Format, decay, rounding and drive.
    steps
        Last age.
    start
        Value at age 0 in units of the drive's scale (rounded to the grid); 0 after a reset.

    Returns
    -------
    Transient
        Its last age may lie a little beyond `steps` where several are taken at a time. The walk is kept in memory:
        asking again costs nothing, and asking for more steps goes on from the last.

    Examples
    --------
    >>> from halfulp.formats import get_format
    >>> law = transient(Chain(get_format("fp8"), 0.999, "nearest"), 1000)
    >>> law.stalled[[10, 100, 1000]].round(2)
    array([0.49, 0.93, 1.  ])
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    return transients(chain, (0.0,), steps, start=start)[0]


def transients(chain: Chain, drifts: tuple[float, ...], steps: int, *, start: float = 0.0) -> tuple[Transient, ...]:
    """Laws under a gradient scale that falls, one for each rate, at little more than the cost of one.

    Parameters
    ----------
    chain, steps, start
        As for :func:`transient`.
    drifts
        E-folds of the gradient's ``sigma`` per window ``1 / (1 - beta)``, 0 or above; others than 0 need a free grid.
        Values are in units of the drive's scale at each age.
    """
    if any(drifts) and not chain.grid.free:
        raise ValueError("a drift needs a free grid (scale=None)")
    if not all(0 <= r < math.inf for r in drifts):
        raise ValueError(f"drifts are rates of 0 or above, got {drifts}")
    walk = _walk(chain, drifts, start)
    while walk.age < steps:
        walk.advance()
    return tuple(walk.result(i, steps) for i in range(len(drifts)))


@lru_cache(maxsize=64)
def _walk(chain: Chain, drifts: tuple[float, ...], start: float) -> _Walk:
    return _Walk(chain, drifts, start)


class _Walk:
    """The law on its live window, stepped from age 0; one column of masses a drift."""

    def __init__(self, chain: Chain, drifts: tuple[float, ...], start: float) -> None:
        self.chain, self.step, self.scales, self.start = chain, chain.step, chain.scales, start
        self.points = chain.grid.points
        self.falls = [r * (1 - chain.beta) * (2 if chain.drive.nonnegative else 1) for r in drifts]
        self.rolled = [0] * len(drifts)
        self.low, self.high = 0, len(self.points)
        self.age, self.stride, self.next_window = 0, 1, 1
        self.mass = np.zeros((len(self.scales), len(self.points), len(drifts)))
        for k, scale in enumerate(self.scales):
            self.mass[k, chain.grid.index(start * scale)] = 1 / len(self.scales)
        self._built = (-1, -1)
        self.count = 0
        self.ages = np.zeros(1024, np.int64)
        self.moments = np.zeros((1024, len(drifts), len(MOMENTS)))
        self._observe_all = np.stack([self._observables(s) for s in self.scales])
        self.settled, self.next_check, self.limit = False, 0, self.moments[0].copy()
        self._window()
        self._record()

    def result(self, which: int, steps: int) -> Transient:
        """The law under one of the drifts, up to an age that was reached."""
        count = int(np.searchsorted(self.ages[: self.count], steps)) + 1
        final = self._full()[..., which] if count == self.count else None
        beta, drive = self.chain.beta, self.chain.drive
        moments = self.moments[:count, which]
        return Transient(self.ages[:count], moments, beta, drive, self.start, self.falls[which], final)

    def advance(self) -> None:
        """Go on by one stride."""
        if self._settled():
            return
        if self.age >= self.next_window:
            self.next_window = max(self.age + 1, int(self.age * 1.6))
            self._window()
        elif self.stride * STRIDE_STEPS <= self.age - DENSE_STEPS:
            self.stride *= 2
            self._double()
        self.mass = (self._matrix @ self.mass.reshape(-1, len(self.falls))).reshape(self.mass.shape)
        self.age += self.stride
        for which, fall in enumerate(self.falls):
            if fall:
                self._drift(which, fall)
        self._record()

    def _settled(self) -> bool:
        """Stop stepping once nothing changes any more: from then on the last moments hold for every age.

        They are compared over two stretches of some windows. Under a drift they have the ripple of the phases' steps,
        and averages over whole ripples are compared.
        """
        if not self.settled and self.age >= self.next_check and self.stride == 1:
            self.next_check = self.age + math.ceil(2 / (1 - self.chain.beta))
            for which, fall in enumerate(self.falls):
                ripple = math.log(2) / (fall * len(self.scales)) if fall else 1.0
                stretch = round(ripple * math.ceil(4 / (1 - self.chain.beta) / ripple))
                if self.count < 2 * stretch + 2:
                    return False
                known = self.moments[: self.count, which]
                now, before = known[-stretch:].mean(axis=0), known[-2 * stretch : -stretch].mean(axis=0)
                change = np.abs(now - before) / np.maximum(np.abs(now), 1e-3)
                if change.max() > (1e-3 if fall else 1e-8):
                    return False
                self.limit[which] = now
            self.settled = True
        if self.settled:
            self.age *= 2
            self._append(self.limit)
        return self.settled

    def _full(self) -> Array:
        full = np.zeros((len(self.scales), len(self.points), len(self.falls)))
        full[:, self.low : self.high] = self.mass
        return full

    def _observables(self, scale: float) -> Array:
        value = self.points / scale
        positive = value > 0
        safe = np.where(positive, value, 1.0)
        due = np.ones_like(value)
        due[self.points == 0] -= sum(share for share, factor in self.chain.drive.mixture if factor == 0)
        root = np.sqrt(safe)
        columns = (
            self.step.stalls(scale), due, value, value * value, (value == 0).astype(float),
            positive * root, positive / root, positive / safe,
        )  # fmt: skip
        return np.stack(columns, axis=1)

    def _record(self) -> None:
        self._append(self.mass.reshape(-1, len(self.falls)).T @ self._observe)

    def _append(self, moments: Array) -> None:
        if self.count == len(self.ages):
            self.ages = np.concatenate([self.ages, np.zeros_like(self.ages)])
            self.moments = np.concatenate([self.moments, np.zeros_like(self.moments)])
        self.ages[self.count] = self.age
        self.moments[self.count] = moments
        self.count += 1

    def _window(self) -> None:
        """Fit the window to where the mass is, with room to grow until the next fit, and build its matrix."""
        full = self._full() if self.age else self.mass
        alive = full.sum(axis=(0, 2))
        low = int(np.searchsorted(np.cumsum(alive), DEAD))
        high = len(alive) - int(np.searchsorted(np.cumsum(alive[::-1]), DEAD))
        room = (1 - self.chain.beta) * self.scales.max() / 2 * np.array(self.chain.drive.support)
        high = max(high, int(np.searchsorted(self.points, max(self.points[high - 1], 0.0) * 2 + room[1])) + 1)
        if not self.chain.drive.nonnegative:
            low = min(low, int(np.searchsorted(self.points, min(self.points[low], 0.0) * 2 + room[0])) - 1)
        step = max(1, len(self.points) // 32)  # few windows, so that a matrix serves again
        low, high = max(low // step * step, 0), min(-(-high // step) * step, len(self.points))
        kept = full[:, low:high].copy()
        kept[:, 0] += full[:, :low].sum(axis=1)
        kept[:, -1] += full[:, high:].sum(axis=1)
        self.low, self.high, self.mass = low, high, kept
        if self._built != (low, high):
            self._built = (low, high)
            self._matrix = self.step.matrix(self.scales, low, high)
            self._observe = self._observe_all[:, low:high].reshape(-1, len(MOMENTS))
            for _ in range(int(math.log2(self.stride))):
                self._double()

    def _double(self) -> None:
        self._matrix = self._matrix @ self._matrix
        self._matrix.data[self._matrix.data < 1e-15] = 0.0
        self._matrix.eliminate_zeros()

    def _drift(self, which: int, fall: float) -> None:
        """Let the drive's scale fall, by whole phases: a phase down, or to the last phase with values doubled."""
        due = round(self.age * fall / math.log(2) * len(self.scales))
        points = self.points[self.low : self.high]
        while self.rolled[which] < due:
            doubled = np.minimum(np.searchsorted(points, 2 * points * (1 - 1e-12)), len(points) - 1)
            wrapped = np.bincount(doubled, weights=self.mass[0, :, which], minlength=len(points))
            self.mass[:, :, which] = np.concatenate([self.mass[1:, :, which], wrapped[None]])
            self.rolled[which] += 1
            if self.rolled[which] % len(self.scales) == 0:
                self.next_window = self.age  # the window follows at the next step
