"""SGD with momentum, and Lion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfulp.rules.base import Ages, Rule, Scalars, States
from halfulp.rules.hyper import HyperBase
from halfulp.rules.slots import GRADIENT, Hyper, StateSlot

__all__ = ["LION", "SGD", "LionHyper", "SGDHyper"]


@dataclass(frozen=True)
class SGDHyper(HyperBase):
    """Hyper-parameters of SGD, in the order of ``torch.optim.SGD``.

    Parameters
    ----------
    lr
        Learning rate, a float or a tensor of one element.
    momentum
        Decay of the buffer; 0 for no buffer.
    dampening
        Dampening of the gradients that are added to the buffer, except the first.
    weight_decay
        ``weight_decay * param`` is added to the gradient.
    nesterov
        Step along the gradient plus `momentum` times the buffer.
    """

    lr: float | Tensor = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    below_one: ClassVar[tuple[str, ...]] = ()
    free: ClassVar[tuple[str, ...]] = ("dampening",)

    def check(self) -> None:
        """See :class:`~halfulp.rules.hyper.HyperBase`."""
        super().check()
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")


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
    first = ages.get("momentum_buffer") == 1  # torch sets the buffer to the first gradient, undampened
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


SGD = Rule(
    "sgd", _sgd_slots, _sgd_scalars, _sgd_update, title="SGD", hyper=SGDHyper, tier="core",
    summary="heavy-ball or Nesterov momentum, with dampening and weight decay",
    source="Polyak, 1964; Nesterov, 1983", notes="Arguments and arithmetic are those of ``torch.optim.SGD``.",
    example='lr=0.1, momentum=0.9, nesterov=True, state="bf16"',
)  # fmt: skip


@dataclass(frozen=True)
class LionHyper(HyperBase):
    """Hyper-parameters of Lion.

    Parameters
    ----------
    lr
        Learning rate, a float or a tensor of one element.
    betas
        Weight of the buffer in the step, of which the sign is taken, and decay of the buffer.
    weight_decay
        Parameters shrink by ``lr * weight_decay`` per step.
    """

    lr: float | Tensor = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0


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


LION = Rule(
    "lion", _lion_slots, _lion_scalars, _lion_update, title="Lion", hyper=LionHyper, tier="core",
    summary="the sign of a momentum, with decoupled weight decay", source="Chen et al., arXiv 2302.06675",
    example='lr=1e-4, weight_decay=0.1, state="fp8"',
)  # fmt: skip
