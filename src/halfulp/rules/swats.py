"""SWATS: from Adam to SGD, once Adam's steps say at which rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from halfulp.rules.adam import EXP_AVG, EXP_AVG_SQ, MomentsHyper, moment_scalars, moments, normalise
from halfulp.rules.base import Ages, Rule, Scalars, States, total
from halfulp.rules.slots import Hyper, StateSlot
from halfulp.rules.transforms import with_weight_decay

__all__ = ["SWATS", "SWATSHyper"]


@dataclass(frozen=True)
class SWATSHyper(MomentsHyper):
    """Hyper-parameters of SWATS.

    Parameters
    ----------
    eps
        Added to the uncorrected root of the second moment.
    tolerance
        SGD takes over where the average of its rate is within this of the rate of the step; 0: never.
    """

    eps: float = 1e-9
    tolerance: float = 1e-9


def _number(name: str, beta: float | None = None) -> StateSlot:
    return StateSlot(name, False, lambda h: h["betas"][1] if beta is None else beta, shape=lambda s: (), exact=True)


def _slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return (EXP_AVG, EXP_AVG_SQ, _number("rate_avg"), _number("sgd_rate", 1.0))


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    c, age = moment_scalars(hyper, ages), ages["rate_avg"]
    return {
        **c, "eps": c["eps"] * c["inv_sqrt_correction2"], "first": float(age == 1),
        "rate_correction": 1 - hyper["betas"][1] ** age, "tolerance": hyper["tolerance"],
    }  # fmt: skip


def _measure(param: Tensor, grad: Tensor, states: States, c: Scalars) -> dict[str, Tensor]:
    step = normalise(*moments(grad, states, c), c).double() * -c["lr"]
    return {"step_sq": total(step * step), "along": total(step * grad.double())}


def _combine(sums: Mapping[str, float], c: Scalars) -> Scalars:
    """The rate at which SGD's step, projected on Adam's, would be it; 0 where there is none."""
    return {"rate": -sums["step_sq"] / sums["along"] if sums["along"] else 0.0}


def _update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg, exp_avg_sq = moments(grad, states, c)
    rate_avg, sgd_rate = states["rate_avg"], states["sgd_rate"]
    if float(sgd_rate) > 0.0:
        param = param - exp_avg * (float(sgd_rate) * c["lr"])
        return param, {**states, "exp_avg": exp_avg}
    param = param - normalise(exp_avg, exp_avg_sq, c) * c["lr"]
    if c["rate"]:
        rate_avg = rate_avg + (c["rate"] - rate_avg) * c["weight2"]
        rate = float(rate_avg) / c["rate_correction"]
        if not c["first"] and rate > 0.0 and abs(rate - c["rate"]) < c["tolerance"]:
            sgd_rate = torch.full_like(sgd_rate, rate / c["lr"] if c["lr"] else math.inf)
            exp_avg = torch.zeros_like(exp_avg)
    return param, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "rate_avg": rate_avg, "sgd_rate": sgd_rate}


SWATS = with_weight_decay(
    Rule(
        "swats", _slots, _scalars, _update, elementwise=False, measure=_measure, combine=_combine, title="SWATS",
        hyper=SWATSHyper, source="Keskar & Socher, arXiv 1712.07628",
        summary="Adam, until its steps say at which rate SGD would make them; then SGD with momentum",
        notes="""All parameters switch together. SGD's momentum is the average that Adam's first moment is, started
        anew; its rate follows a schedule of ``lr``, of which it is a multiple:
        :meth:`~halfulp.RuleOptimizer.state_tensor` ``(p, "sgd_rate")`` is 0 before the switch, and the factor
        afterwards.""",
    )
)  # fmt: skip
