"""Averages that are fed back into the model: Switch-EMA, Elastic Reset, and the slow weights of Lookahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from halfulp.averaging.decay import Decay
from halfulp.averaging.ema import EMA
from halfulp.averaging.source import Model
from halfulp.averaging.store import AverageStore
from halfulp.engine.sharding import local_part

__all__ = ["ElasticReset", "SlowWeights", "SwitchEMA"]


class SwitchEMA(EMA):
    """Switch EMA: at the end of each epoch the model takes over its average.

    Li et al., arXiv 2402.09240. The optimizer's states are kept. A frozen average (bf16, nearest) would undo the epoch.

    Parameters
    ----------
    model, options
        As for :class:`~halfulp.averaging.ema.EMA`.
    decay
        Decay per update; 0.9998 as published.
    switch_every
        Steps between switches. With 0, call :meth:`switch`.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> model = torch.nn.Linear(4, 4)
    >>> ema = halfulp.averaging.SwitchEMA(model, state="fp32")
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> ema.update(); ema.switch()
    >>> bool((model.weight == ema.value("weight")).all())
    True
    """

    kind = "switch_ema"

    def __init__(self, model: Model, decay: float | Decay = 0.9998, *, switch_every: int = 0, **options: Any) -> None:
        if switch_every < 0:
            raise ValueError(f"switch_every is at least 0, got {switch_every}")
        super().__init__(model, decay, **options)
        self.switch_every = switch_every

    def update(self, model: Model | None = None) -> None:
        """Count a step, update the average if it is due, and switch if that is due."""
        super().update(model)
        if self.switch_every and self.step % self.switch_every == 0:
            self.switch()

    def switch(self) -> None:
        """Replace the live weights by the average."""
        values = {name: self.value(name) for name in self.live} if self.difference else None
        self.copy_to() if values is None else self._put(values)

    @torch.no_grad()
    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            local_part(self.live[name]).tensor.copy_(value)
        self.store.copy_from(self.live)


class ElasticReset(EMA):
    """Elastic Reset: every `every` steps the model is reset to its average, and the average to its start.

    Noukhovitch et al., Language Model Alignment with Elastic Reset, arXiv 2312.07551: fine-tuning that drifts less.
    The optimizer's states are kept, as published. ``reset_state()`` of a halfulp optimizer would clear them.

    Parameters
    ----------
    model, decay, options
        As for :class:`~halfulp.averaging.ema.EMA`.
    every
        Steps between resets. With 0, call :meth:`reset`.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> ema = halfulp.averaging.ElasticReset(torch.nn.Linear(4, 4), every=1000, state="8bit")
    >>> ema.update(); ema.reset()
    """

    kind = "elastic_reset"

    def __init__(self, model: Model, decay: float | Decay = 0.995, *, every: int = 0, **options: Any) -> None:
        if every < 0:
            raise ValueError(f"every is at least 0, got {every}")
        self.start: dict[str, dict[str, Any]] = {}
        """The stored average at the start."""
        super().__init__(model, decay, **options)
        self.every = every
        self.start = {name: _copy(entries) for name, entries in self.store.state_dict().items()}

    def update(self, model: Model | None = None) -> None:
        """Count a step, update the average if it is due, and reset if that is due."""
        super().update(model)
        if self.every and self.step % self.every == 0:
            self.reset()

    def _renamed(self, names: Mapping[str, str]) -> None:
        super()._renamed(names)
        self.start = {names.get(name, name): entries for name, entries in self.start.items()}

    def _join(self, tensors: dict[str, torch.Tensor]) -> None:
        super()._join(tensors)
        self.start.update({name: _copy(self.store.state_of(name).entries) for name in tensors})

    def _leave(self, names: list[str]) -> None:
        super()._leave(names)
        for name in names:
            del self.start[name]

    def reset(self) -> None:
        """Replace the live weights by the average, and the average by its start, bit for bit."""
        if self.difference:
            raise RuntimeError("Elastic Reset stores the average itself, so difference=True cannot be used")
        self.copy_to()
        self.store.load({name: _copy(entries) for name, entries in self.start.items()})

    def state_dict(self) -> dict[str, Any]:
        """The state dictionary of :class:`EMA` plus the start."""
        return {**super().state_dict(), "start": {n: dict(e) for n, e in self.start.items()}}

    def _load_extra(self, state_dict: Mapping[str, Any]) -> None:
        super()._load_extra(state_dict)
        if "start" not in state_dict:
            raise ValueError("the state_dict has no 'start': it does not belong to ElasticReset")
        self.start = self.store.validate(state_dict["start"])


class SlowWeights:
    """The slow weights of Lookahead (Zhang et al., arXiv 1907.08610), in any format.

    ``slow <- slow + alpha * (fast - slow)``, then ``fast <- slow``: an EMA of decay ``1 - alpha`` that is copied back
    into the weights. It serves wrappers of optimizers and needs no model.

    Parameters
    ----------
    tensors
        The fast weights, by name. The slow weights start from them.
    alpha
        Share of the distance that the slow weights move.
    options
        Options of :class:`~halfulp.averaging.store.AverageStore`.

    Examples
    --------
    >>> import torch
    >>> fast = {"w": torch.zeros(4)}
    >>> slow = SlowWeights(fast, alpha=0.5)
    >>> _ = fast["w"].add_(1.0)
    >>> slow.synchronize(fast, 1)
    >>> fast["w"]
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], alpha: float = 0.5, **options: Any) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha lies between 0 and 1, got {alpha}")
        self.alpha = alpha
        self.store = AverageStore(tensors, **{"state": "fp32", "label": "slow", **options})

    @torch.no_grad()
    def synchronize(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Update the slow weights and copy them into the fast ones. `step` counts synchronizations, starting at 1."""
        self.store.update(tensors, 1.0 - self.alpha, step)
        for name in self.store:
            local_part(tensors[name]).tensor.copy_(self.store.read(name))


def _copy(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in entries.items()}
