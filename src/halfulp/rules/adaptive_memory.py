"""Adaptive memory momentum, whose coefficient follows in each step from how much gradient and momentum disagree.

Topollai & Choromanska, arXiv 2510.04988. The loss is modelled by two planes, those of the current gradient and of the
momentum. The coefficient minimises this model with a proximal term.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfulp.rules.adam import EXP_AVG_SQ, MomentsHyper, second_moment
from halfulp.rules.base import Ages, Rule, Scalars, States, ema, maximum, minimum, sqrt, total
from halfulp.rules.hyper import HyperParameters
from halfulp.rules.slots import GRADIENT, Hyper, StateSlot
from halfulp.rules.transforms import with_weight_decay

__all__ = ["AMADAMW", "AMSGD", "AMAdamWHyper", "AMSGDHyper"]


# ---------------------------------------------------------------- AM-SGD


@dataclass(frozen=True)
class AMSGDHyper(HyperParameters):
    """Hyper-parameters of AM-SGD.

    Parameters
    ----------
    lam
        Weight of the old direction in the proximal term.
    max_momentum
        Largest value of the coefficient.
    """

    lr: float | Tensor = 0.1
    decoupled_weight_decay: bool = False
    lam: float = 0.1
    max_momentum: float = 0.9

    below_one = ("max_momentum",)


def _memory(hyper: Hyper) -> float:
    """Return the decay of AM-SGD's direction in the last step, or the largest possible one before any step."""
    lam = hyper["lam"]
    return float(hyper.get("memory", (hyper["max_momentum"] + lam) / (1 + lam)))


def _amsgd_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    first = float(ages["momentum_buffer"] == 1)
    return {"lr": float(hyper["lr"]), "first": first, "lam": hyper["lam"], "max_momentum": hyper["max_momentum"]}


def _amsgd_measure(param: Tensor, grad: Tensor, states: States, c: Scalars) -> dict[str, Tensor]:
    apart = states["momentum_buffer"] - grad
    return {"grad_sq": total(grad, grad), "apart_sq": total(apart, apart)}


def _amsgd_combine(sums: Mapping[str, float], c: Scalars) -> Scalars:
    lam, momentum = c["lam"], 0.0
    if not c["first"] and sums["apart_sq"] > 0.0:
        momentum = min(max((1 + lam) * sums["grad_sq"] / sums["apart_sq"] - lam, 0.0), c["max_momentum"])
    return {"momentum": momentum, "memory": 0.0 if c["first"] else (momentum + lam) / (1 + lam)}


def _amsgd(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    direction = ema(grad, states["momentum_buffer"], c["memory"])
    return param - direction * c["lr"], {"momentum_buffer": direction}


DIRECTION = StateSlot("momentum_buffer", signed=True, decay=_memory, drive=GRADIENT)
AMSGD = with_weight_decay(
    Rule(
        "amsgd", lambda h: (DIRECTION,), _amsgd_scalars, _amsgd, measure=_amsgd_measure, combine=_amsgd_combine,
        title="AMSGD", hyper=AMSGDHyper, summary="SGD whose momentum coefficient is set in each step",
        source="Topollai & Choromanska, arXiv 2510.04988", notes="The model has one coefficient.",
    )
)  # fmt: skip
"""The scalar ``memory`` is the decay of the direction."""


# ---------------------------------------------------------------- AM-AdamW


@dataclass(frozen=True)
class AMAdamWHyper(MomentsHyper):
    """Hyper-parameters of AM-AdamW.

    Parameters
    ----------
    betas
        Largest value of each tensor's coefficient, and the decay of the second moment.
    weight_decay, decoupled_weight_decay
        Parameters shrink by ``lr * weight_decay`` per step. `decoupled_weight_decay` must be true.
    lam
        Weight of the old direction in the proximal term.
    """

    betas: tuple[float, float] = (0.89, 0.999)
    weight_decay: float = 0.01
    lam: float = 0.1

    choices: ClassVar[dict[str, tuple[bool, ...]]] = {"decoupled_weight_decay": (True,)}  # the model contains it


def _ama_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    # The decay is (w + momentum) / (w + 1), with w = lam times the preconditioner, which is tiny for usual gradients.
    return (
        StateSlot("exp_avg", signed=True, decay=lambda h: h.get("momentum", h["betas"][0]), drive=GRADIENT, alike=True),
        EXP_AVG_SQ,
        StateSlot("momentum_product", signed=False, shape=lambda s: (), init=lambda p: p.new_ones(()), exact=True),
        StateSlot("last_lr", signed=False, shape=lambda s: (), exact=True),
    )


def _ama_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    beta1, beta2 = hyper["betas"]
    age = ages["exp_avg_sq"]
    return {
        "first": float(ages["exp_avg"] == 1), "max_momentum": beta1, "beta2": beta2, "weight2": 1 - beta2,
        "inv_sqrt_correction2": (1 - beta2**age) ** -0.5, "eps": hyper["eps"], "lam": hyper["lam"],
        "lr": float(hyper["lr"]), "weight_decay": hyper["weight_decay"],
        "bound": ((1 - beta2**age) / (1 - beta2)) ** 0.5 * (1 + 1e-6) if hyper["bound_update"] else math.inf,
    }  # fmt: skip


def _preconditioner(grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, Tensor]:
    """Return the new second moment, and the divisor of the direction: its root times the bias correction."""
    exp_avg_sq = second_moment(grad, states, c)
    root = sqrt(exp_avg_sq) * c["inv_sqrt_correction2"] + c["eps"]
    return exp_avg_sq, root * (1 - states["momentum_product"] * c["max_momentum"])


def _ama_measure(param: Tensor, grad: Tensor, states: States, c: Scalars) -> dict[str, Tensor]:
    p, direction = _preconditioner(grad, states, c)[1], states["exp_avg"]
    apart, weighted = direction - grad, p * c["lam"]
    metric = 1.0 / (p * (weighted + 1.0))
    return {
        "gap": total(grad * states["last_lr"], direction / p + param * c["weight_decay"]),
        "planes": total(apart, (grad + direction * weighted) * metric),
        "decay": total(apart, param * c["weight_decay"]),
        "apart_sq": total(apart, apart * metric),
    }


def _ama_combine(sums: Mapping[str, float], c: Scalars) -> Scalars:
    if c["first"] or sums["apart_sq"] == 0.0:
        return {"momentum": c["max_momentum"]}
    gain = sums["gap"] * ((1 + c["weight_decay"] * c["lr"]) / c["lr"] if c["lr"] else 0.0)
    momentum = (gain - sums["planes"] - sums["decay"]) / sums["apart_sq"]
    return {"momentum": min(max(momentum, 0.0), c["max_momentum"])}


def _ama(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg_sq, p = _preconditioner(grad, states, c)
    momentum, weighted = c["momentum"], p * c["lam"]
    exp_avg = (grad * (1 - momentum) + states["exp_avg"] * (weighted + momentum)) / (weighted + 1)
    limit = c["bound"] / (1 - states["momentum_product"] * c["max_momentum"])
    step = minimum(maximum(exp_avg / p, -limit), limit)
    param = param * (1 - c["lr"] * c["weight_decay"]) - step * c["lr"]
    product = states["momentum_product"] * momentum
    last = torch.full_like(states["last_lr"], c["lr"])
    return param, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "momentum_product": product, "last_lr": last}


AMADAMW = Rule(
    "amadamw", _ama_slots, _ama_scalars, _ama, measure=_ama_measure, combine=_ama_combine,
    per_tensor=True, title="AMAdamW", hyper=AMAdamWHyper,
    summary="AdamW in which each tensor sets its momentum coefficient in each step",
    source="Topollai & Choromanska, arXiv 2510.04988", notes="The metric is Adam's preconditioner.",
)  # fmt: skip
