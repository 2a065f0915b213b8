"""The step as a torch operator, so that ``torch.compile`` of a training step has no graph break there.

To the compiler, ``halfulp::step`` is a function that mutates parameters. When the graph runs, the operator looks up the
optimizer by its number and does its step. The host counts steps, resets states and draws random keys at that moment, as
in an ordinary step.
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
    """Register an optimizer, and return the number by which the operator finds it while it is alive."""
    number = next(_numbers)
    _optimizers[number] = optimizer
    return number


SCHEMA = "(Tensor(a!)[] params, Tensor[] gradients, int[] places, int optimizer) -> ()"
"""Written out, since torch 2.6 does not infer it from annotations such as ``list[Tensor]``."""


@torch.library.custom_op("halfulp::step", mutates_args=("params",), schema=SCHEMA)
def step(params: list[Tensor], gradients: list[Tensor], places: list[int], optimizer: int) -> None:
    """Step some parameters of an optimizer, given by their positions in its groups.

    A compiler may pass copies of the parameters and later put their new values in place of the old ones.
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
    """Describe the operator to the compiler: it returns nothing and changes no shape."""
