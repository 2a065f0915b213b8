"""Uniform means of the last few snapshots (LAWA)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from halfulp.averaging.base import WeightAverage
from halfulp.averaging.source import Model
from halfulp.engine.loading import count

__all__ = ["LAWA"]


class LAWA(WeightAverage):
    """Latest weight averaging: the mean of the last `size` snapshots, `every` steps apart.

    Kaddour, arXiv 2209.14981; Sanyal et al., Early Weight Averaging meets High Learning Rates, arXiv 2306.03241 (5
    snapshots, at least 1000 steps apart). Each snapshot is rounded once, to nearest or stochastically. The mean is
    computed in fp32.

    Parameters
    ----------
    model
        A module, or its named parameters.
    size, every
        Number of snapshots kept, and steps between them.
    options
        As for :class:`~halfulp.averaging.ema.EMA`: ``state``, ``rounding``, ``seed``, ``buffers`` ...

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> lawa = halfulp.averaging.LAWA(torch.nn.Linear(4, 4), size=5, every=1, state="bf16")
    >>> lawa.update()
    """

    kind = "lawa"

    def __init__(self, model: Model, size: int = 5, every: int = 1000, **options: Any) -> None:
        if size < 1 or every < 1:
            raise ValueError(f"size and every are at least 1, got {size} and {every}")
        self._ring: list[dict[str, dict[str, Any]]] = []
        super().__init__(model, **options)
        self.size, self.every = size, every

    @property
    def snapshots(self) -> int:
        """Number of snapshots now."""
        return len(self._ring)

    @torch.no_grad()
    def update(self, model: Model | None = None) -> None:
        """Count a step, and take a snapshot if it is due."""
        self._refuse_while_swapped("update")
        live = self._follow(model)
        self.step += 1
        if self.step % self.every:
            return
        self.updates += 1
        self.store.write(live, self.step)
        self._ring.append(self.store.snapshot())
        del self._ring[: -self.size]

    def _value(self, name: str) -> Tensor:
        """Mean of the snapshots that contain a name, or the start if there is none."""
        kept = [snapshot[name] for snapshot in self._ring if name in snapshot]
        if not kept:
            return self.store.read(name)
        return reduce(torch.add, (self.store.read_from(name, entries) for entries in kept)) / len(kept)

    def _renamed(self, names: Mapping[str, str]) -> None:
        super()._renamed(names)
        self._ring = [{names.get(name, name): e for name, e in snapshot.items()} for snapshot in self._ring]

    def _leave(self, names: list[str]) -> None:
        super()._leave(names)
        for snapshot in self._ring:
            for name in names:
                snapshot.pop(name, None)

    def _exchangeable(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state dictionary of every average plus the snapshots, oldest first."""
        return {**super().state_dict(), "snapshots": {str(i): s for i, s in enumerate(self._ring)}}

    def _load_extra(self, state_dict: Mapping[str, Any]) -> None:
        saved = state_dict.get("snapshots", {})
        if count("average", "number of snapshots", len(saved)) > self.size:
            raise ValueError(f"the state_dict has {len(saved)} snapshots, this average keeps {self.size}")
        ring = [saved[str(i)] for i in range(len(saved))]  # tensors that joined later are missing from a snapshot
        self._ring = [self.store.validate(s, without=[n for n in self.store if n not in s]) for s in ring]
