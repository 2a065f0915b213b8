"""Adapter of bitsandbytes: 8-bit states in blocks (also paged), or 32-bit ones, as ``state1`` and ``state2``."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.libraries.base import (
    Codebook,
    Codec,
    Entries,
    Followed,
    Group,
    Plain,
    Skipped,
    Stored,
    averages,
    other_shape,
)
from halfulp.libraries.torch_optim import ADAM_SLOTS, LION_SLOT, SUM, adam_hyper, beta, plain_format, started
from halfulp.rules.adam import ADAM
from halfulp.rules.momentum import LION
from halfulp.rules.slots import GRADIENT, SQUARE, Hyper, StateSlot

__all__ = ["BitsAndBytes", "bitsandbytes_state"]


BUFFER = StateSlot("momentum_buffer", True, started(beta(0)), GRADIENT, gain=lambda h: 1.0)
SLOTS: dict[str, tuple[StateSlot, ...]] = {
    "adam": (ADAM_SLOTS["exp_avg"], ADAM_SLOTS["exp_avg_sq"]),
    "lamb": (ADAM_SLOTS["exp_avg"], ADAM_SLOTS["exp_avg_sq"]),
    "lion": (LION_SLOT,),
    "momentum": (BUFFER,),
    "lars": (BUFFER,),
    "rmsprop": (StateSlot("square_avg", False, beta(0), SQUARE),),
    "adagrad": (SUM,),
}
"""Meaning of ``state1`` and ``state2``, by the optimizer's name in bitsandbytes."""
COUPLED = ("momentum", "lars", "rmsprop", "adagrad")
"""Optimizers that add weight decay to the gradient."""


def bitsandbytes_state(entries: Entries, key: str) -> tuple[Codec, tuple[Tensor, ...]] | str:
    """Return the codec and tensors of ``state1`` or ``state2``, or the reason why it cannot be read."""
    state, which = entries[key], key[-1]
    if state.dtype != torch.uint8:
        return Plain(plain_format(state)), (state,)
    if f"absmax{which}" not in entries:
        return "not blockwise: its scale is of the whole tensor"
    absmax, levels, numel = entries[f"absmax{which}"], entries[f"qmap{which}"], state.numel()
    block = 256 if absmax.numel() == (numel + 255) // 256 else -(-numel // absmax.numel())
    name = "udynamic8" if float(levels.min()) >= 0 else "dynamic8"
    return Codebook(name, tuple(levels.tolist()), block), (state, absmax)


class BitsAndBytes:
    """The adapter of ``bitsandbytes.optim``. Paged states are read in place."""

    name = "bitsandbytes"
    counts_resets = False

    def recognises(self, optimizer: Optimizer, entries: Entries) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        return "state1" in entries

    def stored(self, optimizer: Optimizer, group: Group, param: Tensor, entries: Entries) -> list[Stored | Skipped]:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        slots = SLOTS.get(self._kind(optimizer, entries), ())
        found: list[Stored | Skipped] = []
        for place, key in enumerate(("state1", "state2")):
            tensor = entries.get(key)
            if tensor is None:
                continue
            if place >= len(slots):
                found.append(Skipped(key, f"the states of {self._kind(optimizer, entries)!r} are not known here"))
            elif tensor.shape != param.shape:
                found.append(other_shape(slots[place].name, tensor, param))
            elif isinstance(state := bitsandbytes_state(entries, key), str):
                found.append(Skipped(slots[place].name, state))
            else:
                found.append(Stored(slots[place].name, *state, entries, key))
        return found

    def _kind(self, optimizer: Optimizer, entries: Entries) -> str:
        return str(getattr(optimizer, "optimizer_name", "adam" if "state2" in entries else "momentum"))

    def age(self, group: Group, entries: Entries, slot: str) -> int | None:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        return int(entries["step"]) if "step" in entries else None

    def follows(self, optimizer: Optimizer, group: Group, param: Tensor, slots: Collection[str]) -> Followed:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        kind = self._kind(optimizer, optimizer.state[param])
        known = SLOTS.get(kind, ())
        if kind in ("adam", "lion") and all(slot.name in slots for slot in known):
            return Followed(ADAM if kind == "adam" else LION, lambda group, param: adam_hyper(group, decoupled=True))

        def hyper(group: Group, param: Tensor) -> Hyper:
            return {**group, "l2": float(group.get("weight_decay", 0.0)) if kind in COUPLED else 0.0}

        plain = tuple(slot for slot in known if slot.name in slots)
        return Followed(averages(plain), hyper, f"the update of {kind!r} is not computed here")
