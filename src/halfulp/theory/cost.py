"""The cost of rounding: the error of Adam's update at each age of its second moment.

The update ``m_hat / sqrt(v_hat)`` is compared with the fp32 first moment divided by the gradient's true scale ``s``.
Both moments are reset at age 0. Relative to the variance of the fp32 first moment, the mean squared error at age ``t``
is

``D_t = rho_t W2_t - 2 (1 + beta1**t) W1_t + 1``,  ``rho_t = (1 + beta1**t) / (1 - beta1**t)``.

``rho_t`` is the variance of the bias-corrected first moment at age ``t``, relative to that of an old one.
Once the first moment is old (``t > 2 / (1 - beta1)``) the moments are nearly independent, ``W1 = E s / sqrt(v_hat)``
and ``W2 = E s**2 / v_hat``. Before, ``m_hat`` is large where ``v_hat`` is: their ratio has a second moment near 1, so
``W2 = 1`` and ``W1 = E sqrt(v_hat) / s``. The chain gives the expectations, so no constant is fitted.

The same error of an unrounded second moment is the effect of a reset apart from rounding: it forgets an old scale.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from halfulp.theory.blocks import BlockLaw
from halfulp.theory.transient import Transient

__all__ = ["cycle_cost", "exact_parts", "neglected", "residual_cost", "squared_error", "total_cost", "update_parts"]

Array = npt.NDArray[np.float64]
Parts = tuple[Array, Array]
"""Mean square of an update, and its mean product with the exact one."""


def squared_error(parts: Parts) -> Array:
    """Return ``D_t`` from :func:`update_parts` or :func:`exact_parts`."""
    square, product = parts
    return np.asarray(square - 2 * product + 1)


def update_parts(law: Transient | BlockLaw, beta1: float, steps: int) -> Parts:
    """Return the mean square of the update and its mean product with the exact one, for ``t = 1 .. steps``.

    The law is that of a second moment, for at least that many steps. `beta1` is the decay of the first moment.
    """
    t = np.arange(1, steps + 1)
    scale = law.drive.mean * -np.expm1(t * np.log(law.beta))  # v divided by this is v_hat over the true second moment
    root, inverse_root, inverse = (
        np.interp(t, law.ages, law.moment(name)) for name in ("root", "inverse_root", "inverse")
    )
    return _parts(beta1, t, root / np.sqrt(scale), inverse_root * np.sqrt(scale), inverse * scale)


def exact_parts(law: Transient, beta1: float, steps: int) -> Parts:
    """Like :func:`update_parts` for the same second moment in full precision, under the same drift.

    A weighted sum of squares is approximated by a gamma variable of equal mean and variance. This is exact while all
    weights are equal, and old sums are narrow.
    """
    from scipy.special import gammaln

    t = np.arange(1, steps + 1)
    mean, deviation = law.exact_mean[1 : steps + 1], law.exact_deviation[1 : steps + 1]
    scale = law.drive.mean * -np.expm1(t * np.log(law.beta))
    unit, half = mean / scale, (mean / deviation) ** 2  # half of the degrees of freedom
    rising = np.exp(gammaln(half + 0.5) - gammaln(half))
    # from its third input on, a sum of squares has a mean inverse, unlike a gamma variable of few degrees
    enough = np.maximum(half, 1.5)
    return _parts(
        beta1,
        t,
        rising * np.sqrt(unit / half),
        rising / (enough - 0.5) * np.sqrt(half / unit),
        half / (enough - 1) / unit,
    )


def _parts(beta1: float, t: npt.NDArray[np.int64], root: Array, inverse_root: Array, inverse: Array) -> Parts:
    """Return the parts of ``D_t`` from the means of ``v_hat`` to the powers 1/2, -1/2 and -1."""
    young = t <= 2 / (1 - beta1)
    decayed = beta1**t
    w1 = np.where(young, root, inverse_root)
    w2 = np.where(young, 1.0, inverse)
    return np.asarray((1 + decayed) / (1 - decayed) * w2), np.asarray((1 + decayed) * w1)


def neglected(beta1: float, beta2: float) -> float:
    """Relative covariance of ``m**2`` and ``v`` in the long run, which :func:`update_parts` neglects.

    Both average the same gradients. With weights ``a_i`` in `m` and ``c_i`` in `v` it is ``2 sum a_i**2 c_i / sum
    a_i**2``. The error of a cycle is uncertain by at least this relative amount.
    """
    return 2 * (1 - beta2) * (1 - beta1**2) / (1 - beta1**2 * beta2)


def cycle_cost(error: Array) -> Array:
    """Return the mean error of a cycle of each length: entry ``K - 1`` is the mean over ages ``1 .. K``."""
    return np.cumsum(error) / np.arange(1, len(error) + 1)


def total_cost(parts: list[Parts]) -> Array:
    """Return the mean error of a cycle of each length, one row per law: the cost of rounding at a given rate."""
    return np.stack([cycle_cost(squared_error(one)) for one in parts])


def residual_cost(parts: list[Parts]) -> Array:
    """Return the mean error of a cycle of each length after scaling every update by the best common factor.

    A tuned learning rate removes that factor. There is one for all laws, since tensors whose gradients fall at
    different rates share the learning rate. So there is one row: entry ``K - 1`` is the error for cycles of `K` steps,
    relative to the variance of the exact update.
    """
    count = np.arange(1, len(parts[0][0]) + 1) * len(parts)
    square = np.sum([np.cumsum(s) for s, _ in parts], axis=0) / count
    product = np.sum([np.cumsum(p) for _, p in parts], axis=0) / count
    return np.asarray(1 - product**2 / square)[np.newaxis]
