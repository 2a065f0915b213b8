"""Input of a backend: a parameter bound to its states, and the record of one step over it."""

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
"""Key and lane of a slot's random stream in this step, three words of 32 bits (:mod:`halfulp.numbers.rng`)."""


def plain(x: Tensor) -> Tensor:
    """A tensor whose memory is its values in order: itself, or a copy where it has strides or torch's negative bit."""
    return x if x.is_contiguous() and not x.is_neg() else x.resolve_neg().contiguous()


Seen = tuple[list[int], list[int], list[bool], list[torch.dtype]]


def look(tensors: Sequence[Tensor]) -> Seen:
    """Addresses, lengths, contiguity and dtypes of tensors: what a kernel that goes by addresses relies on."""
    return (
        [*map(Tensor.data_ptr, tensors)], [*map(Tensor.numel, tensors)], [*map(Tensor.is_contiguous, tensors)],
        [x.dtype for x in tensors],
    )  # fmt: skip


@dataclass(eq=False)
class Stored:
    """One state as a backend sees it: plain tensors of this process, and how they are read.

    Parameters
    ----------
    slot, quantizer
        Declaration and storage.
    shape
        Shape of the decoded state.
    codes, scale
        What is stored, changed in place; `scale` is ``None`` for a format without.
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
        """The state as fp32."""
        return self.quantizer.dequantize(self.codes, self.scale, self.shape)

    def write_(self, codes: Tensor, scale: Tensor | None) -> None:
        """Put other codes and scales in place of those that are there."""
        self.codes.copy_(codes)
        if scale is not None and self.scale is not None:
            self.scale.copy_(scale)


@dataclass(eq=False)
class Binding:
    """A parameter and its states under a rule. It lasts until one of them is another tensor.

    Parameters
    ----------
    rule
        The update rule.
    param
        The parameter, updated in place (float32, bfloat16 or float16): on a sharded parameter the local part, or the
        whole where the rule needs it. ``None`` under a rule that has none (:attr:`Rule.has_param`).
    states
        The states that this parameter has, in the order of the rule's slots; updated in place.
    first_element
        Global flat index of the first element (non-zero on a shard).
    row_stride
        Elements of the whole tensor between the starts of two rows: more than a row has where columns are sharded.
        ``None``: rows follow each other.
    master
        Master weights of a 16-bit parameter (:mod:`halfulp.numbers.remainder`): float32, int16 or uint8, of its shape,
        updated in place. The rule then reads and moves the fp32 weights that they give.
    plan
        The backend's own notes.

    Raises
    ------
    ValueError
        Codes or scales that are not those of their format and shape.
    """

    rule: Rule
    param: Tensor | None
    states: tuple[Stored, ...]
    first_element: int = 0
    row_stride: int | None = None
    master: Tensor | None = None
    plan: Any = field(default=None, init=False, repr=False)
    shape: torch.Size = field(init=False)
    """Shape of the parameter, or of the state where there is no parameter."""
    device: torch.device = field(init=False)
    tensors: tuple[Tensor, ...] = field(init=False, repr=False)
    """The parameter, codes and scales of the states, and master weights."""
    seen: Seen = field(init=False, repr=False)
    """What they were when they were bound: backends use these addresses."""
    quantizers: tuple[Quantizer, ...] = field(init=False)
    """Quantizers of the states."""
    low: bool = field(init=False)
    """Whether any state is stored in less than fp32."""
    names: tuple[str, ...] = field(init=False)
    """Names of the states, and ``"param"``, in the order of a step's `keys`."""

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
        """Whether every tensor is what it was when it was bound; if not, the parameter has to be bound anew."""
        return look(self.tensors) == self.seen

    def read(self) -> dict[str, Tensor]:
        """Every state by name, decoded to fp32."""
        return {s.slot.name: s.read() for s in self.states}

    def weights(self) -> Tensor | None:
        """The parameter in fp32, with its master weights; ``None`` without parameter."""
        return None if self.param is None else weights(self.param, self.master)


@dataclass(eq=False)
class Step:
    """The record of one step of a binding.

    Parameters
    ----------
    binding
        What is updated.
    inputs
        What the rule reads beside it, as :attr:`Rule.inputs` names them: the gradient; of the binding's shape, in
        float32, bfloat16 or float16.
    scalars
        The rule's numbers for this step, rounded to fp32.
    keys
        Random stream of each state, and of the parameter last.
    param_rounding
        How a 16-bit parameter is rounded.
    maximize
        Ascend instead of descend: the gradient is taken with the opposite sign.
    counts
        ``None``, or an int64 tensor of shape ``(states, 2)`` on the CPU, to which the backend adds, for each state, the
        updates that were due (the new value differs from the decoded old one) and those of them that stalled (what is
        stored afterwards decodes to the old one). Elements left untouched count as neither.
    skipped
        An int64 tensor without dimensions on the binding's device, to which the backend adds the elements that it left
        untouched because of a value that is not finite (:mod:`halfulp.kernels.skipped`).
    """

    binding: Binding
    inputs: tuple[Tensor, ...]
    scalars: Scalars
    keys: list[SlotKey]
    param_rounding: Rounding = "nearest"
    maximize: bool = False
    counts: Tensor | None = None
    skipped: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    def wide(self) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """The parameter and the inputs as the rule reads them: in fp32, the gradient with its sign."""
        inputs = tuple(x.float() for x in self.inputs)
        return self.binding.weights(), tuple(-x for x in inputs) if self.maximize else inputs


def step_tile(shape: torch.Size, quantizers: tuple[Quantizer, ...]) -> tuple[int, int, int]:
    """``(rows, cols, tile)``: the stretches of a row that a step takes or leaves as a whole.

    A tile is the least common multiple of the block sizes of the scaled states, 128 without any, at most a row; states
    scaled per row make it a row, states scaled per tensor everything.
    """
    rows, cols = rows_and_cols(shape)
    blocks = [q.scaling for q in quantizers if q.format.scaled]
    if any(s.per == "tensor" for s in blocks):
        return 1, rows * cols, rows * cols
    if any(s.per == "row" for s in blocks):
        return rows, cols, cols
    return rows, cols, min(math.lcm(*(s.block_size for s in blocks)) if blocks else 128, cols)
