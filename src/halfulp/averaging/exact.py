"""Live tensors as averages read them: the fp32 weights in place of 16-bit parameters with master weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from halfulp.checkpoint.fp32 import FP32Weights

__all__ = ["Exact"]


class Exact(Mapping[str, Tensor]):
    """Tensors by name. A parameter with master weights is replaced by its fp32 weights, computed when it is read.

    Parameters
    ----------
    tensors
        Live tensors by name.
    optimizers
        Optimizers of halfulp that may keep master weights for them, possibly inside wrappers.
    """

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
