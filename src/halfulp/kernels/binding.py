"""The input of a backend: a parameter bound to its states, and the record of one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halfulp.numbers.quantizer import Quantizer, Rounding
from halfulp.numbers.remainder import weights
from halfulp.numbers.scaling import rows_and_cols
from halfulp.rules.base import Rule, Scalars
from halfulp.rules.slots import StateSlot

__all__ = ["Binding", "SlotKey", "Step", "Stored", "look", "plain", "step_tile"]

SlotKey = tuple[int, int, int]
"""The key and lane of a slot's random stream in this step, as three 32-bit words (:mod:`halfulp.numbers.rng`)."""


def plain(x: Tensor) -> Tensor:
    """Return the tensor if it is contiguous and without torch's negative bit, otherwise a copy that is."""
    return x if x.is_contiguous() and not x.is_neg() else x.resolve_neg().contiguous()


Seen = tuple[list[int], list[int], list[bool], list[torch.dtype]]


def look(tensors: Sequence[Tensor]) -> Seen:
    """Return the properties that kernels rely on: addresses, lengths, contiguity and dtypes of tensors."""
    return (
        [*map(Tensor.data_ptr, tensors)], [*map(Tensor.numel, tensors)], [*map(Tensor.is_contiguous, tensors)],
        [x.dtype for x in tensors],
    )  # fmt: skip


@dataclass(eq=False)
class Stored:
    """One state as a backend sees it: plain tensors of this process, and how to read them.

    Parameters
    ----------
    slot, quantizer
        The declaration and the storage of the state.
    shape
        The shape of the decoded state.
    codes, scale
        The stored tensors, updated in place. `scale` is ``None`` for a format without scales.
    """

    slot: StateSlot
    quantizer: Quantizer
    shape: torch.Size
    codes: Tensor
    scale: Tensor | None

    def __post_init__(self) -> None:
        wanted = self.quantizer.stored_as(self.shape)
        for what, x, (dtype, shape) in zip(("codes", "scales"), (self.codes, self.scale), wanted, strict=False):
            if x is None or x.dtype != dtype or tuple(x.shape) != shape:
                found = "missing" if x is None else f"{x.dtype} of shape {tuple(x.shape)}"
                raise ValueError(
                    f"{self.slot.name}: {what} are {found}; {self.quantizer.spec} of shape {tuple(self.shape)} has "
                    f"{dtype} of shape {shape}"
                )

    def read(self) -> Tensor:
        """Return the state decoded to fp32."""
        return self.quantizer.dequantize(self.codes, self.scale, self.shape)

    def write_(self, codes: Tensor, scale: Tensor | None) -> None:
        """Overwrite the stored codes and scales, without a change of their version counters."""
        self.codes.data.copy_(codes)
        if scale is not None and self.scale is not None:
            self.scale.data.copy_(scale)


@dataclass(eq=False)
class Binding:
    """A parameter and its states under a rule. It is valid until one of the tensors is replaced.

    Parameters
    ----------
    rule
        The update rule.
    param
        The parameter (float32, bfloat16 or float16), updated in place. For a sharded parameter, it is the local part,
        or the whole if the rule needs it. ``None`` for a rule without a parameter (:attr:`Rule.has_param`).
    states
        The states of this parameter, in the order of the rule's slots, updated in place.
    first_element
        The global flat index of the first element (nonzero on a shard).
    row_stride
        The distance between the starts of consecutive rows, in elements of the whole tensor. It exceeds the row length
        if columns are sharded. ``None`` for contiguous rows.
    master
        The master weights of a 16-bit parameter (:mod:`halfulp.numbers.remainder`): float32, int16 or uint8, in its
        shape, updated in place. The rule then reads and updates the fp32 weights that they give.
    plan, measured
        Data that the backend keeps with the binding, for its step and for its sums.

    Raises
    ------
    ValueError
        If codes or scales do not match their format and shape.
    """

    rule: Rule
    param: Tensor | None
    states: tuple[Stored, ...]
    first_element: int = 0
    row_stride: int | None = None
    master: Tensor | None = None
    plan: Any = field(default=None, init=False, repr=False)
    measured: Any = field(default=None, init=False, repr=False)
    shape: torch.Size = field(init=False)
    """The shape of the parameter, or of the state if there is no parameter."""
    device: torch.device = field(init=False)
    tensors: tuple[Tensor, ...] = field(init=False, repr=False)
    """The parameter, the codes and scales of the states, and the master weights."""
    seen: Seen = field(init=False, repr=False)
    """Properties of the tensors when they were bound. Backends use these addresses."""
    quantizers: tuple[Quantizer, ...] = field(init=False)
    """The quantizers of the states."""
    low: bool = field(init=False)
    """Whether any state is stored in less than fp32."""
    names: tuple[str, ...] = field(init=False)
    """The names of the states, and ``"param"``, in the order of a step's `keys`."""

    def __post_init__(self) -> None:
        first = self.states[0].codes if self.param is None else self.param
        self.shape = self.states[0].shape if self.param is None else self.param.shape
        self.device = first.device
        stored = (t for s in self.states for t in (s.codes, s.scale))
        self.tensors = tuple(t for t in (self.param, *stored, self.master) if t is not None)
        self.seen = look(self.tensors)
        self.quantizers = tuple(s.quantizer for s in self.states)
        self.low = any(not q.format.is_float32 for q in self.quantizers)
        self.names = (*(s.slot.name for s in self.states), "param")

    def intact(self) -> bool:
        """Whether every tensor is unchanged since it was bound. If not, the parameter must be bound again."""
        return look(self.tensors) == self.seen

    def read(self) -> dict[str, Tensor]:
        """Return every state by name, decoded to fp32."""
        return {s.slot.name: s.read() for s in self.states}

    def weights(self) -> Tensor | None:
        """Return the parameter in fp32, with its master weights, or ``None`` without a parameter."""
        return None if self.param is None else weights(self.param, self.master)


@dataclass(eq=False)
class Step:
    """The record of one step of a binding.

    Parameters
    ----------
    binding
        The binding to update.
    inputs
        The other tensors that the rule reads, named in :attr:`Rule.inputs`: the gradient. They have the binding's
        shape, and are float32, bfloat16 or float16.
    scalars
        The rule's numbers for this step, rounded to fp32.
    keys
        The random streams of the states, and last that of the parameter.
    param_rounding
        How a 16-bit parameter is rounded.
    maximize
        Whether to negate the gradient, to ascend instead of descend.
    counts
        ``None``, or an int64 tensor of shape ``(states, 2)`` on the CPU. For each state, the backend adds the number of
        updates due (the new value differs from the decoded old one) and of those that stalled (the stored value decodes
        to the old one). Skipped elements count as neither.
    skipped
        A 0-dimensional int64 tensor on the binding's device. The backend adds the number of elements that it skipped
        because of a non-finite value (:mod:`halfulp.kernels.skipped`).
    """

    binding: Binding
    inputs: tuple[Tensor, ...]
    scalars: Scalars
    keys: list[SlotKey]
    param_rounding: Rounding = "nearest"
    maximize: bool = False
    counts: Tensor | None = None
    skipped: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64, device="cpu"))

    def wide(self) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Return the parameter and the inputs as the rule reads them: in fp32, with the gradient's sign applied.

        The inputs are contiguous: a matrix product has other bits if one factor is stored transposed.
        """
        inputs = tuple(plain(x).float() for x in self.inputs)
        return self.binding.weights(), tuple(-x for x in inputs) if self.maximize else inputs


def step_tile(shape: torch.Size, quantizers: tuple[Quantizer, ...]) -> tuple[int, int, int]:
    """Return ``(rows, cols, tile)``, where a tile is the segment of a row that a step updates or skips as a whole.

    The length of a tile is the least common multiple of the block sizes of the scaled states, 128 without any, and at
    most a row. With states scaled per row, it is a row. With states scaled per tensor, it is the tensor.
    """
    rows, cols = rows_and_cols(shape)
    blocks = [q.scaling for q in quantizers if q.format.scaled]
    if any(s.per == "tensor" for s in blocks):
        return 1, rows * cols, rows * cols
    if any(s.per == "row" for s in blocks):
        return rows, cols, cols
    return rows, cols, min(math.lcm(*(s.block_size for s in blocks)) if blocks else 128, cols)
