"""heavyball: states of a chain of transforms in a mapping of their own; bf16 storage is rounded stochastically."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halfulp.libraries.base import Group, Law, Plain, Skipped, Stored, WeightStep
from halfulp.libraries.optimi import debiased
from halfulp.libraries.torch_optim import averaging, betas_of, plain_format
from halfulp.libraries.weights import number

__all__ = ["HeavyBall"]


def _first(group: Group) -> float:
    betas = betas_of(group)
    return number(group["beta"]) if betas is None else betas[0]


def _second(group: Group) -> float:
    betas = betas_of(group)
    if betas is None:
        raise KeyError("betas")
    return betas[1]


LAWS: tuple[tuple[str, str, Law], ...] = (
    ("update_by_adam_exp_avg_sq", "exp_avg_sq", debiased("grad_sq", _second)),
    ("update_by_adam_exp_avg", "exp_avg", debiased("grad", _first)),
    ("heavyball_momentum_momentum", "momentum_buffer", Law("grad", lambda g, age: (_first(g), 1.0), _first)),
    ("nesterov_momentum_momentum", "momentum_buffer", Law("grad", lambda g, age: (_first(g), 1.0), _first)),
    ("nesterov_ema_momentum", "exp_avg", averaging("grad", _first)),
)
"""(start of the key, slot, law): the transforms that average the gradient itself, which is the first of a chain."""


class HeavyBall:
    """The adapter of ``heavyball``: the first transform of a chain, whose input is the gradient."""

    name = "heavyball"
    counts_resets = False

    def recognises(self, optimizer: torch.optim.Optimizer, entries: Mapping[Any, Any]) -> bool:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        return 0 in entries and isinstance(entries[0], dict) and "is_initialized" in entries[0]

    def stored(
        self, optimizer: torch.optim.Optimizer, group: Group, param: Tensor, entries: Mapping[Any, Any]
    ) -> list[Stored | Skipped]:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        found: list[Stored | Skipped] = []
        if len([k for k in entries if isinstance(k, int)]) > 1:
            return [Skipped("all", "the parameter is updated in several views")]
        holder = entries[0]
        for key, tensor in holder.items():
            if not isinstance(tensor, Tensor) or tensor.ndim == 0:
                continue
            known = next(((slot, law) for start, slot, law in LAWS if str(key).startswith(start)), None)
            if known is None:
                found.append(Skipped(str(key), "the transform it belongs to is not known here"))
            elif tensor.numel() != param.numel() or not tensor.is_floating_point():
                found.append(Skipped(known[0], f"stored as {tensor.dtype} of shape {tuple(tensor.shape)}"))
            else:
                fmt = plain_format(tensor)
                codec = Plain(fmt, "stochastic" if fmt == "bfloat16" else "nearest")
                found.append(Stored(known[0], known[1], codec, (tensor,), holder, key))
        return found

    def age(self, group: Group, entries: Mapping[Any, Any], slot: str) -> int | None:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        step = entries[0].get("step")
        return None if step is None else int(step)

    def l2(self, optimizer: torch.optim.Optimizer, group: Group) -> float:
        """See :class:`~halfulp.libraries.base.Adapter`; heavyball decays the weights."""
        return 0.0

    def weight_update(self, optimizer: torch.optim.Optimizer, group: Group, step: WeightStep) -> Tensor | str:
        """See :class:`~halfulp.libraries.base.Adapter`."""
        return "the update of a heavyball chain is not computed here"
