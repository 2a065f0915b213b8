"""The step of a large tensor in pieces that fit into the processor's caches.

A rule in torch operations allocates a tensor for each intermediate. For whole tensors, each of them is memory that the
system has to map and unmap. For pieces, they stay in the caches. The bits are the same: scales and tiles never cross a
row, and random words depend on the index of an element.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from halfulp.kernels.binding import Binding, Step, Stored
from halfulp.numbers.scaling import rows_and_cols

__all__ = ["PIECE", "pieces"]

PIECE = 1 << 17
"""The approximate number of elements of a piece."""


def pieces(step: Step) -> list[Step]:
    """Split a step into steps over ranges of rows, with views of its tensors. Return the whole if it need not be split.

    Only a step on the CPU can be split, with an elementwise rule, no scale per tensor, and all states in the
    parameter's shape.
    """
    binding = step.binding
    rows, cols = rows_and_cols(binding.shape)
    height = max(1, PIECE // max(cols, 1))
    if (
        not binding.rule.elementwise
        or binding.device.type != "cpu"
        or rows <= height
        or any(s.shape != binding.shape for s in binding.states)
        or any(q.format.scaled and q.scaling.per == "tensor" for q in binding.quantizers)
    ):
        return [step]
    return [_rows(step, start, min(start + height, rows), cols) for start in range(0, rows, height)]


def _rows(step: Step, start: int, stop: int, cols: int) -> Step:
    whole = step.binding
    stride = cols if whole.row_stride is None else whole.row_stride

    def cut(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[start:stop]

    states = tuple(
        Stored(s.slot, s.quantizer, torch.Size((stop - start, *s.shape[1:])), s.codes[start:stop], cut(s.scale))
        for s in whole.states
    )
    first = whole.first_element + start * stride
    binding = Binding(whole.rule, cut(whole.param), states, first, whole.row_stride, cut(whole.master))
    return replace(step, binding=binding, inputs=tuple(x[start:stop] for x in step.inputs))
