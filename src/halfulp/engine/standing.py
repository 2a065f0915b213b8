"""Whether 16-bit weights, rounded to nearest and without master weights, would stand still at a rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.sharding import is_sharded, is_wrapper
from halfulp.rules.base import Rule, all_fp32

__all__ = ["standing"]

SAMPLE = 4096
"""Weights that are looked at."""


def standing(rule: Rule, group: Mapping[str, Any], param: Tensor) -> float | None:
    """Share of the weights that a first step at the full rate would leave where they are, by rounding alone.

    The rule is run on a sample of the weights and gradients, from its initial states. The rate is that from which
    schedules start, so that a warm-up does not count.

    Parameters
    ----------
    rule
        What the parameter follows.
    group
        Its hyper-parameters.
    param
        In 16 bits, with a gradient.

    Returns
    -------
    float or None
        Among the weights with an update; ``None`` where it is not known: for a rule that looks at more than one element
        at a time, for a sharded parameter, and where no weight has an update.
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
    new = rule.apply(weight, (-grad if group["maximize"] else grad,), states, all_fp32(scalars))[0]
    assert new is not None
    due = torch.isfinite(new) & (new != weight)
    count = int(due.sum())
    return float((due & (new.to(low.dtype) == low)).sum()) / count if count else None
