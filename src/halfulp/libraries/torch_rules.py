"""Rules of ``torch.optim`` that have no optimizer in this library. The monitor computes with them."""

from __future__ import annotations

import torch
from torch import Tensor

from halfulp.libraries.base import no_theory
from halfulp.rules.base import Ages, Rule, Scalars, States, ema, sqrt
from halfulp.rules.slots import GRADIENT, SQUARE, Hyper, StateSlot

__all__ = ["ADAMAX", "RMSPROP"]


def _rmsprop_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    def alpha(h: Hyper) -> float:
        return float(h["alpha"])

    slots = [StateSlot("square_avg", False, alpha, SQUARE)]
    if hyper["centered"]:
        slots.append(StateSlot("grad_avg", True, alpha, GRADIENT))
    if hyper["momentum"] > 0:
        slots.append(StateSlot("momentum_buffer", True))  # a sum of updates
    return tuple(slots)


def _rmsprop_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    return {k: float(hyper[k]) for k in ("lr", "alpha", "eps", "weight_decay", "momentum")}


def _rmsprop(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    grad = grad + param * c["weight_decay"]
    new = {"square_avg": states["square_avg"] * c["alpha"] + (grad * grad) * (1 - c["alpha"])}
    variance = new["square_avg"]
    if "grad_avg" in states:
        new["grad_avg"] = states["grad_avg"] * c["alpha"] + grad * (1 - c["alpha"])
        variance = torch.clamp(variance - new["grad_avg"] * new["grad_avg"], min=0.0)
    step = grad / (sqrt(variance) + c["eps"])
    if "momentum_buffer" in states:
        step = new["momentum_buffer"] = states["momentum_buffer"] * c["momentum"] + step
    return param - step * c["lr"], new


RMSPROP = Rule("rmsprop", _rmsprop_slots, _rmsprop_scalars, _rmsprop)
"""RMSprop, centred or not, with or without momentum."""


ADAMAX_SLOTS = (
    StateSlot("exp_avg", True, lambda h: h["betas"][0], GRADIENT),
    StateSlot("exp_inf", False, lambda h: h["betas"][1], GRADIENT, alike=True, stalls_as=no_theory),
)


def _adamax_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    beta1, beta2 = hyper["betas"]
    l2 = hyper["weight_decay"]
    return {"l2": l2, "weight1": 1 - beta1, "beta2": beta2, "eps": hyper["eps"],
            "lr": hyper["lr"] / (1 - beta1 ** ages["exp_avg"])}  # fmt: skip


def _adamax(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    grad = grad + param * c["l2"]
    exp_avg = ema(states["exp_avg"], grad, c["weight1"])
    exp_inf = torch.maximum(states["exp_inf"] * c["beta2"], grad.abs() + c["eps"])
    return param - exp_avg / exp_inf * c["lr"], {"exp_avg": exp_avg, "exp_inf": exp_inf}


ADAMAX = Rule("adamax", lambda hyper: ADAMAX_SLOTS, _adamax_scalars, _adamax)
"""Adamax: the decaying maximum of gradient magnitudes."""
