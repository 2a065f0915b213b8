"""Every rule of the library with every choice of arguments that changes its behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

import halfulp
from halfulp.kernels.binding import Binding, Step, Stored
from halfulp.numbers.formats import resolve_name
from halfulp.numbers.quantizer import Quantizer, Rounding
from halfulp.numbers.rng import lanes
from halfulp.numbers.single import all_fp32
from halfulp.optim import OPTIMIZERS
from halfulp.rules.average import DIFFERENCE, EMA
from halfulp.rules.base import Rule
from halfulp.rules.program import Branches, extent_of, is_number
from halfulp.rules.slots import StateSlot
from halfulp.rules.tracing import reads_of, trace

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
        """Return all states of a matrix."""
        return tuple(s for s in self.rule.slots(self.hyper) if s.shape((2, 3)) is not None)

    @property
    def states(self) -> tuple[str, ...]:
        """Return the names of the states that are neither numbers nor vectors."""
        apart = {*self.numbers, *dict(self.vectors)}
        return tuple(s.name for s in self.slots if s.name not in apart)

    @property
    def vectors(self) -> tuple[tuple[str, str], ...]:
        """Return the names of the states with one value per row or column, and which of the two."""
        found = ((s.name, extent_of(s, 2)) for s in self.slots)
        return tuple((name, extent) for name, extent in found if extent in ("rows", "columns"))

    @property
    def programs(self) -> Branches:
        """Return the programs of its update."""
        rule = self.rule
        return trace(
            rule.update, self.states, self.numbers, 2, reads_of(rule), self.vectors, elementwise=rule.elementwise
        )

    @property
    def numbers(self) -> tuple[str, ...]:
        """Return the names of the one-element states."""
        return tuple(s.name for s in self.slots if is_number(s))

    def step(
        self, shape: tuple[int, ...], state: str = "8bit", rounding: Rounding = "stochastic", age: int = 7
    ) -> Step:
        """Return a step of the rule on normal values, with states in a format. Equal arguments give equal bits.

        The rule's states must all have the parameter's shape.
        """
        generator = torch.Generator().manual_seed(sum(shape) + age)
        states = []
        for slot in self.slots:
            name = "fp32" if slot.exact else resolve_name(state, signed=slot.signed)
            quantizer = Quantizer(name, rounding=slot.rounding or rounding)
            values = torch.randn(shape, generator=generator) * 0.03
            codes, scale = quantizer.with_rounding("nearest").quantize(values if slot.signed else values.square())
            states.append(Stored(slot, quantizer, torch.Size(shape), codes, scale))
        param, grad = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator) * 0.1
        binding = Binding(self.rule, param, tuple(states))
        lane = lanes(tuple(s.name for s in self.slots))
        keys = [(2026 + age, 1128, lane[name]) for name in binding.names]
        return Step(binding, (grad,), self.scalars(age), keys)

    def scalars(self, age: int) -> dict[str, float]:
        """Return the scalars of the step in which every state has this age."""
        ages = {"step": age, **{s.name: age for s in self.slots}}
        return all_fp32(self.rule.scalars(self.hyper, ages))


def variants() -> list[Variant]:
    """Return each variant once: every optimizer with its choices, and the averages."""
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
        found[rule] = Variant(rule.name, rule, {"decay": 0.999})  # type: ignore[index]
    return list(found.values())


VARIANTS = variants()
ELEMENTWISE = [
    v
    for v in VARIANTS
    if v.rule.elementwise and v.rule.measure is None and all(s.shape((2, 3)) == (2, 3) for s in v.slots)
]
"""The variants whose step is one elementwise program without sums."""
