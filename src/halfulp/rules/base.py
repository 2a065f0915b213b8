"""What a rule is.

A rule is one pure function ``update(param, grad, states, c) -> (new param, new states)`` on fp32 tensors, beside the
declaration of its states and the scalars ``c`` that a step needs. States go in and come out by name. It never sees a
format: the engine decodes the states, calls it, and encodes what it returns.

Every tensor operation of an elementwise rule must round separately, since a kernel has to reproduce it bit by bit:
plain ``+ - * /``, :func:`sqrt` of this module, comparisons and ``where``. Not ``lerp``, ``addcmul``, ``addcdiv`` or
``add(alpha=)``, which fuse or reorder. Scalars are computed once in Python floats and rounded to fp32. Sums over a
tensor go through :func:`total`, whose bits do not depend on the number of threads.

A rule that needs a figure of the whole model (a global norm, an inner product) gives ``measure``: sums of each
parameter, which the engine adds up over all parameters of the optimizer, and ``combine``, which turns them into
further scalars before any parameter is updated.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfulp.rules.slots import Hyper, StateSlot

__all__ = ["Ages", "Rule", "Scalars", "States", "all_fp32", "clamp", "fp32", "norm", "sqrt", "total"]

Scalars = dict[str, float]
States = dict[str, Tensor]
Ages = Mapping[str, int]
Update = Callable[[Tensor, Tensor, States, Scalars], tuple[Tensor, States]]


@dataclass(frozen=True)
class Rule:
    """An update rule.

    Parameters
    ----------
    name
        Its name; a fused kernel is looked up by it.
    slots
        States under given hyper-parameters (SGD without momentum has none).
    scalars
        Numbers that a step needs, from the hyper-parameters and the age of each slot *in* this step (1 in the first),
        by slot name, and ``"step"``, which no reset touches. In Python floats; the engine rounds them to fp32.
    update
        The rule: parameter, gradient, states by name, scalars. Must return every state that it was given.
    elementwise
        Whether each element of the parameter depends on the same element of the gradient and the states alone. Only
        then is a stretch with a value that is not finite left out by itself; otherwise the whole tensor is.
    measure
        Sums over one parameter, as float64 tensors without dimensions, by name.
    combine
        Further scalars, from the sums over all parameters and the scalars of the parameter at hand.
    per_tensor
        The sums that ``combine`` gets are those of the parameter alone. (Computed before the update, so that its
        scalars, from which slots take a varying decay, are known outside.)
    """

    name: str
    slots: Callable[[Hyper], tuple[StateSlot, ...]]
    scalars: Callable[[Hyper, Ages], Scalars]
    update: Update
    elementwise: bool = True
    measure: Callable[[Tensor, Tensor, States, Scalars], Mapping[str, Tensor]] | None = None
    combine: Callable[[Mapping[str, float], Scalars], Scalars] | None = None
    per_tensor: bool = False

    @property
    def shardable(self) -> bool:
        """Whether a rank can update its part of a sharded parameter without the others' elements."""
        return self.elementwise and self.measure is None


def sqrt(x: Tensor) -> Tensor:
    """Correctly rounded square root of an fp32 tensor (torch's own is off by one unit in a fifth of the values)."""
    return x.double().sqrt().float()


def total(x: Tensor) -> Tensor:
    """Sum of all elements in float64, as a tensor without dimensions; the same bits for any number of threads.

    Rows of 1024 elements are summed first, each by one thread, then the rows' sums.

    Examples
    --------
    >>> total(torch.ones(3000)).item()
    3000.0
    """
    flat = x.reshape(-1).double()
    while flat.numel() > 1024:
        rows = math.ceil(flat.numel() / 1024)
        flat = torch.nn.functional.pad(flat, (0, rows * 1024 - flat.numel())).reshape(rows, 1024).sum(dim=1)
    return flat.sum()


def norm(x: Tensor) -> Tensor:
    """Euclidean norm, by :func:`total`, as an fp32 tensor without dimensions."""
    x = x.double()
    return total(x * x).sqrt().float()


def fp32(value: Any) -> float:
    """A Python float rounded to single precision; overflow becomes infinity."""
    try:
        return float(struct.unpack("f", struct.pack("f", float(value)))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def all_fp32(scalars: Scalars) -> dict[str, float]:
    """:func:`fp32` of each."""
    form = f"{len(scalars)}f"
    try:
        return dict(zip(scalars, struct.unpack(form, struct.pack(form, *scalars.values())), strict=True))
    except OverflowError:
        return {name: fp32(value) for name, value in scalars.items()}


def clamp(x: Tensor, bound: float) -> Tensor:
    """Limit to ``[-bound, bound]``."""
    return torch.clamp(x, -bound, bound)
