"""Averages of weights: the gradient's place is taken by the live weight, and the parameter is only read."""

from __future__ import annotations

from torch import Tensor

from halfulp.rules.base import Ages, Rule, Scalars, States
from halfulp.rules.slots import Hyper, StateSlot

__all__ = ["DIFFERENCE", "EMA"]


def _slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return (StateSlot("average", signed=True, decay=lambda h: h["decay"], drive="weight", init=lambda weight: weight),)


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    return {"weight": 1.0 - hyper["decay"]}


def _update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    average = states["average"]
    return param, {"average": average + (grad - average) * c["weight"]}


EMA = Rule("ema", _slots, _scalars, _update)
"""``average <- average + (live - average) * weight``: ``grad`` is the live weight, ``param`` comes back unchanged."""


def _difference_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return (StateSlot("difference", signed=True, decay=lambda h: h["decay"], drive="weight"),)


def _difference_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    return {"decay": hyper["decay"]}


def _difference_update(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    return param, {"difference": (states["difference"] + (param - grad)) * c["decay"]}


DIFFERENCE = Rule("ema_difference", _difference_slots, _difference_scalars, _difference_update)
"""The same average as its difference to the live weight: ``param`` is the live weight before the optimizer's step,
``grad`` the one after it."""
