"""Live tensors as averages read them: the fp32 weights in place of 16-bit parameters with master weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from halfulp.checkpoint.fp32 import FP32Weights
from halfulp.engine.optimizer import RuleOptimizer
from halfulp.libraries import unwrap

__all__ = ["Exact", "follow", "keeps_masters"]


def follow(known: list[Any], optimizer: Any) -> None:
    """Add an optimizer to those whose fp32 weights are averaged, unless it is known or of another library."""
    inside = unwrap(optimizer)
    if isinstance(inside, RuleOptimizer) and not any(inside is unwrap(one) for one in known):
        known.append(optimizer)


def keeps_masters(optimizer: Any) -> bool:
    """Whether an optimizer keeps fp32 weights by ``master_weights=``."""
    inside = unwrap(optimizer)
    return isinstance(inside, RuleOptimizer) and any(group.get("master_weights") for group in inside.param_groups)


class Exact(Mapping[str, Tensor]):
    """Live tensors by name, where the optimizers' fp32 weights, computed when read, replace 16-bit parameters."""

    def __init__(self, tensors: Mapping[str, Tensor], optimizers: list[Any]) -> None:
        self._tensors, self._known = tensors, [FP32Weights(optimizer) for optimizer in optimizers]

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        found = (known.of(tensor) for known in self._known)
        return next((values for values in found if values is not None), tensor)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
