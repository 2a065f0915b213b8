"""A check for 16-bit weights that would not move, being rounded to nearest without master weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.sharding import is_sharded, is_wrapper
from halfulp.rules.base import Rule
from halfulp.rules.checks import as_scalars

__all__ = ["standing"]

SAMPLE = 4096
"""The number of weights to sample."""


def standing(rule: Rule, group: Mapping[str, Any], param: Tensor) -> float | None:
    """Return the share of weights that a first step at the full rate leaves unchanged because of rounding.

    The rule runs on a sample of the weights and gradients of a 16-bit parameter, from its initial states. The learning
    rate is that from which schedules start, so that a warm-up does not count. The share is among weights with a nonzero
    update. It is ``None`` if unknown: for a rule that is not elementwise, for a sharded parameter, or if no weight has
    an update.
    """
    if not rule.shardable or param.grad is None or is_sharded(param) or is_wrapper(param):
        return None
    slots = rule.slots(group)
    if any(slot.shape(tuple(param.shape)) != tuple(param.shape) for slot in slots):
        return None
    low = param.detach().reshape(-1)[:SAMPLE]
    weight, grad = low.float(), param.grad.detach().reshape(-1)[:SAMPLE].float()
    states = {s.name: torch.zeros_like(weight) if s.init is None else s.init(weight) for s in slots}
    ages = dict.fromkeys(("step", *states), 1)
    scalars = rule.scalars({**group, "lr": group.get("initial_lr", group["lr"])}, ages)
    new = rule.apply(weight, (-grad if group["maximize"] else grad,), states, as_scalars(rule.name, scalars))[0]
    assert new is not None
    due = torch.isfinite(new) & (new != weight)
    count = int(due.sum())
    return float((due & (new.to(low.dtype) == low)).sum()) / count if count else None
