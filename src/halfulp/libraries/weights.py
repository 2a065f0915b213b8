"""What an exact weight update would add, from the states of a step, in float64: rules that adapters share.

A rule takes the states that the library itself computes with: those stored after the step (torch), or their exact
successors (libraries that keep the moments of the step in fp32 until the weights are updated).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halfulp.libraries.base import Group, WeightStep

__all__ = ["adam_update", "lion_update", "missing", "number", "rmsprop_update", "sgd_update"]

States = Mapping[str, Tensor]


def missing(states: States, *slots: str) -> str | None:
    """Why an update cannot be computed: states that are not watched."""
    absent = [s for s in slots if s not in states]
    return f"the update needs {', '.join(absent)}, which is not watched" if absent else None


def number(value: Any) -> float:
    """A hyper-parameter, which may be a tensor of one element, as a float."""
    return float(value)


def adam_update(
    group: Group,
    step: WeightStep,
    states: States,
    betas: tuple[float, float],
    *,
    decoupled: bool,
    second: str = "exp_avg_sq",
    corrected: bool = True,
) -> Tensor | str:
    """Adam, AdamW and AMSGrad (`second` is then ``max_exp_avg_sq``), with bias correction or without."""
    reason = missing(states, "exp_avg", second)
    if reason is not None:
        return reason
    lr, eps, decay = number(group["lr"]), number(group["eps"]), number(group.get("weight_decay", 0.0))
    first, root = states["exp_avg"], states[second]
    if corrected:
        first, root = first / (1 - betas[0] ** step.age), root / (1 - betas[1] ** step.age)
    update = -lr * first / (root.sqrt() + eps)
    return update - lr * decay * step.weight if decoupled else update


def sgd_update(group: Group, step: WeightStep, states: States) -> Tensor | str:
    """SGD with heavy-ball or Nesterov momentum, or without."""
    grad = step.grad + number(group.get("weight_decay", 0.0)) * step.weight
    momentum = number(group.get("momentum", 0.0))
    if momentum:
        reason = missing(states, "momentum_buffer")
        if reason is not None:
            return reason
        buffer = states["momentum_buffer"]
        grad = grad + momentum * buffer if group.get("nesterov") else buffer
    return -number(group["lr"]) * grad


def lion_update(group: Group, step: WeightStep, betas: tuple[float, float], *, decoupled: bool) -> Tensor | str:
    """Lion: the sign of an average that is not kept, of the state before the step and the gradient."""
    reason = missing(step.before, "exp_avg")
    if reason is not None:
        return reason
    lr, decay = number(group["lr"]), number(group.get("weight_decay", 0.0))
    grad = step.grad if decoupled else step.grad + decay * step.weight
    update = -lr * torch.sign(step.before["exp_avg"] * betas[0] + grad * (1 - betas[0]))
    return update - lr * decay * step.weight if decoupled else update


def rmsprop_update(group: Group, step: WeightStep, states: States) -> Tensor | str:
    """RMSprop of torch: root outside of ``eps``, centred or not, with momentum or without."""
    centred, momentum = bool(group.get("centered")), number(group.get("momentum", 0.0)) > 0
    reason = missing(states, "square_avg", *["grad_avg"] * centred, *["momentum_buffer"] * momentum)
    if reason is not None:
        return reason
    if momentum:
        return -number(group["lr"]) * states["momentum_buffer"]
    grad = step.grad + number(group.get("weight_decay", 0.0)) * step.weight
    second = states["square_avg"]
    if centred:
        second = (second - states["grad_avg"].square()).clamp_min(0.0)
    return -number(group["lr"]) * grad / (second.sqrt() + number(group["eps"]))
