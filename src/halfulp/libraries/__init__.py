"""Adapters for other libraries' optimizers. To add a library, add a file and a line here.

An adapter is chosen by the entries in the optimizer's state, not by its class, so wrappers and subclasses work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from halfulp.libraries.base import Adapter
from halfulp.libraries.bitsandbytes import BitsAndBytes
from halfulp.libraries.heavyball import HeavyBall
from halfulp.libraries.optimi import Optimi
from halfulp.libraries.ours import Ours
from halfulp.libraries.pytorch_optimizer import PytorchOptimizer
from halfulp.libraries.torch_optim import TorchOptim
from halfulp.libraries.torchao import TorchAO

__all__ = ["ADAPTERS", "adapter_for", "check_wrappable", "hooked", "unwrap"]

ADAPTERS: list[Adapter] = [
    Ours(),
    TorchAO(),
    BitsAndBytes(),
    HeavyBall(),
    Optimi(),
    PytorchOptimizer(),
    TorchOptim(),
]
"""All adapters, in the order of the search. torch's is last, since it accepts anything."""


def adapter_for(optimizer: torch.optim.Optimizer, entries: Mapping[Any, Any]) -> Adapter:
    """Return the adapter for the entries that an optimizer keeps for a parameter."""
    return next(a for a in ADAPTERS if a.recognises(optimizer, entries))


INSIDE = ("optimizer", "base_optimizer", "base")
"""Attributes in which wrappers keep the inner optimizer: Accelerate, DeepSpeed, Lightning; SAM; schedule-free."""


def unwrap(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer inside any wrappers."""
    seen: set[int] = set()
    found = optimizer
    while id(found) not in seen:
        seen.add(id(found))
        inside = (getattr(found, name, None) for name in INSIDE)
        found = next((x for x in inside if x is not None and hasattr(x, "step")), found)
    if not isinstance(found, torch.optim.Optimizer):
        raise TypeError(f"a torch.optim.Optimizer, or a wrapper of one, is needed; got {type(optimizer).__name__}")
    return found


def hooked(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer whose step calls its hooks: the one given, or the one inside a wrapper without hooks."""
    return optimizer if hasattr(optimizer, "_optimizer_step_post_hooks") else unwrap(optimizer)


def check_wrappable(name: str, optimizer: Any) -> None:
    """Raise ``TypeError`` unless a wrapper of ours can go around an object, whose steps it has to see."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{name} takes a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"{name} takes an optimizer that calls the hooks of step(), which {type(optimizer).__name__} does not: put "
            f"{name} around the optimizer inside it, before accelerator.prepare() or the like"
        )
