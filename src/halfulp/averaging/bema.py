"""Bias-corrected EMA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from halfulp.averaging.ema import EMA
from halfulp.averaging.source import Model
from halfulp.averaging.store import AverageStore
from halfulp.engine.storage import StorageOptions

__all__ = ["BEMA"]


class BEMA(EMA):
    """EMA without the lag: the average plus a share of the distance that the weights have moved since the start.

    Block and Zhang, EMA Without the Lag, arXiv 2508.00180. In update ``n``, with ``s = offset + scaling * n``:
    ``average <- average + (live - average) * s ** -ema_power``, and the result is
    ``average + (live - start) * s ** -bias_power``.

    Parameters
    ----------
    model
        A module, or its named parameters.
    ema_power, bias_power, scaling, offset
        kappa, eta, gamma and rho of the paper. ``bias_power=None`` disables the correction. By the formula, 0 adds the
        whole distance (other implementations read 0 as "off").
    burn_in
        Steps during which the average and the start are copies of the weights.
    update_every
        phi of the paper. Its ``n`` counts steps, not updates.
    start_state
        How the start is stored. Default: in the dtype of the average.
    options
        As for :class:`~halfulp.averaging.ema.EMA`.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> bema = halfulp.averaging.BEMA(torch.nn.Linear(4, 4), update_every=1, state="bf16")
    >>> bema.update()
    """

    kind = "bema"

    def __init__(
        self,
        model: Model,
        *,
        ema_power: float = 0.5,
        bias_power: float | None = 0.2,
        scaling: float = 1.0,
        offset: float = 10.0,
        burn_in: int = 0,
        update_every: int = 400,
        start_state: Any = None,
        **options: Any,
    ) -> None:
        if ema_power < 0 or (bias_power is not None and bias_power < 0):
            raise ValueError(f"powers are at least 0, got {ema_power} and {bias_power}; bias_power=None: no correction")
        if scaling < 0 or offset < 1:
            raise ValueError(f"scaling is at least 0 and offset at least 1, got {scaling} and {offset}")
        if options.pop("difference", False):
            raise ValueError("BEMA stores the average itself, so difference=True cannot be used")
        self.ema_power, self.bias_power, self.scaling, self.offset = ema_power, bias_power, scaling, offset
        self.start: AverageStore | None = None
        super().__init__(model, self._decay, update_after_step=burn_in, update_every=update_every, **options)
        if bias_power is not None:
            state = self.store.quantizer if start_state is None else start_state
            storage = self.store.storage if start_state is None else StorageOptions()
            self.start = AverageStore(self.live, state=state, rounding="nearest", storage=storage, label="start")
            self.stores.append(self.start)

    def _base(self) -> float:
        return self.offset + self.scaling * max(self.step - self.update_after_step, 0)

    def _decay(self, n: int) -> float:
        return 1.0 - self._base() ** -self.ema_power

    @property
    def bias_weight(self) -> float:
        """Current weight of the correction; 0 if it is disabled."""
        return 0.0 if self.bias_power is None else self._base() ** -self.bias_power

    def update(self, model: Model | None = None) -> None:
        """Count a step, and update the average if it is due."""
        super().update(model)
        if self.start is not None and self.step <= self.update_after_step:
            self.start.copy_from(self.live if model is None else self.pick(model))

    def _value(self, name: str) -> Tensor:
        """Return the corrected average, computed from the present live weights."""
        average = super()._value(name)
        if self.start is None:
            return average
        way = self._live_part(name).float() - self.start.read(name)
        return average + way * self.bias_weight

    def _exchangeable(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {} if self.start is not None else super()._exchangeable(live)

    def state_dict(self) -> dict[str, Any]:
        """The state dictionary of :class:`EMA` plus the start."""
        own = super().state_dict()
        return own if self.start is None else {**own, "start": self.start.state_dict()}

    def _load_extra(self, state_dict: Mapping[str, Any]) -> None:
        super()._load_extra(state_dict)
        if (self.start is None) != ("start" not in state_dict):
            raise ValueError("one of the two has a bias correction and the other has none: give the same bias_power")
        if self.start is not None:
            self.start.load(self.start.validate(state_dict["start"]))
