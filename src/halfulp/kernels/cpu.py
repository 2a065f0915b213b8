"""The step in C (``csrc/``): states are decoded, updated and encoded in one pass, bit for bit as the reference does it.

One call does all parameters. A rule that has no fused kernel runs in torch between C's decoding and encoding, under the
same code as the reference (:class:`~halfulp.kernels.reference.Codec`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halfulp.kernels import native, reference
from halfulp.kernels.descriptors import DTYPES, SCALARS, WORK, Rows, describe, describe_slot
from halfulp.kernels.stored import EmaState
from halfulp.kernels.work import SlotKey, Work
from halfulp.numbers.log import log_once
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.rounding import storage_dtype
from halfulp.numbers.scaling import rows_and_cols
from halfulp.rules.base import Rule

__all__ = ["status", "step", "supports"]


def status() -> str:
    """Whether this backend can run here, and with which instruction set; or why not."""
    return native.why_not() or f"available ({native.chosen()})"


@dataclass
class _Plan:
    """What is known of a piece of work as long as its parameter keeps shape and dtype."""

    shape: torch.Size
    dtype: torch.dtype
    row: Rows | None
    batch: _Batch | None = None


def supports(rule: Rule, work: Work) -> str | None:
    """Reason why this backend cannot do a piece of work."""
    plan, param = work.plan, work.param
    if type(plan) is not _Plan or plan.dtype is not param.dtype or plan.shape != param.shape:
        reason = native.why_not()
        if reason is None and param.device.type != "cpu":
            reason = f"it works on the CPU, and the parameter is on {param.device.type}"
        if reason is not None:
            return reason
        row = describe(work)
        if isinstance(row, str):
            log_once(f"kernel 'cpu': {row}; its states are decoded and encoded in C, its rule runs in torch")
        work.plan = _Plan(param.shape, param.dtype, None if isinstance(row, str) else row)
    return None if param.is_contiguous() else "the parameter is not contiguous"


def step(rule: Rule, works: list[Work]) -> None:
    """Do the step of every parameter."""
    fused = [w for w in works if w.plan.row is not None]
    if fused:
        batch = fused[0].plan.batch
        if batch is None or len(batch.works) != len(fused) or not all(map(is_, batch.works, fused)):
            batch = fused[0].plan.batch = _Batch(rule, fused)
        batch.step()
    if len(fused) < len(works):
        reference.step(rule, [w for w in works if w.plan.row is None], CODEC)


@dataclass
class _Batch:
    """Works that are done in one call, step after step: their rows, of which a step changes some columns."""

    rule: Rule
    works: list[Work]
    rows: Rows = field(init=False)
    skipped: npt.NDArray[np.int64] = field(init=False)
    packed: struct.Struct = field(init=False)
    scalars: bytearray = field(init=False)
    first_scalar: int = field(init=False)
    columns: dict[str, npt.NDArray[Any]] = field(init=False)
    slots: list[_SlotColumns] = field(init=False)
    held: dict[str, list[Any]] = field(init=False, default_factory=dict)
    """What columns hold that seldom change: comparing lists takes less time than writing one into a column."""

    def __post_init__(self) -> None:
        self.rows = np.frombuffer(bytearray(b"".join(w.plan.row.tobytes() for w in self.works)), WORK)
        self.skipped = np.zeros(len(self.works), np.int64)
        self.rows["skipped"] = self.skipped.ctypes.data + 8 * np.arange(len(self.works), dtype=np.uintp)
        most = max(len(w.states) for w in self.works)
        self.slots = [_SlotColumns(self.rows["slot"][:, k], k, self.works) for k in range(most)]
        self.columns = {name: self.rows[name] for name in WORK.names or ()}
        self.packed = struct.Struct(f"{len(SCALARS[self.rule.name])}f")
        self.scalars = bytearray(self.packed.size * len(self.works))
        self.first_scalar = np.frombuffer(self.scalars, np.uint8).ctypes.data

    def step(self) -> None:
        """Fill in what changes from step to step, and do it."""
        works = self.works
        grads = [w.grad if w.grad.is_contiguous() else w.grad.contiguous() for w in works]
        self._fill_scalars()
        self._hold("param", [w.param.data_ptr() for w in works])
        self._hold("grad", [g.data_ptr() for g in grads])
        self._hold("grad_kind", [DTYPES[g.dtype] for g in grads])
        self._hold("maximize", [w.maximize for w in works])
        self._hold(
            "param_stochastic",
            [w.param_rounding == "stochastic" and w.param.dtype is not torch.float32 for w in works],
        )
        self.columns["param_key"][:] = [w.keys[-1] for w in works]
        for columns in self.slots:
            columns.fill(works)
        skipped = native.library().hu_step(self.rows.ctypes.data, len(works), torch.get_num_threads())
        del grads  # alive until here
        if skipped:
            for work, count in zip(works, self.skipped.tolist(), strict=True):
                work.skipped = count
            self.skipped[:] = 0

    def _hold(self, name: str, values: list[Any]) -> None:
        if self.held.get(name) != values:
            self.columns[name][:] = self.held[name] = values

    def _fill_scalars(self) -> None:
        """Write the scalars of this step, each set once, and give every row the address of its own."""
        names, made, addresses = SCALARS[self.rule.name], dict[int, int](), []
        for work in self.works:
            at = made.get(id(work.scalars))
            if at is None:
                at = made[id(work.scalars)] = self.packed.size * len(made)
                self.packed.pack_into(self.scalars, at, *[work.scalars[n] for n in names])
            addresses.append(self.first_scalar + at)
        self._hold("scalars", addresses)


class _SlotColumns:
    """The columns of one slot, and the works that have it."""

    def __init__(self, rows: Rows, slot: int, works: list[Work]) -> None:
        self.slot = slot
        self.codes, self.scale, self.key, self.counts = (rows[n] for n in ("codes", "scale", "key", "counts"))
        self.having = [i for i, w in enumerate(works) if len(w.states) > slot]
        self.scaled = [i for i in self.having if works[i].states[slot].quantizer.format.scaled]
        self.all = len(self.having) == len(works)
        self.held: list[list[int]] = []

    def fill(self, works: list[Work]) -> None:
        """Addresses where they have changed, and the keys of this step."""
        k = self.slot
        addresses = [
            [_address(works[i].states[k].codes) for i in self.having],
            [_address(works[i].states[k].scale) for i in self.scaled],  # type: ignore[arg-type]
            [0 if w.counts is None else w.counts[k].data_ptr() for w in works],
        ]
        if addresses != self.held:
            self.codes[self.having], self.scale[self.scaled], self.counts[:] = addresses
            self.held = addresses
        self.key[slice(None) if self.all else self.having] = [works[i].keys[k] for i in self.having]


def _address(x: Tensor) -> int:
    if not x.is_contiguous():
        raise RuntimeError("a stored state is no longer contiguous; keep the tensors that the optimizer made")
    return x.data_ptr()


def _read(state: EmaState) -> Tensor:
    """A state decoded in C; see :meth:`EmaState.read`."""
    out = torch.empty(state.shape, dtype=torch.float32)
    slot = describe_slot(state.quantizer, state.shape)
    slot["codes"] = _address(state.codes)
    if state.scale is not None:
        slot["scale"] = _address(state.scale)
    native.library().hu_decode(slot.ctypes.data, *rows_and_cols(state.shape), out.data_ptr())
    return out


def _quantize(state: EmaState, x: Tensor, key: SlotKey, work: Work) -> tuple[Tensor, Tensor | None]:
    """Codes and scales of new values, encoded in C; see :meth:`Quantizer.quantize`."""
    quantizer: Quantizer = state.quantizer
    x = x.contiguous()
    codes = torch.empty(quantizer.codes_shape(x.shape), dtype=storage_dtype(quantizer.format))
    shape = quantizer.scale_shape(x.shape)
    scale = None if shape is None else torch.empty(shape, dtype=quantizer.scaling.dtype)
    slot = describe_slot(state.quantizer, state.shape)
    slot["codes"], slot["key"] = codes.data_ptr(), key
    if scale is not None:
        slot["scale"] = scale.data_ptr()
    rows, cols = rows_and_cols(x.shape)
    stride = cols if work.row_stride is None else work.row_stride
    native.library().hu_encode(slot.ctypes.data, rows, cols, work.first_element, stride, x.data_ptr())
    return codes, scale


CODEC = reference.Codec(_read, _quantize)
