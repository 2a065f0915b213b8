"""Adapter of pytorch-optimizer: plain tensors with standard names, and FlashAdamW's companded 8-bit states."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.libraries.base import Entries, Followed, Group, Located, Skipped, Stored
from halfulp.libraries.optimi import DEBIASED
from halfulp.libraries.torch_optim import ADAM_SLOTS, LION_SLOT, TorchOptim, adam_hyper, beta, betas_of, started
from halfulp.rules.adam import ADAM
from halfulp.rules.base import Rule
from halfulp.rules.momentum import LION
from halfulp.rules.slots import GRADIENT, Drive, Hyper, StateSlot

__all__ = ["Companded", "PytorchOptimizer"]

GRAD_EMAS = ("AdamP", "AdaBelief", "AdEMAMix", "AdaBound", "AdaMod", "DiffGrad", "EXAdam", "FlashAdamW", "SGDP", "Yogi")
"""Optimizers whose ``exp_avg`` averages the plain gradient with ``betas[0]``."""
SQUARE_EMAS = ("AdamP", "AdEMAMix", "ADOPT", "AdaBound", "AdaMod", "DiffGrad", "EXAdam", "FlashAdamW")
"""Optimizers whose ``exp_avg_sq`` averages the plain squared gradient with ``betas[1]``."""


ADOPT_SQ = StateSlot("exp_avg_sq", False, started(beta(1)), Drive("square", whole_first=True))
SLOW = StateSlot("exp_avg_slow", True, beta(2), GRADIENT)


@dataclass(frozen=True)
class Companded:
    """8-bit codes in groups of 32 with an fp16 scale. The root of ``v`` is linear, ``m`` passes through a softsign."""

    signed: bool
    format = "companded8"
    rounding = "nearest"
    moving = True
    block = 32

    def locate(self, shape: torch.Size, index: Tensor) -> Located:
        """See :class:`~halfulp.libraries.base.Codec`."""
        return Located((index, index // self.block))

    def decode(self, parts: list[Tensor], extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :class:`~halfulp.libraries.base.Codec`. Codes are compared, since the scale moves the values."""
        codes, scale = parts[0], parts[1].float()
        if not self.signed:
            return (codes.float() / 255.0 * scale).square(), codes
        y = codes.float() / 127.0
        return y / (2.0 - y.abs()) * scale, codes


class PytorchOptimizer(TorchOptim):
    """The adapter of ``pytorch-optimizer``, for optimizers whose averages follow a simple law."""

    name = "pytorch-optimizer"

    def recognises(self, optimizer: Optimizer, entries: Entries) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        if any(isinstance(k, str) and k.endswith("::quantized") for k in entries):
            return True
        return any(base.__module__.startswith("pytorch_optimizer.") for base in type(optimizer).__mro__)

    def slot(self, optimizer: Optimizer, group: Group, key: str) -> StateSlot | None:
        """Return the plain average under a key, or ``None``."""
        kind = type(optimizer).__name__
        if kind == "StableAdamW":
            return DEBIASED.get(key)
        if kind == "Lion" and key == "exp_avg":
            return LION_SLOT
        if kind == "AdEMAMix" and key == "exp_avg_slow":
            return None if group.get("t_alpha_beta3") else SLOW
        if (key == "exp_avg" and kind in GRAD_EMAS) or (key == "exp_avg_sq" and kind in SQUARE_EMAS):
            return ADOPT_SQ if kind == "ADOPT" else ADAM_SLOTS[key]
        return None

    def rule(self, optimizer: Optimizer, group: Group) -> tuple[Rule, Hyper] | str:
        """Return the optimizer's complete rule and its hyper-parameters, or the reason why there is none."""
        kind = type(optimizer).__name__
        if kind == "Lion" and len(betas_of(group)) >= 2 and self.decoupled(optimizer, group):
            return LION, adam_hyper(group, decoupled=True)
        return f"the update of pytorch-optimizer's {kind} is not computed here"

    def encoded(self, key: str, entries: Entries) -> list[Stored | Skipped] | None:
        """See :class:`TorchOptim`."""
        slot, separator, part = key.partition("::")
        if not separator:
            return None
        if slot not in ADAM_SLOTS or part != "quantized":  # scales
            return []
        tensors = (entries[key], entries[f"{slot}::scales"])
        return [Stored(slot, Companded(slot == "exp_avg"), tensors, entries, key)]

    def follows(self, optimizer: Optimizer, group: Group, param: Tensor, slots: Collection[str]) -> Followed:
        """See :class:`~halfulp.libraries.base.Adapter`. Companded states belong to FlashAdamW."""
        if any(isinstance(k, str) and k.endswith("::quantized") for k in optimizer.state[param]):
            return Followed(ADAM, lambda group, param: adam_hyper(group, decoupled=True))
        return super().follows(optimizer, group, param, slots)

    def decoupled(self, optimizer: Optimizer, group: Group) -> bool:
        """Whether weight decay is decoupled from the gradient."""
        return bool(group.get("weight_decouple", True))
