"""Learning-rate schedules as plain functions for ``torch.optim.lr_scheduler.LambdaLR``, and batch-size scaling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["linear_to_zero", "refined", "scale_adam", "warmup_stable_decay"]

Factor = Callable[[int], float]


def linear_to_zero(steps: int, warmup: float = 0.1) -> Factor:
    """D2Z: linear warm-up over a share of the steps, then linear decay to zero (Bergsma et al., 2502.15938).

    Parameters
    ----------
    steps
        Length of the run. Afterwards the factor is 0.
    warmup
        Share of the steps for warm-up, in [0, 1].

    Raises
    ------
    ValueError
        If `warmup` is outside [0, 1], or `steps` is less than 1.

    Examples
    --------
    >>> factor = linear_to_zero(100)
    >>> factor(5), factor(10), factor(55), factor(100)
    (0.5, 1.0, 0.5, 0.0)
    """
    return warmup_stable_decay(steps, warmup, 1 - warmup)


def warmup_stable_decay(steps: int, warmup: float = 0.05, decay: float = 0.2) -> Factor:
    """Linear warm-up, a plateau, and linear decay to zero.

    Parameters
    ----------
    steps
        Length of the run.
    warmup, decay
        Shares of the steps for warm-up and decay.

    Returns
    -------
    Factor
        A function of the step, counted from 0, for ``torch.optim.lr_scheduler.LambdaLR``.

    Raises
    ------
    ValueError
        If the shares are not in [0, 1] or add up to more than 1, or if `steps` is less than 1.

    Examples
    --------
    >>> factor = warmup_stable_decay(100, warmup=0.1, decay=0.2)
    >>> factor(5), factor(50), factor(90), factor(100)
    (0.5, 1.0, 0.5, 0.0)
    """
    if steps < 1 or warmup < 0 or decay < 0 or warmup + decay > 1 + 1e-9:
        raise ValueError(f"shares of {steps} steps must be at least 0 and together at most 1, got {warmup} and {decay}")

    def factor(step: int) -> float:
        rise = step / (warmup * steps) if warmup else 1.0
        fall = (steps - step) / (decay * steps) if decay else 1.0
        return max(0.0, min(1.0, rise, fall))

    return factor


def refined(gradient_norms: Sequence[float], power: float = 2.0, smooth: float = 0.1) -> Factor:
    """Schedule refined by the gradient norms of an earlier run of the same length (Defazio et al., 2310.07831).

    With weights ``w_t = norm_t**-power``, the rate of step t is proportional to ``w_t`` times the sum of all later
    weights. Constant norms give linear decay to zero. Norms that are large at first also give a warm-up.

    Parameters
    ----------
    gradient_norms
        One norm for each step: Euclidean norms for SGD; sums of absolute values for Adam, with ``power=1``.
    power
        Exponent of the norms.
    smooth
        Width of a median filter, as a share of the steps. It keeps single spikes out of the schedule.

    Returns
    -------
    Factor
        A function of the step that is at most 1, and 0 from the last step on.

    Raises
    ------
    ValueError
        If there are fewer than two steps, or a norm is not positive and finite.

    Examples
    --------
    >>> factor = refined([2.0] * 5)
    >>> [factor(step) for step in range(6)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    from scipy.ndimage import median_filter

    norms = np.asarray(gradient_norms, dtype=np.float64)
    if norms.ndim != 1 or norms.size < 2 or not (np.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError(f"gradient_norms must be at least two positive numbers, one for each step; got {norms}")
    if power < 0 or not 0 <= smooth <= 1:
        raise ValueError(f"power must not be negative and smooth a share in [0, 1], got {power} and {smooth}")
    weights = (median_filter(norms, max(1, round(smooth * norms.size)), mode="nearest") / norms.max()) ** -power
    later = weights[::-1].cumsum()[::-1] - weights
    rates = weights * later
    rates = np.append(rates[:-1] / rates.max(), 0.0)

    def factor(step: int) -> float:
        return float(rates[min(step, norms.size - 1)])

    return factor


def scale_adam(
    kappa: float, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> dict[str, Any]:
    """Return Adam's hyper-parameters for a batch `kappa` times as large (Malladi et al., 2205.10287).

    This is the square-root rule: ``lr * sqrt(kappa)``, ``(1 - beta) * kappa`` and ``eps / sqrt(kappa)``. A larger batch
    thus lowers beta2 and the stalled fraction.

    Parameters
    ----------
    kappa
        New batch size divided by the old one.
    lr, betas, eps
        Adam's hyper-parameters at the old batch size.

    Returns
    -------
    dict
        ``lr``, ``betas`` and ``eps`` for the new batch size.

    Raises
    ------
    ValueError
        If a decay would become negative.

    Examples
    --------
    >>> scale_adam(4, lr=1e-3, betas=(0.9, 0.99))
    {'lr': 0.002, 'betas': (0.6, 0.96), 'eps': 5e-09}
    """
    if not kappa > 0 or any(kappa * (1 - b) > 1 for b in betas):
        raise ValueError(f"kappa * (1 - beta) must be in (0, 1] for every beta, got kappa={kappa} and betas={betas}")
    beta1, beta2 = (round(1 - kappa * (1 - b), 15) for b in betas)
    return {"lr": lr * math.sqrt(kappa), "betas": (beta1, beta2), "eps": eps / math.sqrt(kappa)}
