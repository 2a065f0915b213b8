"""The optimizers of this library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halfulp.engine.sharding import local
from halfulp.libraries.base import Group, Law, Located, Skipped, Stored, WeightStep
from halfulp.libraries.weights import adam_update, lion_update, sgd_update
from halfulp.numbers.quantizer import Quantizer

if TYPE_CHECKING:
    from halfulp.engine.optimizer import RuleOptimizer
    from halfulp.rules.slots import StateSlot

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

    def locate(self, shape: torch.Size, index: Tensor) -> Located:
        """See :class:`~halfulp.libraries.base.Codec`."""
        code, scale, odd = self.quantizer.locate(shape, index)
        return Located((code,) if scale is None else (code, scale), odd)

    def decode(self, parts: list[Tensor], extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :class:`~halfulp.libraries.base.Codec`; an fp32 scale moves, so that there the codes are compared."""
        scale = parts[1] if len(parts) > 1 else None
        codes = self.quantizer.pick(parts[0], extra)
        values = self.quantizer.decode_picked(codes, scale)
        moving = scale is not None and self.quantizer.scaling.kind == "fp32"
        return values, codes if moving else values


def _base() -> type[RuleOptimizer]:
    from halfulp.engine.optimizer import RuleOptimizer

    return RuleOptimizer


class Ours:
    """The adapter of :class:`halfulp.engine.optimizer.RuleOptimizer`."""

    name = "halfulp"
    counts_resets = True

    def recognises(self, optimizer: torch.optim.Optimizer, entries: Mapping[Any, Any]) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        return isinstance(optimizer, _base())

    def stored(
        self, optimizer: torch.optim.Optimizer, group: Group, param: Tensor, entries: Mapping[Any, Any]
    ) -> list[Stored | Skipped]:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        found: list[Stored | Skipped] = []
        assert isinstance(optimizer, _base())
        for state in optimizer.states(param):
            slot = state.slot
            if slot.drive not in ("grad", "grad_sq"):
                found.append(Skipped(slot.name, "the rule declares no simple law for it"))
            elif slot.init is not None:
                found.append(Skipped(slot.name, "it starts from a value of its own"))
            elif tuple(state.shape) != tuple(local(param).shape):
                shapes = f"of shape {tuple(state.shape)}, the parameter {tuple(local(param).shape)}"
                found.append(Skipped(slot.name, shapes))
            else:
                tensors = (state.codes,) if state.scale is None else (state.codes, state.scale)
                codec = QuantizerCodec(state.quantizer)
                found.append(Stored(slot.name, _law(optimizer, param, slot), codec, tensors, state.entries, slot.name))
        return found

    def age(self, group: Group, entries: Mapping[Any, Any], slot: str) -> int | None:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        age: int | None = entries.get(f"{slot}_age")
        return age

    def l2(self, optimizer: torch.optim.Optimizer, group: Group) -> float:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        coupled = not group.get("decoupled_weight_decay", optimizer.rule.name != "sgd")  # type: ignore[attr-defined]
        return float(group["weight_decay"]) if coupled else 0.0

    def weight_update(self, optimizer: torch.optim.Optimizer, group: Group, step: WeightStep) -> Tensor | str:
        """See :class:`~halfulp.libraries.base.Adapter`; from the exact moments, as the bit contract has it."""
        rule = "+".join(r.name for r in optimizer.active_rules(group))  # type: ignore[attr-defined]
        if rule == "adam":
            return adam_update(group, step, step.exact, group["betas"], decoupled=bool(group["decoupled_weight_decay"]))
        if rule == "sgd":
            return sgd_update(group, step, step.exact)
        if rule == "lion":
            return lion_update(group, step, group["betas"], decoupled=True)
        return f"the update of the rule {rule!r} is not computed here"


def _law(optimizer: RuleOptimizer, param: Tensor, slot: StateSlot) -> Law:
    def coefficients(group: Group, age: int) -> tuple[float, float]:
        if slot.name == "momentum_buffer":  # torch starts it with the gradient itself, and so do we
            return (0.0, 1.0) if age == 1 else slot.coefficients(group)
        return optimizer.coefficients(param)[slot.name]

    plain = slot.like is None  # what starts whole or starts anew has another build-up than its age says
    return Law(slot.drive, coefficients, lambda group: coefficients(group, 2)[0], predictable=plain)
