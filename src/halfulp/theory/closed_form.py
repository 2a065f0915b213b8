"""Closed forms of the stalled fraction, as first approximations of the exact chain.

An EMA coordinate ``v`` moves by ``(1 - beta) * (x - v)``. With ``p`` fraction bits the grid spacing at ``v`` is ``eps *
v / mantissa``, ``eps = 2**-p``. In the steady state of Topollai & Choromanska (arXiv 2603.16731, section 3) the
gradient is ``N(0, sigma**2)``, ``v`` equals its mean and the mantissa is log-uniform. With ``rho = eps * ln 2 / (2 * (1
- beta))``:

* nearest:    ``P = F(1 + rho) - F(max(0, 1 - rho))``, where ``F`` is the chi-square CDF of one degree of freedom;
* stochastic: ``P = E max(0, 1 - |z - 1| / (2 rho))``, ``z ~ chi2_1``.

A first moment has ``m ~ N(0, (1 - beta) / (1 + beta))`` in units of sigma. Its result is averaged over ``m`` and the
mantissa. At a finite age after a reset, a second moment equals ``q = 1 - beta**age`` of its steady mean, and a first
moment has the variance ``(1 - beta) / (1 + beta) * (1 - beta**(2 age))``. The gradient's scale cancels everywhere.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format
from halfulp.numbers.quantizer import check_rounding
from halfulp.rules.drives import GRADIENT, SQUARE, Drive
from halfulp.theory.arguments import check_beta, check_signed

__all__ = ["closed_form"]

Array = npt.NDArray[np.float64]


def closed_form(fmt: Format, rounding: str, drive: Drive, beta: float, ages: Array) -> Array:
    """Return the stalled fraction of the update at each age. Infinite ages give the published one-step model.

    Raise ``ValueError`` if the drive is neither the gradient nor its square, or another argument is out of range.
    """
    check_rounding(rounding)
    check_beta(beta)
    check_signed(fmt, drive)
    if drive not in (GRADIENT, SQUARE):
        raise ValueError(f"the closed form is of normal gradients or their squares, got {drive}")
    if drive == SQUARE:
        rho = fmt.epsilon * math.log(2) / (2 * (1 - beta))
        share = -np.expm1(ages * math.log(beta))
        return _second_nearest(rho, share) if rounding == "nearest" else _second_stochastic(rho, share)
    return _first(fmt.epsilon, beta, rounding, ages)


def _second_nearest(rho: float, share: Array) -> Array:
    from scipy.stats import chi2

    upper = chi2.cdf(share * (1 + rho), 1)
    return np.asarray(upper - chi2.cdf(np.maximum(0.0, share * (1 - rho)), 1))


def _second_stochastic(rho: float, share: Array) -> Array:
    """Mean of the tent function ``max(0, 1 - |z / q - 1| / (2 rho))``, from partial means of chi-square."""
    from scipy.stats import chi2

    def below(x: Array) -> tuple[Array, Array]:
        x = np.maximum(x, 0.0)
        return chi2.cdf(x, 1), chi2.cdf(x, 3)  # probability and partial mean of z up to x

    low, middle, high = (below(share * f) for f in (1 - 2 * rho, 1.0, 1 + 2 * rho))
    safe = np.where(share > 0, share, 1.0)
    rising = (middle[0] - low[0]) * (1 - 1 / (2 * rho)) + (middle[1] - low[1]) / (2 * rho * safe)
    falling = (high[0] - middle[0]) * (1 + 1 / (2 * rho)) - (high[1] - middle[1]) / (2 * rho * safe)
    return np.where(share > 0, rising + falling, 0.0)


@lru_cache(maxsize=1)
def _normal_nodes() -> tuple[Array, Array]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(160)
    return nodes, weights / weights.sum()


def _first(epsilon: float, beta: float, rounding: str, ages: Array) -> Array:
    from scipy.stats import norm

    nodes, weights = _normal_nodes()
    mantissas = 2.0 ** ((np.arange(32) + 0.5) / 32)  # log-uniform
    deviation = np.sqrt((1 - beta) / (1 + beta) * -np.expm1(2 * ages * math.log(beta)))
    m = np.abs(deviation[:, None, None] * nodes[None, :, None])
    reach = epsilon * m / mantissas / (1 - beta)  # the change |g - m| that equals one spacing
    if rounding == "nearest":
        stalled = norm.cdf(m + reach / 2) - norm.cdf(m - reach / 2)
    else:
        # E max(0, 1 - |g - m| / reach) over g, from the antiderivative x Phi(x) + phi(x) of Phi
        def primitive(x: Array) -> Array:
            return np.asarray(x * norm.cdf(x) + norm.pdf(x))

        safe = np.where(reach > 0, reach, 1.0)
        tent = (primitive(m + safe) - 2 * primitive(m) + primitive(m - safe)) / safe
        stalled = np.where(reach > 0, tent, 0.0)
    return np.asarray(np.einsum("anm,n->a", stalled, weights) / len(mantissas))
