"""When to reset: the period at which the staleness and the noise of a reset balance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from halfulp.formats import Format, get_format
from halfulp.theory.stall import Slot, stall_curve

__all__ = ["ResetPlan", "plan_reset"]


@dataclass(frozen=True)
class ResetPlan:
    """When to reset a state.

    Parameters
    ----------
    period
        Steps between resets; ``None``: never.
    why
        The reason, in a sentence.
    curve
        Stalled fraction by age, from :func:`~halfulp.theory.stall.stall_curve`.
    """

    period: int | None
    why: str
    curve: npt.NDArray[np.float64]


def plan_reset(
    fmt: str | Format,
    *,
    beta: float,
    rounding: str,
    slot: Slot = "exp_avg_sq",
    beta1: float = 0.9,
) -> ResetPlan:
    """Reset period of a state, from the build-up of stalling.

    Under nearest rounding a state is reset when 97 % of its updates stall; never if that takes more than three
    windows ``1 / (1 - beta)``. Under stochastic rounding a stalled update costs nothing on average: never.

    Parameters
    ----------
    fmt, beta, rounding, slot
        As for :func:`~halfulp.theory.stall.stall_probability`.
    beta1
        Decay of the first moment beside a second moment: a period is at least two of its windows.

    Examples
    --------
    >>> plan_reset("fp8", beta=0.999, rounding="nearest").period
    113
    >>> plan_reset("fp8", beta=0.999, rounding="stochastic").period is None
    True
    """
    return _plan(get_format(fmt, signed=slot == "exp_avg"), beta, rounding, slot, beta1)


@lru_cache(maxsize=256)
def _plan(fmt: Format, beta: float, rounding: str, slot: Slot, beta1: float) -> ResetPlan:
    horizon = math.ceil(3 / (1 - beta))
    if fmt.is_float32 or rounding == "stochastic":
        why = "stochastic rounding keeps the mean" if rounding == "stochastic" else "nothing is rounded"
        return ResetPlan(None, f"Never: {why}, so that stalled updates are made up for.", np.zeros(horizon))
    if fmt.kind != "float":
        why = f"Never: the build-up is known for float formats only, not for {fmt.name}."
        return ResetPlan(None, why, np.zeros(horizon))
    curve = stall_curve(fmt, beta=beta, rounding=rounding, steps=horizon, slot=slot)
    stuck = np.flatnonzero(curve >= 0.97)
    if len(stuck) == 0:
        return ResetPlan(None, f"Never: at most {curve[-1]:.0%} of the updates stall within {horizon} steps.", curve)
    period = max(int(stuck[0]), math.ceil(2 / (1 - beta1)))
    return ResetPlan(period, f"Every {period} steps: by then 97 % of the updates stall.", curve)
