"""ADOPT: Adam that converges with any beta2."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halfulp.rules.adam import EXP_AVG, EXP_AVG_SQ, MomentsHyper, second_moment
from halfulp.rules.base import Ages, Rule, Scalars, States, clamp, ema, sqrt
from halfulp.rules.slots import Drive, Hyper
from halfulp.rules.transforms import with_weight_decay

__all__ = ["ADOPT", "ADOPTHyper"]


@dataclass(frozen=True)
class ADOPTHyper(MomentsHyper):
    """Hyper-parameters of ADOPT.

    Parameters
    ----------
    eps
        Lower bound of the root of the second moment.
    clip
        Limit the normalised gradient of step t to ``(t - 1)**0.25``.
    """

    betas: tuple[float, float] = (0.9, 0.9999)
    eps: float = 1e-6
    clip: bool = True


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    beta1, beta2 = hyper["betas"]
    age = ages["exp_avg_sq"]
    return {
        "first": float(age == 1),
        "weight1": 1 - beta1,
        "beta2": 0.0 if age == 1 else beta2,
        "weight2": 1.0 if age == 1 else 1 - beta2,
        "eps": hyper["eps"],
        "clip": (age - 1) ** 0.25 if hyper["clip"] else math.inf,
        "lr": float(hyper["lr"]),
    }


def _update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg, exp_avg_sq = states["exp_avg"], states["exp_avg_sq"]
    if not c["first"]:  # the first gradient only sets the scale
        normed = clamp(grad / torch.clamp(sqrt(exp_avg_sq), min=c["eps"]), c["clip"])
        exp_avg = ema(exp_avg, normed, c["weight1"])
        param = param - exp_avg * c["lr"]
    return param, {"exp_avg": exp_avg, "exp_avg_sq": second_moment(grad, states, c)}


# the second moment starts from the first square, so it is never small
SLOTS = (replace(EXP_AVG, alike=True), replace(EXP_AVG_SQ, drive=Drive("square", whole_first=True)))
ADOPT = with_weight_decay(
    Rule(
        "adopt", lambda h: SLOTS, _scalars, _update, title="ADOPT", hyper=ADOPTHyper, tier="core",
        summary="Adam that converges with any beta2", source="Taniguchi et al., arXiv 2411.02853",
        notes="Gradients are divided by the root of the previous step's second moment.",
    )
)  # fmt: skip
