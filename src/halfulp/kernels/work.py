"""What a backend gets: one parameter's share of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halfulp.kernels.stored import EmaState
from halfulp.numbers.quantizer import Quantizer, Rounding
from halfulp.numbers.scaling import rows_and_cols
from halfulp.rules.base import Rule, Scalars

__all__ = ["SlotKey", "Work", "step_tile"]

SlotKey = tuple[int, int, int]
"""Key and lane of a slot's random stream in this step, three words of 32 bits (:mod:`halfulp.numbers.rng`)."""


@dataclass
class Work:
    """One parameter in one step.

    Parameters
    ----------
    param, grad
        The parameter, updated in place, and its gradient (same shape; float32, bfloat16 or float16). On a sharded
        parameter the local parts of both, or the whole where the rule needs it.
    states
        The states that this parameter has, in the order of the rule's slots; updated in place (the age is the engine's
        business).
    scalars
        The rule's numbers for this step, rounded to fp32.
    param_rounding
        How a 16-bit parameter is rounded.
    keys
        Random stream of each state, and of the parameter last.
    first_element
        Global flat index of the first element (non-zero on a shard).
    row_stride
        Elements of the whole tensor between the starts of two rows: more than a row has where columns are sharded.
        ``None``: rows follow each other.
    maximize
        Ascend instead of descend.
    owner
        The optimizer's parameter that `param` is, or is the local part of.
    counts
        ``None``, or an int64 tensor of shape ``(states, 2)`` on the CPU, to which the backend adds, for each state, the
        updates that were due (the new value differs from the decoded old one) and those of them that stalled (what is
        stored afterwards decodes to the old one). Elements left untouched count as neither.
    plan
        The backend's own notes on this piece of work.
    skipped
        Set by the backend: elements left untouched because of a value that is not finite.
    """

    rule: Rule
    param: Tensor
    grad: Tensor
    states: tuple[EmaState, ...]
    scalars: Scalars
    param_rounding: Rounding
    keys: list[SlotKey]
    first_element: int = 0
    maximize: bool = False
    row_stride: int | None = None
    counts: Tensor | None = None
    owner: Tensor = field(init=False)
    low: bool = field(init=False)
    """Whether any state is stored in less than fp32."""
    names: tuple[str, ...] = field(init=False)
    """Of the states, and ``"param"``: whose each of the `keys` is."""
    plan: Any = field(default=None, init=False, repr=False, compare=False)
    skipped: int = field(default=0)

    def __post_init__(self) -> None:
        self.owner = self.param
        self.low = any(not q.format.is_float32 for q in self.quantizers)
        self.names = (*(s.slot.name for s in self.states), "param")

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """Of the states."""
        return tuple(s.quantizer for s in self.states)

    def read(self) -> dict[str, Tensor]:
        """Every state by name, decoded to fp32."""
        return {s.slot.name: s.read() for s in self.states}


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
