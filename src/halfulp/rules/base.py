"""What a rule is.

A rule is one pure function ``update(param, grad, states, c) -> (new param, new states)`` on fp32 tensors, beside the
declaration of its states and the scalars ``c`` that a step needs. It never sees a format: the engine decodes the
states, calls it, and encodes what it returns.

Every tensor operation of a rule must round separately, since a kernel has to reproduce it bit by bit: plain
``+ - * /``, :func:`sqrt` of this module, comparisons and ``where``. Not ``lerp``, ``addcmul``, ``addcdiv`` or
``add(alpha=)``, which fuse or reorder. Scalars are computed once in Python floats and rounded to fp32.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfulp.state import Hyper, StateSlot

__all__ = ["Rule", "Scalars", "fp32", "sqrt"]

Scalars = dict[str, float]
Update = Callable[[Tensor, Tensor, tuple[Tensor, ...], Scalars], tuple[Tensor, tuple[Tensor, ...]]]


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
        Numbers that a step needs, from the hyper-parameters and the age of each slot *in* this step (1 in the first).
        In Python floats; the engine rounds them to fp32.
    update
        The rule: parameter, gradient, states in the order of `slots`, scalars.
    """

    name: str
    slots: Callable[[Hyper], tuple[StateSlot, ...]]
    scalars: Callable[[Hyper, tuple[int, ...]], Scalars]
    update: Update


def sqrt(x: Tensor) -> Tensor:
    """Correctly rounded square root of an fp32 tensor (torch's own is off by one unit in a fifth of the values)."""
    return x.double().sqrt().float()


def fp32(value: Any) -> float:
    """A Python float rounded to single precision; overflow becomes infinity."""
    try:
        return float(struct.unpack("f", struct.pack("f", float(value)))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def clamp(x: Tensor, bound: float) -> Tensor:
    """Limit to ``[-bound, bound]``."""
    return torch.clamp(x, -bound, bound)
