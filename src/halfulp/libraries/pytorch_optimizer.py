"""pytorch-optimizer: the field's names as plain tensors, further averages, and FlashAdamW's companded 8-bit states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfulp.libraries.base import Group, Law, Located, Skipped, Stored, WeightStep
from halfulp.libraries.optimi import debiased
from halfulp.libraries.torch_optim import GRAD, GRAD_SQ, TorchOptim, averaging, beta, betas_of
from halfulp.libraries.weights import adam_update, lion_update

__all__ = ["Companded", "PytorchOptimizer"]

GRAD_EMAS = ("AdamP", "AdaBelief", "AdEMAMix", "AdaBound", "AdaMod", "DiffGrad", "EXAdam", "FlashAdamW", "SGDP", "Yogi")
"""Optimizers whose ``exp_avg`` averages the bare gradient with ``betas[0]``."""
SQUARE_EMAS = ("AdamP", "AdEMAMix", "ADOPT", "AdaBound", "AdaMod", "DiffGrad", "EXAdam", "FlashAdamW")
"""Optimizers whose ``exp_avg_sq`` averages the bare squared gradient with ``betas[1]``."""


@dataclass(frozen=True)
class Companded:
    """Codes of 8 bits in groups of 32 with an fp16 scale: the root of ``v`` linearly, ``m`` through a softsign."""

    signed: bool
    format: str = "companded8"
    rounding: str = "nearest"

    def locate(self, shape: torch.Size, index: Tensor) -> Located:
        """See :class:`~halfulp.libraries.base.Codec`."""
        return Located((index, index // 32))

    def decode(self, parts: list[Tensor], extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :class:`~halfulp.libraries.base.Codec`; the scale moves, so that codes are compared."""
        codes, scale = parts[0], parts[1].float()
        if not self.signed:
            return (codes.float() / 255.0 * scale).square(), codes
        y = codes.float() / 127.0
        return y / (2.0 - y.abs()) * scale, codes


class PytorchOptimizer(TorchOptim):
    """The adapter of ``pytorch-optimizer``: those of its optimizers whose averages follow a simple law."""

    name = "pytorch-optimizer"

    def recognises(self, optimizer: torch.optim.Optimizer, entries: Mapping[Any, Any]) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        if any(isinstance(k, str) and k.endswith("::quantized") for k in entries):
            return True
        return any(base.__module__.startswith("pytorch_optimizer.") for base in type(optimizer).__mro__)

    def law(self, optimizer: torch.optim.Optimizer, group: Group, key: str) -> Law | None:
        """Law of the state under a key; ``None`` where none fits."""
        kind = type(optimizer).__name__
        if kind == "StableAdamW":
            plain = {"exp_avg": ("grad", beta(0)), "exp_avg_sq": ("grad_sq", beta(1))}
            return debiased(*plain[key]) if key in plain else None
        if kind == "Lion" and key == "exp_avg":
            return averaging("grad", beta(1))
        if kind == "AdEMAMix" and key == "exp_avg_slow":
            return None if group.get("t_alpha_beta3") else averaging("grad", beta(2))
        if key == "exp_avg" and kind in GRAD_EMAS:
            return GRAD
        if key == "exp_avg_sq" and kind in SQUARE_EMAS:
            # ADOPT's second moment starts as the squared gradient itself
            return Law("grad_sq", _started, beta(1), predictable=False) if kind == "ADOPT" else GRAD_SQ
        return None

    def stored(
        self, optimizer: torch.optim.Optimizer, group: Group, param: Tensor, entries: Mapping[Any, Any]
    ) -> list[Stored | Skipped]:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        packed = {k for k in entries if isinstance(k, str) and "::" in k}
        found = super().stored(optimizer, group, param, {k: v for k, v in entries.items() if k not in packed})
        found = [
            Stored(s.slot, s.law, s.codec, s.tensors, entries, s.key) if isinstance(s, Stored) else s for s in found
        ]
        for slot, law in (("exp_avg", GRAD), ("exp_avg_sq", GRAD_SQ)):
            key = f"{slot}::quantized"
            if key in entries:
                tensors = (entries[key], entries[f"{slot}::scales"])
                found.append(Stored(slot, law, Companded(slot == "exp_avg"), tensors, entries, key))
        return found

    def decoupled(self, optimizer: torch.optim.Optimizer, group: Group) -> bool:
        """Whether weight decay leaves the gradient alone."""
        return bool(group.get("weight_decouple", True))

    def weight_update(self, optimizer: torch.optim.Optimizer, group: Group, step: WeightStep) -> Tensor | str:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        kind, betas = type(optimizer).__name__, betas_of(group)
        if kind == "FlashAdamW" and betas is not None:
            return adam_update(group, step, step.exact, (betas[0], betas[1]), decoupled=True)
        if kind == "Lion" and betas is not None:
            return lion_update(group, step, (betas[0], betas[1]), decoupled=self.decoupled(optimizer, group))
        return f"the update of pytorch-optimizer's {kind} is not computed here"


def _started(group: Group, age: int) -> tuple[float, float]:
    value = beta(1)(group)
    return (0.0, 1.0) if age == 1 else (value, 1.0 - value)
