"""The step as an operator of torch, so that ``torch.compile`` of a training step need not break its graph there.

To a compiler ``halfulp::step`` is a function that changes parameters. When the graph runs, the optimizer whose number
it is given does its step: counting, resets and random keys are the host's work of that moment, as in an ordinary step.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from halfulp.engine.optimizer import RuleOptimizer

__all__ = ["number_of", "step"]

_numbers = itertools.count()
_optimizers: weakref.WeakValueDictionary[int, RuleOptimizer] = weakref.WeakValueDictionary()


def number_of(optimizer: RuleOptimizer) -> int:
    """A new number, by which the operator finds an optimizer as long as that lives."""
    number = next(_numbers)
    _optimizers[number] = optimizer
    return number


SCHEMA = "(Tensor(a!)[] params, Tensor[] gradients, int[] places, int optimizer) -> ()"
"""In full, since torch 2.6 does not read it from annotations such as ``list[Tensor]``."""


@torch.library.custom_op("halfulp::step", mutates_args=("params",), schema=SCHEMA)
def step(params: list[Tensor], gradients: list[Tensor], places: list[int], optimizer: int) -> None:
    """A step of some parameters of an optimizer, given by their places in its groups.

    A compiler may pass copies of parameters, and put their new values in place of the old ones later.
    """
    found = _optimizers[optimizer]
    every = [p for group in found.param_groups for p in group["params"]]
    owners = [every[place] for place in places]
    before = [p.grad for p in owners]
    with torch.no_grad():
        for owner, given, gradient in zip(owners, params, gradients, strict=True):
            if owner.data_ptr() != given.data_ptr():
                owner.copy_(given)
            owner.grad = gradient
        try:
            found.step_parameters(owners)
        finally:
            for owner, gradient_before in zip(owners, before, strict=True):
                owner.grad = gradient_before
        for owner, given in zip(owners, params, strict=True):
            if owner.data_ptr() != given.data_ptr():
                given.copy_(owner)


@step.register_fake
def _(params: list[Tensor], gradients: list[Tensor], places: list[int], optimizer: int) -> None:
    """Nothing is returned, and no shape changes."""
