"""Whether and when to reset a state.

A reset removes the effect of rounding on a second moment, at the price of a few noisy steps. The planner follows the
chain's law through a cycle. It minimizes the mean error of Adam's update over a cycle (:mod:`halfulp.theory.cost`) with
respect to the period ``K``. During training the gradient's scale falls at an unknown rate, so a plan covers a few
drifts:

- ``"residual"`` minimizes the error that remains after the best common factor of all updates under all drifts.
- ``"total"`` minimizes the relative excess of the whole error in the worst drift:
  ``argmin_K max_r J_r(K) / min_k J_r(k)``.

The plan is *never* if ``K`` is the horizon, or if resets do not gain enough:

- A reset should undo the effect of rounding. A state in full precision may gain from a reset too, since it forgets an
  old scale. That gain does not count.
- Costs are known up to what the criterion neglects (:func:`~halfulp.theory.cost.neglected`). The gain must exceed that
  and :data:`WORTH`. Both are shares of the update's variance for ``"residual"``, which is a small difference of two
  numbers of that size, and shares of the least error for ``"total"``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import Format, get_format
from halfulp.numbers.quantizer import check_rounding
from halfulp.numbers.show import Shown
from halfulp.rules.drives import Drive, as_drive
from halfulp.theory.arguments import Criterion, check_criterion, check_drifts, check_number
from halfulp.theory.predict import second_moment_laws, stall_curve

if TYPE_CHECKING:
    from halfulp.theory.transient import Transient

__all__ = ["DRIFTS", "Criterion", "ResetPlan", "plan_reset"]

Array = npt.NDArray[np.float64]

DRIFTS = (0.0, 0.025, 0.1)
"""E-folds of the gradient's scale ``sigma`` per window ``1 / (1 - beta)`` for which a plan must be good."""
WORTH = 0.01
"""What resets must save. Smaller differences of the residual made no difference in measured losses."""
HORIZON = {"total": 6, "residual": 20}
"""Windows that a plan looks ahead. The residual of a state without resets grows over the whole run."""


@dataclass(frozen=True, repr=False)
class ResetPlan(Shown):
    """When to reset a state.

    Parameters
    ----------
    period
        Steps between resets, or ``None`` for never.
    why
        The reason, as a sentence.
    curve
        Stalled fraction by age. Entry ``t - 1`` belongs to step ``t``, up to the horizon.
    costs
        Mean error of Adam's update over a cycle, by period (entry ``K - 1``), one row per drift, relative to the
        variance of the fp32 first moment. Empty if nothing had to be compared.
    drifts
        Drift of each row.
    """

    period: int | None
    why: str
    curve: Array
    costs: Array = field(default_factory=lambda: np.zeros((0, 0)))
    drifts: tuple[float, ...] = ()

    def in_short(self) -> str:
        """The period."""
        return f"period={self.period}"

    def __str__(self) -> str:
        return self.why

    @property
    def regret(self) -> Array:
        """Cost of each period relative to the best possible one, minus 1, in the worst of the drifts."""
        if not len(self.costs):
            return np.zeros(len(self.curve))
        return np.asarray((self.costs / self.costs.min(axis=1, keepdims=True)).max(axis=0) - 1)


def plan_reset(
    fmt: str | Format,
    *,
    beta: float,
    rounding: str,
    slot: str | Drive = "exp_avg_sq",
    beta1: float = 0.9,
    drifts: tuple[float, ...] = DRIFTS,
    criterion: Criterion = "residual",
) -> ResetPlan:
    """Find the best reset period of a state, or that none is worthwhile.

    Parameters
    ----------
    fmt, beta, rounding, slot
        As for :func:`~halfulp.theory.predict.stall_probability`. Decays above 0.99999 are refused, because a
        plan looks 20 windows ahead.
    beta1
        Decay of the first moment that accompanies a second moment.
    drifts
        Rates at which the gradient's scale may fall, in e-folds per window ``1 / (1 - beta)``. If the rate is measured,
        a single one.
    criterion
        ``"residual"``: the error of the update that remains after the best common factor of all updates, which a tuned
        learning rate removes. ``"total"``: the whole error; its periods are shorter.

    Returns
    -------
    ResetPlan
        Always "never" for a first moment, since a reset does not reduce its zero-mean noise.

    Examples
    --------
    >>> plan_reset("fp8", beta=0.999, rounding="nearest").period
    4697
    >>> plan_reset("fp8", beta=0.999, rounding="stochastic").period is None
    True
    """
    drive = as_drive(slot)
    check_rounding(rounding)
    check_number("beta", beta, "between 0 and 1, and at most 0.99999 for a plan", lambda x: 0.0 < x <= 0.99999)
    check_number("beta1", beta1, "in [0, 1)", lambda x: 0.0 <= x < 1.0)
    check_drifts(drifts)
    check_criterion(criterion)
    return _plan(get_format(fmt, signed=not drive.nonnegative), beta, rounding, drive, beta1, tuple(drifts), criterion)


@lru_cache(maxsize=256)
def _plan(
    fmt: Format, beta: float, rounding: str, drive: Drive, beta1: float, drifts: tuple[float, ...], criterion: Criterion
) -> ResetPlan:
    horizon = math.ceil(max(HORIZON[criterion] / (1 - beta), 3000))
    if fmt.is_float32:
        return ResetPlan(None, "Never: nothing is rounded.", np.zeros(horizon))
    if not drive.nonnegative:
        window = math.ceil(3 / (1 - beta))
        curve = stall_curve(fmt, beta=beta, rounding=rounding, steps=window, slot=drive)
        why = f"Never: a signed state swings through zero by itself; {curve[-1]:.0%} of its updates stall."
        return ResetPlan(None, why, curve)
    return _decide(second_moment_laws(fmt, beta, rounding, drifts, horizon), beta1, horizon, drifts, criterion)


def _decide(
    laws: tuple[Transient, ...], beta1: float, horizon: int, drifts: tuple[float, ...], criterion: Criterion
) -> ResetPlan:
    from halfulp.theory.cost import exact_parts, neglected, residual_cost, total_cost, update_parts

    weigh = {"total": total_cost, "residual": residual_cost}[criterion]
    curve = laws[0].stalled[:horizon]
    costs = weigh([update_parts(law, beta1, horizon) for law in laws])
    plan = ResetPlan(None, "", curve, costs, drifts)
    best = int(plan.regret.argmin())
    low, last = costs[:, best], costs[:, -1]
    error = "mean squared error" if criterion == "total" else "mean squared error (up to a common factor)"
    if best == horizon - 1:
        why = (
            f"Never: up to {horizon} steps, no reset costs less. Rounding makes the update's {error} {low.max():.2g} "
            "of the update's variance, at worst."
        )
        return replace(plan, why=why)
    exact = weigh([exact_parts(law, beta1, horizon) for law in laws])
    least = max(neglected(beta1, laws[0].beta), WORTH)

    def gain(one: ResetPlan) -> float:
        """Cost of no reset minus that of the plan."""
        unit = float(one.costs.min()) if criterion == "residual" else 1.0
        return unit * float(one.regret[-1] - one.regret[best])

    by_rounding = replace(plan, costs=costs + np.maximum(exact[:, -1:] - exact, 0.0))
    if gain(by_rounding) <= least:
        reason = "the gain is too small to tell, or to be worth a reset"
        if gain(plan) > least:
            reason = "while the gradient's scale falls, a state that is not rounded would gain too"
        why = (
            f"Never: with a reset every {best + 1} steps, the update's {error} would be {_span(low)} of the update's "
            f"variance. Without resets, it is {_span(last)}: {reason}."
        )
        return replace(plan, why=why)
    why = (
        f"Every {best + 1} steps: the update's {error} is then {_span(low)} of the update's variance. "
        f"Without resets, it is {_span(last)}. At the end of a cycle, {curve[best]:.1%} of the updates stall."
    )
    return replace(plan, period=best + 1, why=why)


def _span(values: Array) -> str:
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"
