"""What a worker computes from its weights and the messages of a meeting. Parameters may be sharded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from halfulp.averaging.store import AverageStore
from halfulp.engine.sharding import is_sharded, local
from halfulp.rules.base import total
from halfulp.workers.message import Layout
from halfulp.workers.method import Method, Seen

__all__ = ["distance", "grad_norms", "mixed"]


def grad_norms(title: str, params: Mapping[str, Tensor]) -> list[float]:
    """Return the norm of each gradient of the last step, 0 where there is none. Raise ``ValueError`` if all are 0."""
    found = []
    for param in params.values():
        grad = None if param.grad is None else local(param.grad).float()
        found.append(_summed(param, 0.0 if grad is None else float(total(grad, grad))) ** 0.5)
    if not any(found):
        raise ValueError(
            f"{title} weighs workers by their gradients, and there are none after the step: call zero_grad() before "
            "the backward pass, not within the step"
        )
    return found


def mixed(
    method: Method, hyper: Any, params: Mapping[str, Tensor], own: Mapping[str, Tensor], received: Sequence[Tensor],
    layout: Layout, reference: AverageStore | None, seen: Seen,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the weighted sum of the messages, in the order of the workers, with the same bits on all of them.

    `own` is what this worker sent, before rounding, and `received` are the messages of the circle. They are differences
    to the common weights in `reference`, if there are some.
    """
    rows = method.mix(hyper, seen)
    rows = rows if rows.ndim == 2 else rows.unsqueeze(1).expand(-1, len(own))
    found = {}
    for at, (name, mine) in enumerate(own.items()):
        sent = [layout.decode(message, name) for message in received]
        target = torch.zeros_like(mine)
        for part, share in zip(sent, rows[:, at].tolist(), strict=True):
            if share:
                target = target + part * share
        if method.gossip:  # add back what rounding dropped from the message, to preserve the mean over workers
            target = target + (mine - sent[seen.circle.index(seen.rank)])
        if method.finish is not None:
            base = torch.zeros_like(mine) if reference is None else reference.read(name)
            parts, whole = [base + part for part in sent], partial(_summed, params[name])
            target = method.finish(hyper, base + target, parts, whole) - base
        found[name] = target
    return found


def distance(params: Mapping[str, Tensor], own: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> float:
    """Return the Euclidean distance of the whole model from its target."""
    away = ((param, own[name] - targets[name]) for name, param in params.items())
    return sum(_summed(param, float(total(x, x))) for param, x in away) ** 0.5


def _summed(param: Any, value: float) -> float:
    """Return the sum of a number over the ranks that hold parts of a parameter."""
    if not is_sharded(param):
        return value
    sums = torch.tensor([value], dtype=torch.float64, device=param.device_mesh.device_type)
    for axis, placement in enumerate(param.placements):
        if placement.is_shard():
            torch.distributed.all_reduce(sums, group=param.device_mesh.get_group(axis))
    return float(sums)
