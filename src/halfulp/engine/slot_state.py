"""One state of one parameter, stored in the optimizer's state dictionary: created, reset, read and repaired."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfulp.engine.sharding import has_memory, is_sharded, is_wrapper, local, shard_like, whole_values
from halfulp.kernels.binding import Stored, plain
from halfulp.numbers.log import warn_once
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.remainder import weights
from halfulp.rules.slots import StateSlot

__all__ = ["MASTER", "SlotState", "count", "loaded", "master_codes", "usable"]

MASTER = "master_param"
"""The key of master weights in ``optimizer.state``. See :mod:`halfulp.engine.master`."""


@dataclass(eq=False)
class SlotState:
    """One slot of one parameter: how it is stored, over the entries of the optimizer's state dictionary.

    `shape` is that of the decoded state (of this rank's part). If the tensors are `sharded`, they are DTensors, of
    which each rank holds the part for its shard of the parameter.
    """

    slot: StateSlot
    quantizer: Quantizer
    shape: torch.Size
    entries: dict[str, Any]
    sharded: bool = False
    scale_key: str = field(init=False)
    """The key of the scales."""
    age_key: str = field(init=False)
    """The key of the age."""

    def __post_init__(self) -> None:
        self.scale_key, self.age_key = f"{self.slot.name}_scale", f"{self.slot.name}_age"

    @property
    def tensor_keys(self) -> tuple[str, ...]:
        """The keys of its tensors: codes, and scales if the format has them."""
        return (self.slot.name, self.scale_key) if self.quantizer.format.scaled else (self.slot.name,)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all its entries."""
        return (*self.tensor_keys, self.age_key)

    @property
    def codes(self) -> Tensor:
        """The stored codes (this rank's part)."""
        codes: Tensor = self.entries[self.slot.name]
        return local(codes) if self.sharded else codes

    @property
    def scale(self) -> Tensor | None:
        """The stored scales (this rank's part), or ``None`` for a format without scales."""
        if not self.quantizer.format.scaled:
            return None
        scale: Tensor = self.entries[self.scale_key]
        return local(scale) if self.sharded else scale

    @property
    def age(self) -> int:
        """The number of steps since the state was created or reset."""
        age: int = self.entries[self.age_key]
        return age

    @age.setter
    def age(self, value: int) -> None:
        self.entries[self.age_key] = value

    def stored(self) -> Stored:
        """Return the state as a backend sees it."""
        return Stored(self.slot, self.quantizer, self.shape, self.codes, self.scale)

    def read(self) -> Tensor:
        """Return the state decoded to fp32."""
        return self.quantizer.dequantize(self.codes, self.scale, self.shape)

    def bytes(self) -> int:
        """Return the number of bytes stored, scales included."""
        return self.quantizer.bytes(self.shape)

    # ---------------------------------------------------------------- creating and resetting

    @torch.inference_mode(False)  # states made within inference_mode could not be changed outside
    def initial(self, param: Tensor) -> dict[str, Any]:
        """Return the entries of a parameter's initial state, with age 0."""
        return {**self._entered(param, *self._initial(param)), self.age_key: 0}

    def create(self, param: Tensor) -> None:
        """Put the initial state of a parameter into the dictionary."""
        self.entries.update(self.initial(param))

    def reset_(self, param: Tensor) -> None:
        """Set the state to its initial value and its age to zero, in place."""
        self.stored().write_(*self._initial(param))
        self.age = 0

    def encoded(self, param: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Return the entries that store these values, rounded to nearest: codes, and scales if the format has them."""
        return self._entered(param, *self._nearest(values))

    def _initial(self, param: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.slot.init is None:
            return self.quantizer.zeros(self.shape, param.device)
        whole = local(param.detach()) if self.sharded else whole_values(param.detach())
        entry = _local(self.entries.get(MASTER))
        master = None if entry is None or whole.dtype == torch.float32 else master_codes(entry, whole.shape)
        return self._nearest(self.slot.init(weights(whole, master)))

    def _nearest(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        codes, scale = self.quantizer.with_rounding("nearest").quantize(plain(values.reshape(self.shape)))
        return codes.clone(), scale  # fp32 codes are the values themselves

    def _entered(self, param: Tensor, *tensors: Tensor | None) -> dict[str, Tensor]:
        pairs = zip(self.tensor_keys, tensors, strict=False)
        return {key: shard_like(param, x) if self.sharded else x for key, x in pairs if x is not None}

    # ---------------------------------------------------------------- entries set from outside

    @torch.inference_mode(False)
    def fitted(self, param: Tensor, label: str, usual: Quantizer, step: int) -> dict[str, Any]:
        """Return the entries in a form that a backend can use, whatever was put there since the last step.

        Tensors on another device, not contiguous, or made under ``inference_mode`` are copied. Floating-point values of
        the state's shape are encoded in its format. Missing states start again. `usual` is how the slot is stored if
        the parameter does not stay in fp32, and `step` the number of steps of the parameter so far.

        Raise ``ValueError`` if the entries are ambiguous or do not fit.
        """
        name, given = self.slot.name, self.entries.get(self.slot.name)
        if given is None:
            if self.entries.get(self.scale_key) is not None:
                raise ValueError(f"{label}: optimizer.state has {self.scale_key} but not {name}: {self._way_out()}")
            if step:
                warn_once(f"{label}: optimizer.state has no {name} next to its other states; it starts at zero")
            return self.initial(param)
        entries = {
            key: usable(self.entries[key], key, label, param, self.sharded, self._way_out())
            for key in (name, self.scale_key)
            if self.entries.get(key) is not None
        }
        codes, age = entries[name], count(label, self.age_key, self.entries.get(self.age_key, step))
        if self._fits(self.quantizer, entries):
            return {**{k: entries[k] for k in self.tensor_keys}, self.age_key: age}
        if self._fits(usual, entries):  # quantized before the parameter became small
            values = usual.dequantize(local(codes), _local(entries.get(self.scale_key)), self.shape)
        elif codes.is_floating_point() and tuple(local(codes).shape) == tuple(self.shape) and not self._cast(entries):
            values = local(codes).float()
        else:
            raise ValueError(f"{label}: {self._difference(entries, param)}; {self._way_out()}{self._carried(entries)}")
        warn_once(f"{label}: values of {name} found in optimizer.state are stored as {self.quantizer.spec}")
        return {**self.encoded(param, values), self.age_key: age}

    def _fits(self, quantizer: Quantizer, entries: dict[str, Tensor]) -> bool:
        wanted = quantizer.stored_as(self.shape)
        have = [local(entries[k]) for k in (self.slot.name, self.scale_key)[: len(wanted)] if k in entries]
        return [(x.dtype, tuple(x.shape)) for x in have] == wanted

    def _cast(self, entries: dict[str, Tensor]) -> bool:
        """Whether floats may be codes that were cast, rather than values: they are integers from 0 to 255."""
        x = local(entries[self.slot.name])
        if self.quantizer.format.bits > 8 or not bool((x != 0).any()):
            return False
        return bool(((x == x.round()) & (x >= 0) & (x <= 255)).all())

    def _difference(self, entries: dict[str, Tensor], param: Tensor) -> str:
        found = ", ".join(f"{k} is {x.dtype} of shape {tuple(local(x).shape)}" for k, x in entries.items())
        wanted = self.quantizer.stored_as(self.shape)
        want = ", ".join(f"{k} {d} of shape {s}" for k, (d, s) in zip(self.tensor_keys, wanted, strict=True))
        return (
            f"{found} in optimizer.state; a parameter of shape {tuple(param.shape)} has {want}, or values in floating "
            f"point of shape {tuple(self.shape)}, which optimizer.state_tensor(param, {self.slot.name!r}) gives"
        )

    def _carried(self, entries: dict[str, Tensor]) -> str:
        """Name the function that prunes or extends states, if the entries have another number of rows."""
        if all(local(x).shape[:1] == self.shape[:1] for x in entries.values()):
            return ""
        return ". halfulp.resize_states(optimizer, old, new, rows) replaces a parameter by one with other rows"

    def _way_out(self) -> str:
        return f"delete {', '.join(self.keys)} there (or all of optimizer.state[param]) to start at zero"


def usable(x: Any, key: str, label: str, param: Tensor, sharded: bool, way_out: str) -> Tensor:
    """Return an entry of ``optimizer.state`` as a tensor that a backend can use, moved or copied if necessary.

    Raise ``ValueError`` for anything but a plain tensor with memory. The message ends with `way_out`.
    """
    if not isinstance(x, Tensor) or is_wrapper(local(x)) or local(x).layout != torch.strided:
        kind = f"{type(x).__name__} of layout {x.layout}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{label}: {key} in optimizer.state is a {kind}, not a plain tensor; {way_out}")
    if local(x).is_meta or not has_memory(local(x)):
        raise ValueError(f"{label}: {key} in optimizer.state has no memory (meta device, or freed storage)")
    if x.device != param.device:
        warn_once(f"{label}: {key} is on {x.device}, and is moved to {param.device}, where its parameter is")
        x = x.to(param.device)
    if is_sharded(x) and not sharded:
        return whole_values(x)
    if sharded and not is_sharded(x):
        return shard_like(param, plain(x.detach()).clone())
    if is_sharded(x) or (plain(x) is x and not x.is_inference() and not x.requires_grad):
        return x
    return plain(x.detach()).clone()


def loaded(tensor: Any, what: str, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a copy of a saved tensor on a device. Raise ``ValueError`` for another dtype or (local) shape."""
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tuple(local(tensor).shape) != shape:
        is_tensor = isinstance(tensor, Tensor)
        found = f"{tensor.dtype} {tuple(local(tensor).shape)}" if is_tensor else type(tensor).__name__
        raise ValueError(f"{what} is {found} in the state_dict, expected {dtype} {shape}")
    copied = tensor.detach().to(device, copy=True)
    return copied if is_sharded(copied) else plain(copied)


def master_codes(entry: Tensor, shape: torch.Size) -> Tensor:
    """View the entry of master weights in the parameter's shape.

    The entry stores a 16-bit remainder as two bytes along a last dimension, since collectives do not support 16-bit
    integers.
    """
    return (entry.view(torch.int16) if entry.ndim > len(shape) else entry).view(shape)


def _local(x: Tensor | None) -> Tensor | None:
    return None if x is None else local(x)


def count(label: str, key: str, value: Any) -> int:
    """Return a number of steps as an integer. Raise ``ValueError`` for anything else."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**63 or value != int(value):
        raise ValueError(f"{label}: {key} must be a number of steps, got {value!r}")
    return int(value)
