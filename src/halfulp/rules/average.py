"""Averages of weights, as rules that read the weight and have no parameter to change."""

from __future__ import annotations

from torch import Tensor

from halfulp.rules.base import Ages, Rule, Scalars, States, ema
from halfulp.rules.slots import WEIGHT, Hyper, StateSlot

__all__ = ["COPY", "DIFFERENCE", "EMA"]


def _decay(hyper: Hyper) -> float:  # named, like _itself, because averages are pickled with their slots
    decay: float = hyper["decay"]
    return decay


def _itself(weight: Tensor) -> Tensor:
    return weight


def _slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return (StateSlot("average", signed=True, decay=_decay, drive=WEIGHT, init=_itself),)


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    return {"weight": 1.0 - hyper["decay"]}


def _update(weight: Tensor, states: States, c: Scalars) -> States:
    return {"average": ema(states["average"], weight, c["weight"])}


EMA = Rule("ema", _slots, _scalars, _update, inputs=("weight",), has_param=False)
"""``average <- average + (weight - average) * (1 - decay)``."""


def _copy(weight: Tensor, states: States, c: Scalars) -> States:
    return {"average": weight}


COPY = Rule("copy", _slots, lambda hyper, ages: {}, _copy, inputs=("weight",), has_param=False)
"""``average <- weight``."""


def _difference_slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return (StateSlot("difference", signed=True, decay=_decay, drive=WEIGHT),)


def _difference_scalars(hyper: Hyper, ages: Ages) -> Scalars:
    return {"decay": hyper["decay"]}


def _difference_update(weight: Tensor, previous: Tensor, states: States, c: Scalars) -> States:
    return {"difference": (states["difference"] + (previous - weight)) * c["decay"]}


DIFFERENCE = Rule(
    "ema_difference", _difference_slots, _difference_scalars, _difference_update, inputs=("weight", "previous"),
    has_param=False,
)  # fmt: skip
"""The same average, stored as its difference from the weight. ``previous`` is the weight before the step."""
