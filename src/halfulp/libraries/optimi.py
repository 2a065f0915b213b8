"""optimi: debiased moments, whose decay grows with the step, and Kahan-compensated 16-bit weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from halfulp.libraries.base import Group, Law, WeightStep
from halfulp.libraries.torch_optim import TorchOptim, beta
from halfulp.libraries.weights import number

__all__ = ["Optimi", "debiased"]


def debiased(drive: str, decay: Callable[[Group], float]) -> Law:
    """Law of an EMA that is its own bias correction: ``beta_t = beta * (1 - beta**(t-1)) / (1 - beta**t)``."""

    def coefficients(group: Group, age: int) -> tuple[float, float]:
        b = decay(group)
        now = b * (1 - b ** (age - 1)) / (1 - b**age)
        return now, 1.0 - now

    return Law(drive, coefficients, decay, predictable=False)


class Optimi(TorchOptim):
    """The adapter of ``torch-optimi``."""

    name = "optimi"

    def recognises(self, optimizer: torch.optim.Optimizer, entries: Mapping[Any, Any]) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        group = optimizer.param_groups[0]
        return "kahan_sum" in group and ("beta1" in group or "momentum" in group)

    def law(self, optimizer: torch.optim.Optimizer, group: Group, key: str) -> Law | None:
        """Law of the state under a key; ``None`` where none fits."""
        kind = type(optimizer).__name__
        if kind in ("Adam", "AdamW", "StableAdamW", "RAdam"):
            plain = {"exp_avg": ("grad", beta(0)), "exp_avg_sq": ("grad_sq", beta(1))}
            return debiased(*plain[key]) if key in plain else None
        if kind == "Lion" and key == "exp_avg":
            return Law("grad", lambda g, age: (beta(1)(g), 1.0 - beta(1)(g)), beta(1))
        if kind == "SGD" and key == "exp_avg":
            return Law("grad", _sgd, lambda g: number(g["momentum"]))
        return None

    def decoupled(self, optimizer: torch.optim.Optimizer, group: Group) -> bool:
        """Whether weight decay leaves the gradient alone."""
        return bool(group.get("decouple_wd") or group.get("decouple_lr") or type(optimizer).__name__ == "Lion")

    def weight_update(self, optimizer: torch.optim.Optimizer, group: Group, step: WeightStep) -> Tensor | str:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        if group.get("kahan_sum"):
            return "compensated: what the weights lose is kept beside them"
        return f"the update of optimi's {type(optimizer).__name__} is not computed here"


def _sgd(group: Group, age: int) -> tuple[float, float]:
    momentum = number(group["momentum"])
    return momentum, 1.0 - momentum if group.get("dampening") else 1.0
