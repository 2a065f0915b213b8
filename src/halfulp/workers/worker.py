"""Base class of the optimizers of workers, synchronous or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.engine.sharding import local
from halfulp.training.wrapper import Wrapper

__all__ = ["Worker"]


class Worker(Wrapper):
    """Base class of an optimizer around another one, whose trained weights are exchanged with others.

    Raise ``ValueError`` if there are none.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self.steps = 0
        self.sent_bytes = 0
        """Bytes that this worker has sent."""
        self._params = self.trained
        if not self._params:
            raise ValueError(f"{type(self).__name__}: no parameter of the optimizer takes gradients (requires_grad)")
        self._kept = {name: _place(param) for name, param in self._params.items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise ``ValueError``: workers exchange the parameters that the optimizer had at the start."""
        raise ValueError(
            f"{type(self).__name__} exchanges the parameters that its optimizer had when it was built: add groups to "
            "that optimizer first"
        )

    def _follow(self) -> None:
        """Take up parameters that were replaced. Parameters that were frozen are still exchanged.

        Raises
        ------
        ValueError
            If a parameter was added, removed, unfrozen, reshaped or moved.
        """
        named = self.named
        now = {name: named[name] for name in self._params if name in named}
        wrong = [name for name, place in self._kept.items() if name not in now or _place(now[name]) != place]
        wrong += [name for name in self.trained if name not in self._kept]
        if wrong:
            raise ValueError(
                f"{type(self).__name__}: parameters {wrong[:8]} were added, removed, unfrozen, reshaped or moved to "
                "another device since it was built: build it around the optimizer of the final parameters"
            )
        self._params = now


def _place(param: Tensor) -> tuple[torch.Size, torch.Size, torch.device]:
    """Return what must not change while workers exchange a parameter."""
    return param.shape, local(param.detach()).shape, param.device
