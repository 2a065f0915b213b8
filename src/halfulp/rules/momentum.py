"""SGD with momentum, and Lion."""

from __future__ import annotations

import torch
from torch import Tensor

from halfulp.rules.base import Ages, Rule, Scalars, States
from halfulp.rules.slots import GRADIENT, Hyper, StateSlot

__all__ = ["LION", "SGD"]


def _sgd_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    if hyper["momentum"] == 0:
        return ()
    return (
        StateSlot(
            "momentum_buffer",
            signed=True,
            decay=lambda h: h["momentum"],
            drive=GRADIENT,
            gain=lambda h: 1.0 - h["dampening"],
        ),
    )


def _sgd_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    first = ages.get("momentum_buffer") == 1  # torch starts the buffer with the gradient itself, undampened
    momentum = hyper["momentum"]
    return {
        "l2": hyper["weight_decay"],
        "momentum": 0.0 if first else momentum,
        "gain": 1.0 if first else 1.0 - hyper["dampening"],
        "nesterov": momentum if hyper["nesterov"] else 0.0,
        "lr": float(hyper["lr"]),
    }


def _sgd_update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    if c["l2"] != 0.0:
        grad = grad + param * c["l2"]
    if "momentum_buffer" not in states:
        return param - grad * c["lr"], {}
    buffer = states["momentum_buffer"] * c["momentum"] + grad * c["gain"]
    step = grad + buffer * c["nesterov"] if c["nesterov"] != 0.0 else buffer
    return param - step * c["lr"], {"momentum_buffer": buffer}


SGD = Rule("sgd", _sgd_slots, _sgd_scalars, _sgd_update)
"""SGD with heavy-ball or Nesterov momentum and dampening, as ``torch.optim.SGD`` defines them."""


def _lion_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return (StateSlot("exp_avg", signed=True, decay=lambda h: h["betas"][1], drive=GRADIENT),)


def _lion_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    beta1, beta2 = hyper["betas"]
    lr = float(hyper["lr"])
    return {"keep": 1 - lr * hyper["weight_decay"], "weight1": 1 - beta1, "weight2": 1 - beta2, "lr": lr}


def _lion_update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    exp_avg = states["exp_avg"]
    difference = grad - exp_avg
    direction = torch.sign(exp_avg + difference * c["weight1"])
    return param * c["keep"] - direction * c["lr"], {"exp_avg": exp_avg + difference * c["weight2"]}


LION = Rule("lion", _lion_slots, _lion_scalars, _lion_update)
"""Lion (Chen et al., Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675)."""
