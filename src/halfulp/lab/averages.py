"""Averages of the weights during a run: in fp32, in 8 bits, and torch's average of a bf16 model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from halfulp.averaging import EMA
from halfulp.averaging.swap import Swap

__all__ = ["WeightAverages"]


class WeightAverages:
    """Three exponential moving averages of one model, which start as copies of the weights after the first step.

    ``fp32`` and ``8bit`` (stochastic) are :class:`~halfulp.averaging.EMA`. ``bf16`` is torch's ``AveragedModel`` of a
    bf16 copy of the model. The copy is rounded from the live weights at each update, so all rounding is to nearest.
    """

    def __init__(self, model: torch.nn.Module, decay: float, seed: int) -> None:
        self.model = model
        self.live = dict(model.named_parameters())
        self.emas = {
            state: EMA(model, decay, state=state, update_after_step=1, seed=seed)  # as in torch, update 1 copies
            for state in ("fp32", "8bit")
        }
        self.copy = copy.deepcopy(model).to(torch.bfloat16)
        self.averaged = AveragedModel(self.copy, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._copied: list[Tensor] = list(self.copy.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages. Call this after each step of the optimizer."""
        for ema in self.emas.values():
            ema.update()
        torch._foreach_copy_(self._copied, list(self.live.values()))
        self.averaged.update_parameters(self.copy)

    def values(self) -> dict[str, dict[str, Tensor]]:
        """Return the averages by storage and parameter name, in fp32."""
        out = {state: {n: ema.value(n) for n in self.live} for state, ema in self.emas.items()}
        return out | {"bf16": {n: p.detach().float() for n, p in self.averaged.module.named_parameters()}}

    def measure(self, validation: Callable[[], float]) -> dict[str, dict[str, float]]:
        """Return by storage the bytes per weight, the validation loss, and the relative distance to the fp32 average.

        ``live`` is the model itself, which is unchanged afterwards, bit for bit.
        """
        values = {"live": {n: p.detach().clone() for n, p in self.live.items()}} | self.values()
        exact = values["fp32"]
        sizes = {state: ema.memory().bytes_per_parameter for state, ema in self.emas.items()} | {
            "live": 0.0,
            "bf16": 2.0,
        }
        out = {}
        for state in ("live", "fp32", "bf16", "8bit"):
            swap = Swap(self.live, values[state].__getitem__, {}, "device", self.model)
            swap.enter()
            try:
                loss = validation()
            finally:
                swap.leave()
            distance = _norm({n: exact[n] - v for n, v in values[state].items()}) / _norm(exact)
            out[state] = {"bytes_per_weight": sizes[state], "validation": loss, "distance": distance}
        return out

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each average, by storage."""
        module = {n: p.detach() for n, p in self.averaged.module.named_parameters()}
        torch_s = {"updates": int(self.averaged.n_averaged), "averages": module}
        return {state: ema.state_dict() for state, ema in self.emas.items()} | {"bf16": torch_s}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`. Raise ``ValueError`` if it belongs to other averages."""
        own = dict(self.averaged.module.named_parameters())
        module = state_dict.get("bf16", {}).get("averages", {})
        if state_dict.keys() != {*self.emas, "bf16"} or module.keys() != own.keys():
            raise ValueError("the averages of the weights that were saved are not those of this run")
        for state, ema in self.emas.items():
            ema.load_state_dict(state_dict[state])
        for name, param in own.items():
            param.copy_(module[name])
        self.averaged.n_averaged.fill_(state_dict["bf16"]["updates"])


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in tensors.values()]).sum().sqrt())
