"""The step of a meeting: a worker's weights move towards a target by a share of the distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from halfulp.engine.sharding import local, local_part, shard_like
from halfulp.numbers.formats import get_format
from halfulp.numbers.quantizer import Quantizer, Rounding
from halfulp.numbers.rng import slot_id, step_keys
from halfulp.optim.base import optimizer
from halfulp.rules.base import Ages, Rule, Scalars, States
from halfulp.rules.hyper import HyperBase
from halfulp.rules.slots import Hyper, StateSlot

__all__ = ["PULL", "Pull", "aliases", "go", "place"]


@dataclass(frozen=True)
class PullHyper(HyperBase):
    """Hyper-parameters of a pull.

    Parameters
    ----------
    lr
        Share of the distance to move.
    push
        Subtracted from it. The result may be negative.
    """

    lr: float = 1.0
    push: float = 0.0


def _slots(hyper: Hyper) -> tuple[StateSlot, ...]:
    return ()


def _scalars(hyper: Hyper, ages: Ages) -> Scalars:
    return {"share": float(hyper["lr"]) - hyper["push"]}


def _update(param: Tensor, away: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    return param - away * c["share"], {}


PULL = Rule(
    "pull", _slots, _scalars, _update, hyper=PullHyper, title="Pull",
    summary="a share of the way to a target, from which the parameter is its gradient away",
    example=""">>> import torch
>>> weight = torch.nn.Parameter(torch.tensor([4.0]))
>>> weight.grad = weight.detach() - 2.0  # away from the target 2
>>> Pull([weight], lr=0.5).step()
>>> weight.data
tensor([3.])""",
)  # fmt: skip
"""``param <- param - (lr - push) * grad``, where the gradient is parameter minus target."""

Pull = optimizer(PULL)


def aliases(params: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return parameters that share memory with the given ones, for a separate optimizer."""
    return [(name, torch.nn.Parameter(param.detach())) for name, param in params.items()]


def go(pull: torch.optim.Optimizer, params: Mapping[str, Tensor], targets: Mapping[str, Tensor], share: float) -> None:
    """Move parameters towards targets by a share of the distance, with a step of an optimizer of the rule :data:`PULL`.

    The optimizer's parameters are :func:`aliases` of `params`, in their order. The targets are fp32 values of this
    process's part. A negative share moves away from them. For 16-bit parameters, first the difference is rounded to
    their format (a relative error of at most half a unit), then the sum.
    """
    (group,) = pull.param_groups
    group["lr"], group["push"] = max(share, 0.0), max(-share, 0.0)
    for alias, (name, param) in zip(group["params"], params.items(), strict=True):
        if local(alias).data_ptr() != local(param).data_ptr():
            alias.data = param.data  # the training replaced the parameter's memory
        away = (local(param.detach()).float() - targets[name]).to(param.dtype)
        alias.grad = shard_like(param, away)
    pull.step()
    pull.zero_grad(set_to_none=True)


def place(
    params: Mapping[str, Tensor], targets: Mapping[str, Tensor], rounding: Rounding, seed: int, step: int
) -> None:
    """Set parameters to targets. 16-bit ones are rounded with random bits that are the same on every worker."""
    keys = step_keys(seed, range(len(params)), slot_id("place"), [step] * len(params))
    for (name, param), key in zip(params.items(), keys, strict=True):
        part = local_part(param)
        if param.dtype == torch.float32:
            part.tensor.copy_(targets[name])
            continue
        quantizer = Quantizer(get_format(param.dtype), rounding=rounding)
        words = part.random_bits(key) if quantizer.stochastic else None
        codes, scale = quantizer.quantize(targets[name], words)
        part.tensor.copy_(quantizer.dequantize(codes, scale, part.tensor.shape))
