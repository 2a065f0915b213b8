"""The outer optimizer, whose parameters are the common weights of all workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.averaging.store import AverageStore
from halfulp.engine.sharding import is_sharded, local, shard_like

__all__ = ["OuterStep"]


class OuterStep:
    """Outer optimizer on the stored common weights (`reference`), which `make` builds from named parameters.

    Its parameters use memory only during a step and while its states are saved or loaded.
    """

    def __init__(
        self, make: Callable[[list[tuple[str, Tensor]]], Optimizer], params: Mapping[str, Tensor],
        reference: AverageStore,
    ) -> None:  # fmt: skip
        self._names, self._reference = list(params), reference
        centres: list[tuple[str, Tensor]] = [
            (name, torch.nn.Parameter(shard_like(param, local(param.detach()).float().clone())))
            for name, param in params.items()
        ]
        self._centres = [centre for _, centre in centres]
        for centre in self._centres:
            _empty(centre)
        self.optimizer = make(centres)
        groups = getattr(self.optimizer, "param_groups", [])
        if [id(p) for group in groups for p in group["params"]] != [id(p) for p in self._centres]:
            raise ValueError(
                "outer= is a function that builds a torch.optim.Optimizer over all of the parameters that it is given, "
                f"in their order; it returned {self.optimizer!r}"[:400]
            )

    @contextmanager
    def _held(self) -> Iterator[list[Tensor]]:
        """Yield the parameters, filled with the common weights."""
        centres = self._centres
        for centre, name in zip(centres, self._names, strict=True):
            values = self._reference.read(name)
            if is_sharded(centre):
                local(centre.data).copy_(values)
            else:
                centre.data = values
        try:
            yield centres
        finally:
            for centre in centres:
                _empty(centre)

    def step(self, changes: Mapping[str, Tensor], lr: float) -> dict[str, Tensor]:
        """Return the common weights after a step whose negative gradient is the workers' mean change.

        They are this process's part, in fp32. An outer optimizer that needs it gets the workers' learning rate `lr`.
        """
        with self._held() as centres:
            for group in self.optimizer.param_groups:
                if "fast_lr" in group:
                    group["fast_lr"] = lr
            for centre, name in zip(centres, self._names, strict=True):
                centre.grad = shard_like(centre, -changes[name])
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            return {name: local(centre.data) for name, centre in zip(self._names, centres, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state dictionary of the outer optimizer."""
        with self._held():
            return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the result of :meth:`state_dict`. Raise ``ValueError`` if it belongs to another optimizer."""
        saved, own = ([sorted(group) for group in groups] for groups in (
            state_dict["param_groups"], self.optimizer.param_groups,
        ))  # fmt: skip
        if saved != own:
            raise ValueError(
                f"the checkpoint's outer optimizer has groups of {saved}, this one of {own}: build the same"
            )
        with self._held():
            self.optimizer.load_state_dict(state_dict)


def _empty(centre: Tensor) -> None:
    """Free the memory of a parameter. A DTensor keeps its memory."""
    if not is_sharded(centre):
        centre.data = centre.new_zeros(()).expand(centre.shape)
