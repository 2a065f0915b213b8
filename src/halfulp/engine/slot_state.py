"""One state of one parameter over the entries of the optimizer's state dictionary: making, resetting, reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.sharding import gathered, local, shard_like
from halfulp.kernels.binding import Stored
from halfulp.numbers.quantizer import Quantizer
from halfulp.rules.slots import StateSlot

__all__ = ["SlotState"]


@dataclass
class SlotState:
    """One slot of one parameter: how it is stored, over the entries of the optimizer's state dictionary.

    Parameters
    ----------
    slot, quantizer
        Declaration and storage.
    shape
        Shape of the decoded state (of this rank's part of it).
    entries
        The dictionary that holds the tensors and the age.
    sharded
        Stored as DTensors, each rank its part of a sharded parameter's state.
    """

    slot: StateSlot
    quantizer: Quantizer
    shape: torch.Size
    entries: dict[str, Any]
    sharded: bool = False
    scale_key: str = field(init=False)
    """Key of the scales."""
    age_key: str = field(init=False)
    """Key of the age."""

    def __post_init__(self) -> None:
        self.scale_key, self.age_key = f"{self.slot.name}_scale", f"{self.slot.name}_age"

    @torch.inference_mode(False)  # states made within inference_mode could never be changed outside
    def create(self, param: Tensor) -> None:
        """Put the initial state of a parameter, of age 0, into the dictionary."""
        codes, scale = self._initial(param)
        self.entries[self.slot.name] = shard_like(param, codes) if self.sharded else codes
        if scale is not None:
            self.entries[self.scale_key] = shard_like(param, scale) if self.sharded else scale
        self.entries[self.age_key] = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of its entries."""
        scale = (self.scale_key,) if self.quantizer.format.scaled else ()
        return (self.slot.name, *scale, self.age_key)

    @property
    def codes(self) -> Tensor:
        """Stored codes (this rank's)."""
        codes: Tensor = self.entries[self.slot.name]
        return local(codes) if self.sharded else codes

    @property
    def scale(self) -> Tensor | None:
        """Stored scales (this rank's), ``None`` for a format without."""
        scale: Tensor | None = self.entries.get(self.scale_key)
        return local(scale) if self.sharded and scale is not None else scale

    @property
    def age(self) -> int:
        """Steps since the state was zero."""
        age: int = self.entries[self.age_key]
        return age

    @age.setter
    def age(self, value: int) -> None:
        self.entries[self.age_key] = value

    def stored(self) -> Stored:
        """The state as a backend sees it."""
        return Stored(self.slot, self.quantizer, self.shape, self.codes, self.scale)

    def read(self) -> Tensor:
        """The state as fp32."""
        return self.quantizer.dequantize(self.codes, self.scale, self.shape)

    def _initial(self, param: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.slot.init is None:
            return self.quantizer.zeros(self.shape, param.device)
        whole = local(param.detach()) if self.sharded else gathered(param.detach())
        value = self.slot.init(whole.float()).reshape(self.shape).contiguous()
        return self.quantizer.with_rounding("nearest").quantize(value)

    def reset_(self, param: Tensor) -> None:
        """Set the state to its initial value and its age to zero, in place."""
        codes, scale = self._initial(param)
        self.stored().write_(codes, scale)
        self.age = 0

    def bytes(self) -> int:
        """Bytes stored, scales included."""
        return self.quantizer.bytes(self.shape)
