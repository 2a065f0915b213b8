"""Adapter of torchao's low-bit optimizers, whose states are tensor subclasses with codes, block scales and a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.libraries.base import Codebook, Codec, Entries, Group, Located, Skipped, Stored
from halfulp.libraries.torch_optim import ADAM_SLOTS, TorchOptim, adam_hyper
from halfulp.numbers.rounding import decode_table
from halfulp.rules.adam import ADAM
from halfulp.rules.base import Rule
from halfulp.rules.slots import Hyper

__all__ = ["Fp8", "TorchAO", "torchao_state"]

KINDS = ("OptimState8bit", "OptimState4bit", "OptimStateFp8")


@dataclass(frozen=True)
class Fp8:
    """float8_e4m3fn codes times an fp32 scale per block."""

    block: int
    format: str = "float8_e4m3fn"
    rounding: str = "nearest"
    moving = True

    def locate(self, shape: torch.Size, index: Tensor) -> Located:
        """See :class:`~halfulp.libraries.base.Codec`."""
        return Located((index, index // self.block))

    def decode(self, parts: list[Tensor], extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :class:`~halfulp.libraries.base.Codec`. Codes are compared, since the scale moves the values."""
        from halfulp.numbers.formats import FORMATS

        codes, scale = parts
        return decode_table(FORMATS[self.format]).to(codes.device)[codes.long()] * scale, codes


def inner(state: Tensor) -> Tensor:
    """Return the low-bit tensor inside a distributed one; others are returned unchanged."""
    to_local = getattr(state, "to_local", None)
    return state if to_local is None else to_local()


def torchao_state(state: Any) -> tuple[Codec, tuple[Tensor, Tensor]]:
    """Return the codec of a torchao state, and its tensors: codes as bytes, and scales."""
    if type(state).__name__ == "OptimStateFp8":
        return Fp8(state.block_size), (state.codes.view(torch.uint8), state.scale)
    four = type(state).__name__ == "OptimState4bit"
    if four:
        name = "dynamic4" if state.signed else "linear4 (1/16 to 1)"
    else:
        name = "dynamic8" if state.signed else "udynamic8"
    codec = Codebook(name, tuple(state.qmap.tolist()), state.block_size, high_first=four)
    return codec, (state.codes, state.scale)


class TorchAO(TorchOptim):
    """The adapter of ``torchao.optim``. Small tensors have plain states in the parameter's dtype."""

    name = "torchao"

    def recognises(self, optimizer: Optimizer, entries: Entries) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        if any(type(inner(v)).__name__ in KINDS for v in entries.values() if isinstance(v, Tensor)):
            return True
        return type(optimizer).__module__.startswith("torchao.") and hasattr(optimizer, "bf16_stochastic_round")

    def encoded(self, key: str, entries: Entries) -> list[Stored | Skipped] | None:
        """See :class:`TorchOptim`."""
        state = inner(entries[key])
        if type(state).__name__ not in KINDS:
            return None
        if key not in ADAM_SLOTS:
            return [Skipped(key, "a running maximum, not an average")]
        return [Stored(key, *torchao_state(state), entries, key)]

    def rule(self, optimizer: Optimizer, group: Group) -> tuple[Rule, Hyper]:
        """Return Adam, or AMSGrad."""
        return ADAM, adam_hyper(group, decoupled=self.decoupled(optimizer, group))

    def decoupled(self, optimizer: Optimizer, group: Group) -> bool:
        """Whether weight decay is decoupled from the gradient."""
        return bool(getattr(optimizer, "is_adamw", type(optimizer).__name__.startswith("AdamW")))
