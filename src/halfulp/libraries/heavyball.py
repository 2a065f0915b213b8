"""Adapter of heavyball: chains of transforms with their states in one mapping. bf16 is rounded stochastically."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.libraries.base import Entries, Followed, Group, Plain, Skipped, Stored, averages
from halfulp.libraries.optimi import debiased
from halfulp.libraries.torch_optim import beta, betas_of, plain_format
from halfulp.rules.slots import GRADIENT, SQUARE, Hyper, StateSlot

__all__ = ["HeavyBall", "is_chain"]


def _first(hyper: Hyper) -> float:
    return betas_of(hyper)[0] if betas_of(hyper) else float(hyper["beta"])


BUFFER = StateSlot("momentum_buffer", True, _first, GRADIENT, gain=lambda h: 1.0)
SLOTS: tuple[tuple[str, StateSlot], ...] = (
    ("update_by_adam_exp_avg_sq", debiased("exp_avg_sq", beta(1), SQUARE)),
    ("update_by_adam_exp_avg", debiased("exp_avg", _first, GRADIENT)),
    ("heavyball_momentum_momentum", BUFFER),
    ("nesterov_momentum_momentum", BUFFER),
    ("nesterov_ema_momentum", StateSlot("exp_avg", True, _first, GRADIENT)),
)
"""Pairs of (key prefix, slot): transforms that average the gradient itself when they are first in a chain."""


def _slot(key: Any) -> StateSlot | None:
    return next((slot for start, slot in SLOTS if str(key).startswith(start)), None)


def is_chain(entries: Entries) -> bool:
    """Whether the entries that an optimizer keeps for a parameter are those of a chain of heavyball."""
    return isinstance(entries.get(0), Mapping) and "is_initialized" in entries[0]


class HeavyBall:
    """The adapter of ``heavyball``. It reads the first transform of a chain, whose input is the gradient."""

    name = "heavyball"
    counts_resets = False

    def recognises(self, optimizer: Optimizer, entries: Entries) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        return is_chain(entries)

    def stored(self, optimizer: Optimizer, group: Group, param: Tensor, entries: Entries) -> list[Stored | Skipped]:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        found: list[Stored | Skipped] = []
        if len([k for k in entries if isinstance(k, int)]) > 1:
            return [Skipped("all", "the parameter is updated in several views")]
        holder = entries[0]
        for key, tensor in holder.items():
            if not isinstance(tensor, Tensor) or tensor.ndim == 0:
                continue
            slot = _slot(key)
            if slot is None:
                found.append(Skipped(str(key), "the transform it belongs to is not known here"))
            elif tensor.numel() != param.numel() or not tensor.is_floating_point():
                found.append(Skipped(slot.name, f"stored as {tensor.dtype} of shape {tuple(tensor.shape)}"))
            else:
                fmt = plain_format(tensor)
                codec = Plain(fmt, "stochastic" if fmt == "bfloat16" else "nearest")
                found.append(Stored(slot.name, codec, (tensor,), holder, key))
        return found

    def age(self, group: Group, entries: Entries, slot: str) -> int | None:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        step = entries[0].get("step")
        return None if step is None else int(step)

    def follows(self, optimizer: Optimizer, group: Group, param: Tensor, slots: Collection[str]) -> Followed:
        """See :class:`~halfulp.libraries.base.Adapter`. heavyball also decays the weights."""
        kept = (_slot(key) for key in optimizer.state[param][0])
        plain = tuple(slot for slot in kept if slot is not None and slot.name in slots)
        return Followed(
            averages(plain), lambda group, param: group, "the update of a heavyball chain is not computed here"
        )
