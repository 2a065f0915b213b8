"""Messages between workers: numbers and tensors in any format, in one buffer of bytes.

Everyone decodes a message to the same bits, including its sender. Stochastic rounding draws its random bits from
(seed; parameter, sender, meeting, global element). So senders round independently, and a shard of a tensor is rounded
like the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfulp.averaging.store import FORMATS
from halfulp.engine.sharding import Part
from halfulp.engine.storage import FLOAT32, StorageOptions, fp32_reason, slot_quantizers
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.rng import slot_id, step_keys
from halfulp.rules.slots import StateSlot

__all__ = ["Layout", "MessageOptions"]

SLOT = StateSlot("message", signed=True)
DEFAULT = StorageOptions(scale="fp32")
ALIGNED = 16
"""Alignment of the sections of a message, in bytes."""


@dataclass(frozen=True)
class MessageOptions:
    """Format, rounding and seed of messages, and which tensors are sent in fp32. All workers have the same.

    The format is a name, a :class:`~halfulp.numbers.formats.Format` or a
    :class:`~halfulp.numbers.quantizer.Quantizer`. ``"8bit"`` means ``"int8"`` here, as for weight averages.

    Examples
    --------
    >>> MessageOptions("8bit").quantizer.spec
    'linear8:fp32:block128'
    """

    message: Any = "fp32"
    rounding: str = "stochastic"
    seed: int = 0
    storage: StorageOptions = DEFAULT

    @property
    def quantizer(self) -> Quantizer:
        """Quantizer of the tensors that are not sent in fp32."""
        wanted = FORMATS.get(self.message, self.message) if isinstance(self.message, str) else self.message
        if isinstance(wanted, Mapping):
            raise ValueError(f"a message has one format: a name, a Format or a Quantizer; got {self.message!r}")
        (quantizer,) = slot_quantizers((SLOT,), wanted, self.rounding, self.storage)
        return quantizer


@dataclass(frozen=True)
class _Place:
    """The place of a tensor in a message."""

    index: int
    part: Part
    quantizer: Quantizer
    codes: slice
    scale: slice


class Layout:
    """The layout of a message: numbers first, then the codes and scales of each tensor.

    `parts` are this process's part of each tensor, by name, whose values are not kept. If they are smaller than the
    tensors, these are given as `like`, since their sizes determine what is sent in fp32.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(64, 64)
    >>> layout = Layout({"w": Part(x)}, 1, MessageOptions("8bit"))
    >>> message = layout.encode({"w": x}, torch.tensor([2.5]), sender=0, meeting=1)
    >>> layout.figures(message).tolist(), len(message)
    ([2.5], 4368)
    >>> bool((layout.decode(message, "w") - x).abs().max() < 0.05)
    True
    """

    def __init__(
        self, parts: Mapping[str, Part], figures: int, options: MessageOptions, like: Mapping[str, Tensor] | None = None
    ) -> None:
        self.options, self._figures = options, slice(0, 8 * figures)
        quantizer, end = options.quantizer, _aligned(8 * figures)
        self._places: dict[str, _Place] = {}
        for index, (name, part) in enumerate(parts.items()):
            whole = part.tensor if like is None else like[name]
            low = quantizer.format.is_float32 or fp32_reason(whole, name, options.storage) is None
            own, shape = quantizer if low else FLOAT32, part.tensor.shape
            codes = slice(end, end + own.bytes(shape) - _scale_bytes(own, shape))
            scale = slice(_aligned(codes.stop), _aligned(codes.stop) + _scale_bytes(own, shape))
            empty = part.tensor.new_empty(shape) if 0 in shape else part.tensor.new_empty(1).expand(shape)
            place = Part(empty, part.first_element, part.row_stride)
            self._places[name] = _Place(index, place, own, codes, scale)
            end = _aligned(scale.stop)
        self.bytes = end
        self.device = next(iter(parts.values())).tensor.device if parts else torch.device("cpu")

    @property
    def spec(self) -> str:
        """Names, shapes and formats as a string, which must be equal on all workers."""
        places = self._places.items()
        return ";".join(f"{n}{tuple(p.part.tensor.shape)}={p.quantizer.spec}" for n, p in places)

    def encode(self, values: Mapping[str, Tensor], figures: Tensor, sender: int, meeting: int) -> Tensor:
        """Encode numbers and finite fp32 values of every name as a message, in uint8.

        The numbers of sender and meeting determine the random bits.
        """
        message = torch.zeros(self.bytes, dtype=torch.uint8, device=self.device)
        self._view(message, self._figures, torch.float64).copy_(figures)
        stream = slot_id(f"message/{sender}")
        keys = step_keys(self.options.seed, [p.index for p in self._places.values()], stream, [meeting] * len(values))
        for (name, place), key in zip(self._places.items(), keys, strict=True):
            words = place.part.random_bits(key) if place.quantizer.stochastic else None
            codes, scale = place.quantizer.quantize(values[name], words)
            self._view(message, place.codes, codes.dtype).copy_(codes.flatten())
            if scale is not None:
                self._view(message, place.scale, scale.dtype).copy_(scale.flatten())
        return message

    def figures(self, message: Tensor) -> Tensor:
        """Return the leading numbers of a message, in float64."""
        return self._view(message, self._figures, torch.float64)

    def decode(self, message: Tensor, name: str) -> Tensor:
        """Decode this process's part of a tensor from a message, in fp32."""
        place = self._places[name]
        shape, stored = place.part.tensor.shape, place.quantizer.stored_as(place.part.tensor.shape)
        codes = self._view(message, place.codes, stored[0][0]).reshape(stored[0][1])
        scale = self._view(message, place.scale, stored[1][0]).reshape(stored[1][1]) if len(stored) > 1 else None
        return place.quantizer.dequantize(codes, scale, shape)

    @staticmethod
    def _view(message: Tensor, at: slice, dtype: torch.dtype) -> Tensor:
        return message[at].view(dtype)


def _scale_bytes(quantizer: Quantizer, shape: Sequence[int]) -> int:
    stored = quantizer.stored_as(torch.Size(shape))
    return 0 if len(stored) == 1 else stored[1][0].itemsize * torch.Size(stored[1][1]).numel()


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
