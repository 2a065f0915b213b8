"""bitsandbytes: states of 8 bits in blocks (also paged), or of 32, under the keys ``state1`` and ``state2``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halfulp.libraries.base import Codebook, Group, Law, Plain, Skipped, Stored, WeightStep
from halfulp.libraries.torch_optim import GRAD, GRAD_SQ, SUM, averaging, beta, betas_of, plain_format
from halfulp.libraries.weights import adam_update, lion_update, number

__all__ = ["BitsAndBytes", "bitsandbytes_codec"]


def _momentum(group: Group, age: int) -> tuple[float, float]:
    return (0.0, 1.0) if age == 1 else (beta(0)(group), 1.0)


SLOTS: dict[str, dict[str, tuple[str, Law]]] = {
    "adam": {"state1": ("exp_avg", GRAD), "state2": ("exp_avg_sq", GRAD_SQ)},
    "lamb": {"state1": ("exp_avg", GRAD), "state2": ("exp_avg_sq", GRAD_SQ)},
    "lion": {"state1": ("exp_avg", averaging("grad", beta(1)))},
    "momentum": {"state1": ("momentum_buffer", Law("grad", _momentum, beta(0)))},
    "lars": {"state1": ("momentum_buffer", Law("grad", _momentum, beta(0)))},
    "rmsprop": {"state1": ("square_avg", averaging("grad_sq", beta(0)))},
    "adagrad": {"state1": ("sum", SUM)},
}
"""What the states are, by the name that an optimizer of bitsandbytes carries."""


def bitsandbytes_codec(entries: Mapping[Any, Any], which: str, numel: int) -> Codebook:
    """How an 8-bit state is decoded: ``which`` is ``"1"`` or ``"2"``."""
    scales, levels = entries[f"absmax{which}"].numel(), entries[f"qmap{which}"]
    block = 256 if scales == (numel + 255) // 256 else -(-numel // scales)
    return Codebook("udynamic8" if float(levels.min()) >= 0 else "dynamic8", tuple(levels.tolist()), block)


class BitsAndBytes:
    """The adapter of ``bitsandbytes.optim``. Paged states are read where they lie."""

    name = "bitsandbytes"
    counts_resets = False

    def recognises(self, optimizer: torch.optim.Optimizer, entries: Mapping[Any, Any]) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        return "state1" in entries

    def stored(
        self, optimizer: torch.optim.Optimizer, group: Group, param: Tensor, entries: Mapping[Any, Any]
    ) -> list[Stored | Skipped]:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        kind = getattr(optimizer, "optimizer_name", "adam" if "state2" in entries else "momentum")
        slots = SLOTS.get(kind)
        found: list[Stored | Skipped] = []
        for key in ("state1", "state2"):
            tensor, which = entries.get(key), key[-1]
            if tensor is None:
                continue
            if slots is None or key not in slots:
                found.append(Skipped(key, f"the states of {kind!r} are not known here"))
                continue
            slot, law = slots[key]
            if tensor.shape != param.shape:
                found.append(Skipped(slot, f"of shape {tuple(tensor.shape)}, the parameter {tuple(param.shape)}"))
            elif tensor.dtype != torch.uint8:
                found.append(Stored(slot, law, Plain(plain_format(tensor)), (tensor,), entries, key))
            elif f"absmax{which}" not in entries:
                found.append(Skipped(slot, "not blockwise: its scale is of the whole tensor"))
            else:
                codec = bitsandbytes_codec(entries, which, param.numel())
                found.append(Stored(slot, law, codec, (tensor, entries[f"absmax{which}"]), entries, key))
        return found

    def age(self, group: Group, entries: Mapping[Any, Any], slot: str) -> int | None:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        return int(entries["step"]) if "step" in entries else None

    def l2(self, optimizer: torch.optim.Optimizer, group: Group) -> float:
        """See :class:`~halfulp.libraries.base.Adapter`; Adam, LAMB and Lion decay the weights, not the gradient."""
        coupled = getattr(optimizer, "optimizer_name", "adam") in ("momentum", "lars", "rmsprop", "adagrad")
        return number(group.get("weight_decay", 0.0)) if coupled else 0.0

    def weight_update(self, optimizer: torch.optim.Optimizer, group: Group, step: WeightStep) -> Tensor | str:
        """See :class:`~halfulp.libraries.base.Adapter`; from the exact moments."""
        kind, betas = getattr(optimizer, "optimizer_name", "adam"), betas_of(group)
        if kind == "adam" and betas is not None:
            return adam_update(group, step, step.exact, (betas[0], betas[1]), decoupled=True)
        if kind == "lion" and betas is not None:
            return lion_update(group, step, (betas[0], betas[1]), decoupled=True)
        return f"the update of {kind!r} is not computed here"
