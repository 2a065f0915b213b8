"""How many updates of an EMA its rounding loses: by the exact chain, or by the closed forms.

The default answer comes from the Markov chain on the format's grid (:mod:`halfulp.theory.chain`). The closed forms are
its first approximations.

An EMA coordinate ``v`` moves by ``(1 - beta) * (x - v)``. With ``p`` fraction bits the grid's spacing at ``v`` is
``eps * v / mantissa``, ``eps = 2**-p``. In the steady state of Topollai & Choromanska (arXiv 2603.16731, section 3) the
gradient is ``N(0, sigma**2)``, ``v`` sits at its mean and the mantissa is log-uniform, so that with
``rho = eps * ln 2 / (2 * (1 - beta))``

* nearest:    ``P = F(1 + rho) - F(max(0, 1 - rho))``, ``F`` the chi-square distribution of one degree of freedom;
* stochastic: ``P = E max(0, 1 - |z - 1| / (2 rho))``, ``z ~ chi2_1``.

A first moment has ``m ~ N(0, (1 - beta) / (1 + beta))`` in units of sigma, and is averaged over it and the mantissa.
Some steps after a reset the state stands at ``q = 1 - beta**age`` of its steady mean (second moment) or has the
variance ``(1 - beta) / (1 + beta) * (1 - beta**(2 age))`` (first moment). The gradient's scale cancels everywhere.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format, get_format

__all__ = ["stall_curve", "stall_probability"]

Slot = Literal["exp_avg", "exp_avg_sq"]
Model = Literal["chain", "build-up", "one-step"]
MODELS = ("chain", "build-up", "one-step")
Array = npt.NDArray[np.float64]


def stall_probability(
    fmt: str | Format,
    *,
    beta: float,
    rounding: str,
    slot: Slot = "exp_avg_sq",
    age: float | None = None,
    model: Model = "chain",
) -> float:
    """Probability that the update of one coordinate is rounded away.

    Parameters
    ----------
    fmt
        A format, or its friendly name. Integers and codebooks (``"chain"`` only) are taken in blocks of 128 with a
        power-of-two scale.
    beta
        Decay of the EMA, in (0, 1).
    rounding
        ``"nearest"`` or ``"stochastic"``.
    slot
        ``"exp_avg_sq"``: second moment; ``"exp_avg"``: first moment.
    age
        Updates that the state has seen since it was zero; the default is ``3 / (1 - beta)``.
    model
        ``"chain"``: the exact law at that age; ``"build-up"``: the closed form at that age; ``"one-step"``: the
        published closed form, of an infinite age.

    Returns
    -------
    float
        In [0, 1]; 0 for float32. The chain's answers are kept: a call for another age of the same state costs little.

    Examples
    --------
    >>> round(stall_probability("fp8", beta=0.999, rounding="stochastic"), 3)
    0.988
    >>> round(stall_probability("bf16", beta=0.999, rounding="nearest", model="one-step"), 4)
    0.9458
    """
    resolved = _check(fmt, beta, rounding, slot, model)
    age = 3 / (1 - beta) if age is None else age
    if not 0 <= age < math.inf and model != "one-step":
        raise ValueError(f"an age is a number of steps, got {age}")
    if resolved.is_float32:
        return 0.0
    if model == "chain":
        ages, curve = _chain_curve(resolved, beta, rounding, slot, math.ceil(age))
        return float(np.interp(age, ages, curve))
    return float(_stall(resolved, beta, rounding, slot, np.array([math.inf if model == "one-step" else age]))[0])


def stall_curve(
    fmt: str | Format,
    *,
    beta: float,
    rounding: str,
    steps: int,
    slot: Slot = "exp_avg_sq",
    model: Model = "chain",
) -> npt.NDArray[np.float64]:
    """Build-up after a reset: entry ``t - 1`` is the stalled fraction of the update of step ``t``.

    The update of step ``t`` meets a state of age ``t - 1``.

    Parameters
    ----------
    fmt, beta, rounding, slot, model
        As of :func:`stall_probability`.
    steps
        Length of the curve.

    Returns
    -------
    numpy.ndarray
        float64, of shape ``(steps,)``.

    Examples
    --------
    >>> curve = stall_curve("fp8", beta=0.999, rounding="nearest", steps=1000)
    >>> curve[10].round(2), curve[-1] > 0.99
    (np.float64(0.49), np.True_)
    """
    resolved = _check(fmt, beta, rounding, slot, model)
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    if resolved.is_float32 or steps == 0:
        return np.zeros(steps)
    wanted = np.arange(steps, dtype=np.float64)
    if model == "chain":
        return np.interp(wanted, *_chain_curve(resolved, beta, rounding, slot, steps - 1))
    return _stall(resolved, beta, rounding, slot, wanted if model == "build-up" else np.full(steps, math.inf))


def _chain_curve(fmt: Format, beta: float, rounding: str, slot: Slot, last: int) -> tuple[Array, Array]:
    from halfulp.theory.chain import Chain
    from halfulp.theory.drive import GRADIENT, SQUARE
    from halfulp.theory.transient import transient

    drive = SQUARE if slot == "exp_avg_sq" else GRADIENT
    if fmt.kind != "float":
        from halfulp.theory.sampled_blocks import sampled_law

        sampled = sampled_law(fmt, beta, rounding, drive, last)
        return sampled.ages.astype(np.float64), sampled.stalled
    law = transient(Chain(fmt, beta, rounding, drive), last)
    return law.ages.astype(np.float64), law.stalled


def check_slot(slot: str) -> None:
    """Refuse anything but the two slots that have a theory."""
    if slot not in ("exp_avg", "exp_avg_sq"):
        raise ValueError(f"slot is 'exp_avg' (first moment) or 'exp_avg_sq' (second moment), got {slot!r}")


def _check(fmt: str | Format, beta: float, rounding: str, slot: str, model: str) -> Format:
    if model not in MODELS:
        raise ValueError(f"model is one of {', '.join(map(repr, MODELS))}, got {model!r}")
    check_slot(slot)
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta is between 0 and 1, got {beta}")
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"rounding is 'nearest' or 'stochastic', got {rounding!r}")
    resolved = get_format(fmt, signed=slot == "exp_avg")
    if resolved.kind != "float" and model != "chain":
        raise ValueError(f"the closed form needs a relative spacing, which {resolved.name} does not have")
    return resolved


def _stall(fmt: Format, beta: float, rounding: str, slot: str, ages: Array) -> Array:
    if slot == "exp_avg_sq":
        rho = fmt.epsilon * math.log(2) / (2 * (1 - beta))
        share = -np.expm1(ages * math.log(beta))
        return _second_nearest(rho, share) if rounding == "nearest" else _second_stochastic(rho, share)
    return _first(fmt.epsilon, beta, rounding, ages)


def _second_nearest(rho: float, share: Array) -> Array:
    from scipy.stats import chi2

    upper = chi2.cdf(share * (1 + rho), 1)
    return np.asarray(upper - chi2.cdf(np.maximum(0.0, share * (1 - rho)), 1))


def _second_stochastic(rho: float, share: Array) -> Array:
    """Mean of the tent ``max(0, 1 - |z / q - 1| / (2 rho))`` in closed form: partial means of chi-square."""
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
    reach = epsilon * m / mantissas / (1 - beta)  # a change of |g - m| that equals one spacing
    if rounding == "nearest":
        stalled = norm.cdf(m + reach / 2) - norm.cdf(m - reach / 2)
    else:
        # E max(0, 1 - |g - m| / reach) over g, by the antiderivative x Phi(x) + phi(x) of Phi
        def primitive(x: Array) -> Array:
            return np.asarray(x * norm.cdf(x) + norm.pdf(x))

        safe = np.where(reach > 0, reach, 1.0)
        tent = (primitive(m + safe) - 2 * primitive(m) + primitive(m - safe)) / safe
        stalled = np.where(reach > 0, tent, 0.0)
    return np.asarray(np.einsum("anm,n->a", stalled, weights) / len(mantissas))
