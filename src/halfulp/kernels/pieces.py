"""A large tensor's share of a step in pieces that stay in the processor's caches.

A rule in torch operations makes a tensor of each intermediate. On whole tensors every one of them goes through memory
that the system has to give and take back; on pieces they stay where they were. No bit depends on it: scales and tiles
never cross a row, and random words follow the index of an element.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from halfulp.kernels.binding import Binding, Step, Stored
from halfulp.numbers.scaling import rows_and_cols

__all__ = ["PIECE", "pieces"]

PIECE = 1 << 17
"""Elements of a piece, about."""


def pieces(step: Step) -> list[Step]:
    """A step as steps over stretches of rows, views of its tensors; the whole where it cannot or need not be cut.

    What may be cut is on the CPU, follows an elementwise rule, and has no scale of a whole tensor and no state of
    another shape than the parameter.
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
