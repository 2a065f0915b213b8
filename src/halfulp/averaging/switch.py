"""Averages that are fed back into the model: Switch-EMA, Elastic Reset, and the slow weights of Lookahead."""

from __future__ import annotations

import copy
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
        self.copy_to()
        if self.difference:
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
        super().__init__(model, decay, **options)
        self.every = every
        self.start = copy.deepcopy(self.store)
        """The average at the start."""
        self.stores.append(self.start)

    def update(self, model: Model | None = None) -> None:
        """Count a step, update the average if it is due, and reset if that is due."""
        super().update(model)
        if self.every and self.step % self.every == 0:
            self.reset()

    def reset(self) -> None:
        """Replace the live weights by the average, and the average by its start, bit for bit."""
        if self.difference:
            raise RuntimeError("Elastic Reset stores the average itself, so difference=True cannot be used")
        self.copy_to()
        self.store.load(self.start.snapshot())

    def state_dict(self) -> dict[str, Any]:
        """The state dictionary of :class:`EMA` plus the start."""
        return {**super().state_dict(), "start": self.start.state_dict()}

    def _load_extra(self, state_dict: Mapping[str, Any]) -> None:
        super()._load_extra(state_dict)
        if "start" not in state_dict:
            raise ValueError("the state_dict has no 'start': it does not belong to ElasticReset")
        self.start.load(self.start.validate(state_dict["start"]))


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
