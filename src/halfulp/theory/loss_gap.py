"""The loss that stored moments cost, predicted from a sample of an fp32 run's gradients.

The sample is replayed twice: with exact moments, and with moments that are stored and reset. The stored updates are the
exact ones times a common factor, plus a rest that is orthogonal to them:

* the factor acts like another learning rate. Its cost can be read from the loss of fp32 by learning rate.
* the rest acts like noise. Its cost is proportional to the share of the updates' mean square that it makes up, the
  *residual*. The proportionality constant is the only one that is fitted (:data:`PER_RESIDUAL`).

The prediction is ``L(factor * lr) - L(lr) + PER_RESIDUAL * residual``, with `L` the loss of fp32. In bf16 and fp8 it
holds up to the best learning rate of fp32. Above it, fp32 is unstable, and rounded moments are not so in the same way.
In fp4 the residual is too large, and the prediction several times too low.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halfulp.theory.update import Keep, Moments

__all__ = ["PER_RESIDUAL", "LossByRate", "UpdateChange", "loss_gap", "update_change"]

Single = npt.NDArray[np.float32]
Store = Callable[[Single], Single]
"""Function that returns the stored values for new ones."""

PER_RESIDUAL = 0.11
"""Nats per unit of residual, fitted on the scale models in ``docs/results/scale_models.md``."""


@dataclass(frozen=True)
class UpdateChange:
    """How stored moments change the updates, as sums over steps and elements. Changes of several tensors add up.

    The sums are of the squares of the `exact` updates, of the `product` of stored and exact updates, and of the squares
    of the stored updates (`square`).

    Examples
    --------
    >>> longer = UpdateChange(exact=1.0, product=1.5, square=2.25)
    >>> longer.factor, longer.residual
    (1.5, 0.0)
    """

    exact: float
    product: float
    square: float

    @property
    def factor(self) -> float:
        """The common factor: the regression of the stored updates on the exact ones."""
        return self.product / self.exact

    @property
    def residual(self) -> float:
        """Share of the stored updates' square that is no multiple of the exact updates, from 0 to 1."""
        return 1 - self.product**2 / (self.exact * self.square)

    def __add__(self, other: UpdateChange) -> UpdateChange:
        return UpdateChange(self.exact + other.exact, self.product + other.product, self.square + other.square)


def update_change(
    gradients: Single,
    *,
    betas: tuple[float, float],
    store: tuple[Store | None, Store | None],
    periods: tuple[int | None, int | None] = (None, None),
    weights: npt.ArrayLike | None = None,
) -> UpdateChange:
    """Replay recorded gradients and compare Adam's updates with stored and with exact moments.

    Parameters
    ----------
    gradients
        Float32, ``(steps, ...)``: the gradients of some elements at every step from the first one on, as
        :meth:`halfulp.GradientSample.gradients` returns them.
    betas, store, periods
        Of the first and the second moment: decay, rounding (``None`` for not at all), and steps between resets
        (``None`` for never).
    weights
        Learning rate at each step, in any unit. Default: the same at all steps.

    Examples
    --------
    A second moment that is rounded to powers of two stalls too low, so that all updates are too long:

    >>> def power_of_two(x):
    ...     return np.exp2(np.round(np.log2(np.maximum(x, 1e-30)))).astype(np.float32)
    >>> gradients = np.random.default_rng(0).standard_normal((400, 500), dtype=np.float32)
    >>> change = update_change(gradients, betas=(0.9, 0.99), store=(None, power_of_two))
    >>> round(change.factor, 1), round(change.residual, 2)
    (1.6, 0.04)
    """
    steps = len(gradients)
    rates = np.ones(steps) if weights is None else np.asarray(weights, float)
    if steps == 0 or rates.shape != (steps,):
        raise ValueError(f"there is one weight per step, and at least one step; got {rates.shape} for {steps} steps")
    if any(period is not None and period < 1 for period in periods):
        raise ValueError(f"a period is at least 1 step, or None for never; got {periods}")
    exact = Moments(gradients.shape[1:], betas)
    stored = Moments(gradients.shape[1:], betas, [*map(_both, store)], periods)
    sums = np.zeros(3)
    for rate, gradient in zip(rates, gradients, strict=True):
        right, found = exact.update(gradient), stored.update(gradient)
        sums += rate * np.array([np.vdot(right, right), np.vdot(found, right), np.vdot(found, found)])
    return UpdateChange(*map(float, sums))


def _both(store: Store | None) -> Keep | None:
    """Return a function that gives the stored values as their codes, too."""
    return None if store is None else lambda values: (store(values),) * 2


@dataclass(frozen=True)
class LossByRate:
    """Final loss of fp32 by peak learning rate, interpolated linearly in the logarithm of the rate.

    Beyond the measured rates, two or more, the line through the nearest two goes on.

    Examples
    --------
    >>> curve = LossByRate({5e-4: 2.2, 1e-3: 2.0, 2e-3: 2.1})
    >>> round(curve(1e-3), 6), round(curve(2.5e-4), 6)
    (2.0, 2.4)
    """

    losses: Mapping[float, float]

    def __post_init__(self) -> None:
        if len(self.losses) < 2 or min(self.losses) <= 0:
            raise ValueError(f"the loss by learning rate needs two positive rates or more, got {list(self.losses)}")

    def __call__(self, lr: float) -> float:
        """Return the loss at a learning rate."""
        rates = np.array(sorted(self.losses))
        values = np.array([self.losses[rate] for rate in rates])
        at = int(np.clip(np.searchsorted(rates, lr), 1, len(rates) - 1))
        share = np.log(lr / rates[at - 1]) / np.log(rates[at] / rates[at - 1])
        return float(values[at - 1] + share * (values[at] - values[at - 1]))


def loss_gap(
    change: UpdateChange,
    curve: LossByRate,
    lr: float,
    *,
    fp32_lr: float | None = None,
    per_residual: float = PER_RESIDUAL,
) -> float:
    """Predict the loss with stored moments minus that of fp32, in nats, at a peak learning rate.

    At a tuned rate, the factor has no effect. The gap is then ``per_residual * change.residual``. By default, `fp32_lr`
    is the same rate.

    Examples
    --------
    >>> curve = LossByRate({5e-4: 2.1, 1e-3: 2.0, 2e-3: 2.1})
    >>> short = UpdateChange(exact=1.0, product=0.5, square=0.25)  # updates are half as long, and otherwise exact
    >>> round(loss_gap(short, curve, 1e-3), 6), round(loss_gap(short, curve, 2e-3, fp32_lr=1e-3), 6)
    (0.1, 0.0)
    """
    base = curve(lr if fp32_lr is None else fp32_lr)
    return curve(change.factor * lr) - base + per_residual * change.residual
