"""Adapter of this library's own optimizers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.engine.optimizer import RuleOptimizer
from halfulp.engine.sharding import local
from halfulp.libraries.base import Entries, Followed, Group, Located, Skipped, Stored, averages
from halfulp.numbers.quantizer import Quantizer
from halfulp.rules.slots import Hyper, StateSlot

__all__ = ["Ours", "QuantizerCodec"]


@dataclass(frozen=True)
class QuantizerCodec:
    """Codes and scales of a :class:`~halfulp.numbers.quantizer.Quantizer`."""

    quantizer: Quantizer

    @property
    def format(self) -> str:
        """See :class:`~halfulp.libraries.base.Codec`."""
        return self.quantizer.format.name

    @property
    def rounding(self) -> str:
        """See :class:`~halfulp.libraries.base.Codec`."""
        return self.quantizer.rounding

    @property
    def moving(self) -> bool:
        """See :class:`~halfulp.libraries.base.Codec`."""
        return self.quantizer.format.scaled and self.quantizer.scaling.kind == "fp32"

    def locate(self, shape: torch.Size, index: Tensor) -> Located:
        """See :class:`~halfulp.libraries.base.Codec`."""
        code, scale, odd = self.quantizer.locate(shape, index)
        return Located((code,) if scale is None else (code, scale), odd)

    def decode(self, parts: list[Tensor], extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :class:`~halfulp.libraries.base.Codec`. Codes are compared if an fp32 scale moves the values."""
        codes = self.quantizer.pick(parts[0], extra)
        values = self.quantizer.decode_picked(codes, parts[1] if len(parts) > 1 else None)
        return values, codes if self.moving else values


class Ours:
    """The adapter of :class:`halfulp.engine.optimizer.RuleOptimizer`."""

    name = "halfulp"
    counts_resets = True

    def recognises(self, optimizer: Optimizer, entries: Entries) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        return isinstance(optimizer, RuleOptimizer)

    def stored(self, optimizer: Optimizer, group: Group, param: Tensor, entries: Entries) -> list[Stored | Skipped]:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        found: list[Stored | Skipped] = []
        assert isinstance(optimizer, RuleOptimizer)
        whole = _samples(optimizer, group, param)
        for state in optimizer.states(param):
            slot, shape = state.slot, tuple(local(param).shape)
            if tuple(state.shape) != shape:
                found.append(Skipped(slot.name, f"of shape {tuple(state.shape)}, the parameter {shape}"))
            elif not whole and (slot.alike or slot.averages(group, shape) is None):
                found.append(Skipped(slot.name, "the rule declares no simple law for it"))
            elif not whole and slot.init is not None:
                found.append(Skipped(slot.name, "it starts from a value of its own"))
            else:
                tensors = (state.codes,) if state.scale is None else (state.codes, state.scale)
                found.append(Stored(slot.name, QuantizerCodec(state.quantizer), tensors, state.entries, slot.name))
        return found

    def follows(self, optimizer: Optimizer, group: Group, param: Tensor, slots: Collection[str]) -> Followed:
        """See :class:`~halfulp.libraries.base.Adapter`. Uses the exact moments, as the bit contract specifies."""
        assert isinstance(optimizer, RuleOptimizer)
        rule = optimizer.active_rule(dict(group), param)
        if _samples(optimizer, group, param):
            return Followed(rule, lambda group, param: group)
        plain = tuple(_with_coefficients(s.slot) for s in optimizer.states(param) if s.slot.name in slots)

        def hyper(group: Group, param: Tensor) -> Hyper:
            """Return the hyper-parameters with this step's coefficients, which sums over the model may have changed."""
            coupled = not group.get("decoupled_weight_decay", True)
            l2 = float(group.get("weight_decay", 0.0)) if coupled else 0.0
            return {**group, "l2": l2, **optimizer.coefficients(param)}

        why = f"the update of the rule {rule.name!r} is not computed here"
        return Followed(averages(plain), hyper, why, apart=rule.per_tensor)

    def age(self, group: Group, entries: Entries, slot: str) -> int | None:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        age: int | None = entries.get(f"{slot}_age")
        return age


def _samples(optimizer: RuleOptimizer, group: Group, param: Tensor) -> bool:
    """Whether a parameter's rule can be run on a sample of its elements."""
    rule = optimizer.active_rule(dict(group), param)
    shape = tuple(local(param).shape)
    return rule.shardable and all(slot.shape(shape) == shape for slot in rule.slots(group))


@cache
def _with_coefficients(slot: StateSlot) -> StateSlot:
    """Return a slot that reads its decay and gain from the hyper-parameters, under its own name."""

    def decay(hyper: Hyper) -> float:
        return float(hyper[slot.name][0])

    return replace(slot, decay=decay, gain=lambda hyper: float(hyper[slot.name][1]))
