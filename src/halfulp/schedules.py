"""Learning-rate schedules as plain functions for ``torch.optim.lr_scheduler.LambdaLR``, and scaling with batch size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["linear_to_zero", "scale_adam", "warmup_stable_decay"]

Factor = Callable[[int], float]


def linear_to_zero(steps: int, warmup: float = 0.1) -> Factor:
    """D2Z: linear warm-up over a share of the steps, then linear decay to zero (Bergsma et al., 2502.15938).

    Examples
    --------
    >>> factor = linear_to_zero(100)
    >>> factor(5), factor(10), factor(55), factor(100)
    (0.5, 1.0, 0.5, 0.0)
    """
    return warmup_stable_decay(steps, warmup, 1 - warmup)


def warmup_stable_decay(steps: int, warmup: float = 0.05, decay: float = 0.2) -> Factor:
    """Linear warm-up, a plateau, and linear decay to zero; `warmup` and `decay` are shares of the steps.

    Raises
    ------
    ValueError
        Unless the shares are in [0, 1] and together at most 1, and there is a step.
    """
    if steps < 1 or warmup < 0 or decay < 0 or warmup + decay > 1 + 1e-9:
        raise ValueError(f"shares of {steps} steps must be at least 0 and together at most 1, got {warmup} and {decay}")

    def factor(step: int) -> float:
        rise = step / (warmup * steps) if warmup else 1.0
        fall = (steps - step) / (decay * steps) if decay else 1.0
        return max(0.0, min(1.0, rise, fall))

    return factor


def scale_adam(
    kappa: float, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> dict[str, Any]:
    """Adam's hyper-parameters for a batch `kappa` times as large: the square-root rule (Malladi et al., 2205.10287).

    ``lr * sqrt(kappa)``, ``1 - beta`` times `kappa`, ``eps / sqrt(kappa)``. A larger batch thus lowers beta2, and
    with it the stalled fraction.

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
