"""Every rule of the library under every choice of arguments that changes what it does. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

import halfulp
from halfulp.optim import OPTIMIZERS
from halfulp.rules.average import DIFFERENCE, EMA
from halfulp.rules.base import Rule
from halfulp.rules.program import is_number
from halfulp.rules.slots import StateSlot

CHOICES: list[dict[str, Any]] = [
    {}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": False}, {"amsgrad": True},
    {"amsbound": True}, {"momentum": 0.0}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
    {"weight_decay": 0.1, "momentum": 0.0}, {"threshold": 3.0, "patience": 0, "period": 5},
    {"threshold": 3.0, "patience": 0, "period": 5, "weight_decay": 0.1, "decoupled_weight_decay": False},
    {"period": 7, "threshold": 0}, {"max_norm": 10.0, "bias_correction": "none"}, {"bound_update": False},
]  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A rule with hyper-parameters."""

    name: str
    rule: Rule
    hyper: dict[str, Any] = field(hash=False)

    @property
    def slots(self) -> tuple[StateSlot, ...]:
        """All its states."""
        return self.rule.slots(self.hyper)

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the states of the parameter's shape."""
        return tuple(s.name for s in self.slots if not is_number(s))

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the states of one element."""
        return tuple(s.name for s in self.slots if is_number(s))

    def scalars(self, age: int) -> dict[str, float]:
        """Scalars of the step in which every state has this age."""
        ages = {"step": age, **{s.name: age for s in self.slots}}
        return halfulp.rules.base.all_fp32(self.rule.scalars(self.hyper, ages))


def variants() -> list[Variant]:
    """Each once: of every optimizer those choices that it has, and the averages."""
    found: dict[tuple[Any, ...], Variant] = {}
    for optimizer in OPTIMIZERS:
        for choice in CHOICES:
            param = torch.nn.Parameter(torch.zeros(2, 3))
            try:
                made = optimizer([("weight", param)] if optimizer is halfulp.BAdam else [param], **choice)
            except (TypeError, ValueError):
                continue
            group = made.param_groups[0]
            variant = Variant(optimizer.__name__, made.active_rule(group, param), dict(group))
            found.setdefault((variant.rule, repr(sorted(choice.items()))), variant)
    for rule in (EMA, DIFFERENCE):
        found[rule] = Variant(rule.name, _as_of_gradients(rule), {"decay": 0.999})  # type: ignore[index]
    return list(found.values())


def _as_of_gradients(average: Rule) -> Rule:
    """A weight average as a rule of a parameter and a gradient, its second and its first input."""

    def update(param: Any, grad: Any, states: Any, c: Any) -> Any:
        return param, average.update(*(grad, param)[: len(average.inputs)], states, c)

    return replace(average, update=update, inputs=("grad",), has_param=True)


VARIANTS = variants()
