"""SWATS: Adam that switches to SGD once Adam's steps determine its learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from halfulp.rules.adam import TWO_MOMENTS, MomentsHyper, moment_scalars, moments, normalise
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
        SGD takes over when the average of its estimated rate is within this of the rate of the step; 0 for never.
    """

    eps: float = 1e-9
    tolerance: float = 1e-9


def _number(name: str, beta: float | None = None) -> StateSlot:
    return StateSlot(name, False, lambda h: h["betas"][1] if beta is None else beta, shape=lambda s: (), exact=True)


def _slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return (*TWO_MOMENTS, _number("rate_avg"), _number("sgd_rate", 1.0))


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    c, age = moment_scalars(hyper, ages), ages["rate_avg"]
    return {
        **c, "eps": c["eps"] * c["inv_sqrt_correction2"], "first": float(age == 1),
        "rate_correction": 1 - hyper["betas"][1] ** age, "tolerance": hyper["tolerance"],
    }  # fmt: skip


def _measure(param: Tensor, grad: Tensor, states: States, c: Scalars) -> dict[str, Tensor]:
    direction = normalise(*moments(grad, states, c), c)
    return {"direction_sq": total(direction, direction), "along": total(direction, grad)}


def _combine(sums: Mapping[str, float], c: Scalars) -> Scalars:
    """Return the rate at which the projection of SGD's step on Adam's equals Adam's step; 0 if there is none."""
    return {"rate": c["lr"] * sums["direction_sq"] / sums["along"] if sums["along"] else 0.0}


def _update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg, exp_avg_sq = moments(grad, states, c)
    rate_avg, sgd_rate = states["rate_avg"], states["sgd_rate"]
    switched = sgd_rate > 0.0
    step = torch.where(switched, exp_avg * (sgd_rate * c["lr"]), normalise(exp_avg, exp_avg_sq, c) * c["lr"])
    new = {"exp_avg": exp_avg, "exp_avg_sq": torch.where(switched, states["exp_avg_sq"], exp_avg_sq)}
    if c["rate"] != 0.0:
        average = rate_avg + (c["rate"] - rate_avg) * c["weight2"]
        rate_avg = torch.where(switched, rate_avg, average)
        if c["first"] == 0.0:
            rate = average / c["rate_correction"]
            settled = (rate > 0.0) & (torch.abs(rate - c["rate"]) < c["tolerance"])
            starts = settled & torch.logical_not(switched)
            sgd_rate = torch.where(starts, rate / c["lr"], sgd_rate)
            new["exp_avg"] = torch.where(starts, 0.0, exp_avg)
    return param - step, {**new, "rate_avg": rate_avg, "sgd_rate": sgd_rate}


SWATS = with_weight_decay(
    Rule(
        "swats", _slots, _scalars, _update, measure=_measure, combine=_combine, title="SWATS",
        hyper=SWATSHyper, source="Keskar & Socher, arXiv 1712.07628",
        summary="Adam that switches to SGD with momentum, at a learning rate estimated from its steps",
        notes="""All parameters switch together. SGD's momentum is an average like Adam's first moment, restarted at the
        switch. SGD's rate is a multiple of ``lr`` and follows its schedule. The factor is
        :meth:`~halfulp.RuleOptimizer.state_tensor` ``(p, "sgd_rate")``, which is 0 before the switch.""",
    )
)  # fmt: skip
