"""The step in C (``csrc/``): states are decoded, updated and encoded in one pass, bit for bit as the reference does it.

One call does all parameters. A rule that has no fused kernel runs in torch between C's decoding and encoding, under the
same code as the reference (:class:`~halfulp.kernels.reference.Codec`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halfulp._log import log_once
from halfulp.kernels import native, reference
from halfulp.kernels.descriptors import DTYPES, SCALARS, WORK, Rows, describe, describe_slot
from halfulp.kernels.work import SlotKey, Work
from halfulp.quantizer import Quantizer
from halfulp.rounding import storage_dtype
from halfulp.rules.base import Rule
from halfulp.scaling import rows_and_cols
from halfulp.state import EmaState

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
    slots: list[tuple[int, list[int] | slice, list[EmaState]]] = field(init=False)
    scaled: list[tuple[int, list[int], list[EmaState]]] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = np.frombuffer(bytearray(b"".join(w.plan.row.tobytes() for w in self.works)), WORK)
        self.skipped = np.zeros(len(self.works), np.int64)
        self.rows["skipped"] = self.skipped.ctypes.data + 8 * np.arange(len(self.works), dtype=np.uintp)
        most = max(len(w.states) for w in self.works)
        self.slots, self.scaled = [], []
        for k in range(most):
            having = [i for i, w in enumerate(self.works) if len(w.states) > k]
            states = [self.works[i].states[k] for i in having]
            self.slots.append((k, slice(None) if len(having) == len(self.works) else having, states))
            with_scale = [i for i in having if self.works[i].states[k].quantizer.format.scaled]
            if with_scale:
                self.scaled.append((k, with_scale, [self.works[i].states[k] for i in with_scale]))

    def step(self) -> None:
        """Fill in what changes from step to step, and do it."""
        works, rows = self.works, self.rows
        grads = [w.grad if w.grad.is_contiguous() else w.grad.contiguous() for w in works]
        scalars = self._scalars()
        rows["param"] = [w.param.data_ptr() for w in works]
        rows["grad"] = [g.data_ptr() for g in grads]
        rows["grad_kind"] = [DTYPES[g.dtype] for g in grads]
        rows["maximize"] = [w.maximize for w in works]
        rows["param_stochastic"] = [w.param_rounding == "stochastic" for w in works]
        rows["param_stochastic"] &= rows["param_kind"] != 0
        rows["param_key"] = [w.keys[-1] for w in works]
        for k, at, states in self.slots:
            slot = rows["slot"][:, k]
            slot["codes"][at] = [_address(s.codes) for s in states]
            slot["key"][at] = [w.keys[k] for w in works] if isinstance(at, slice) else [works[i].keys[k] for i in at]
            slot["counts"] = [0 if w.counts is None else w.counts[k].data_ptr() for w in works]
        for k, at, states in self.scaled:
            rows["slot"]["scale"][at, k] = [_address(s.scale) for s in states]  # type: ignore[arg-type]
        self.skipped[:] = 0
        native.library().hu_step(rows.ctypes.data, len(works), torch.get_num_threads())
        del grads, scalars  # alive until here
        if self.skipped.any():
            for work, count in zip(works, self.skipped.tolist(), strict=True):
                work.skipped = count

    def _scalars(self) -> list[Any]:
        """Give every row the address of its scalars; returns what must stay alive."""
        names, addresses = SCALARS[self.rule.name], []
        made: dict[int, tuple[int, npt.NDArray[np.float32]]] = {}
        for work in self.works:
            known = made.get(id(work.scalars))
            if known is None:
                array = np.array([work.scalars[n] for n in names], np.float32)
                known = made[id(work.scalars)] = (array.ctypes.data, array)
            addresses.append(known[0])
        self.rows["scalars"] = addresses
        return list(made.values())


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
