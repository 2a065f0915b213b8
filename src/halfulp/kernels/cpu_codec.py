"""Decoding and encoding of states in C, for updates that do not run in C."""

from __future__ import annotations

import torch
from torch import Tensor

from halfulp.kernels import native, reference
from halfulp.kernels.binding import SlotKey, Step, Stored
from halfulp.kernels.descriptors import describe_slot
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.scaling import rows_and_cols

__all__ = ["CODEC"]


def _read(state: Stored) -> Tensor:
    """Return a state decoded in C. See :meth:`Stored.read`."""
    if state.quantizer.format.is_float32:
        return state.read()
    out = torch.empty(state.shape, dtype=torch.float32, device="cpu")
    slot = describe_slot(state.quantizer, state.shape)
    slot["codes"] = state.codes.data_ptr()
    if state.scale is not None:
        slot["scale"] = state.scale.data_ptr()
    native.library().hu_decode(slot.ctypes.data, *rows_and_cols(state.shape), out.data_ptr(), torch.get_num_threads())
    return out


def _quantize(state: Stored, x: Tensor, key: SlotKey, step: Step) -> tuple[Tensor, Tensor | None]:
    """Return the codes and scales of new values, encoded in C. See :meth:`Quantizer.quantize`."""
    quantizer: Quantizer = state.quantizer
    if quantizer.format.is_float32:
        return x, None
    x = x.contiguous()
    (dtype, shape), *scales = quantizer.stored_as(x.shape)
    codes = torch.empty(shape, dtype=dtype, device="cpu")
    scale = torch.empty(scales[0][1], dtype=scales[0][0], device="cpu") if scales else None
    slot = describe_slot(quantizer, x.shape)
    slot["codes"], slot["key"] = codes.data_ptr(), key
    if scale is not None:
        slot["scale"] = scale.data_ptr()
    rows, cols = rows_and_cols(x.shape)
    stride = cols if step.binding.row_stride is None else step.binding.row_stride
    first, threads = step.binding.first_element, torch.get_num_threads()
    native.library().hu_encode(slot.ctypes.data, rows, cols, first, stride, x.data_ptr(), threads)
    return codes, scale


CODEC = reference.Codec(_read, _quantize)
