"""A large tensor's share of a step in pieces that stay in the processor's caches.

A rule in torch operations makes a tensor of each intermediate. On whole tensors every one of them goes through memory
that the system has to give and take back; on pieces they stay where they were. No bit depends on it: scales and tiles
never cross a row, and random words follow the index of an element.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from halfulp.kernels.stored import EmaState
from halfulp.kernels.work import Work
from halfulp.numbers.scaling import rows_and_cols

__all__ = ["PIECE", "pieces"]

PIECE = 1 << 17
"""Elements of a piece, about."""


def pieces(work: Work) -> list[Work]:
    """Stretches of rows of a piece of work, over views of its tensors; the whole where it cannot or need not be cut.

    What may be cut is on the CPU, follows an elementwise rule, and has no scale of a whole tensor and no state of
    another shape than the parameter.
    """
    param = work.param
    rows, cols = rows_and_cols(param.shape)
    height = max(1, PIECE // max(cols, 1))
    if (
        not work.rule.elementwise
        or param.device.type != "cpu"
        or rows <= height
        or any(s.shape != param.shape for s in work.states)
        or any(s.quantizer.format.scaled and s.quantizer.scaling.per == "tensor" for s in work.states)
    ):
        return [work]
    return [_rows(work, start, min(start + height, rows), cols) for start in range(0, rows, height)]


def _rows(work: Work, start: int, stop: int, cols: int) -> Work:
    stride = cols if work.row_stride is None else work.row_stride
    states = tuple(_state_rows(s, start, stop) for s in work.states)
    return replace(
        work, param=work.param[start:stop], grad=work.grad[start:stop], states=states,
        first_element=work.first_element + start * stride,
    )  # fmt: skip


def _state_rows(state: EmaState, start: int, stop: int) -> EmaState:
    entries = {state.slot.name: state.codes[start:stop], state.age_key: state.age}
    if state.scale is not None:
        entries[state.scale_key] = state.scale[start:stop]
    return EmaState(state.slot, state.quantizer, torch.Size((stop - start, *state.shape[1:])), entries)
