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
from halfulp.kernels.binding import Binding, SlotKey, Step, Stored, plain
from halfulp.kernels.descriptors import DTYPES, SCALARS, WORK, Rows, describe, describe_slot
from halfulp.numbers.log import log_once
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.scaling import rows_and_cols
from halfulp.rules.base import Rule

__all__ = ["status", "step", "supports"]


def status() -> str:
    """Whether this backend can run here, and with which instruction set; or why not."""
    return native.why_not() or f"available ({native.chosen()})"


@dataclass
class _Plan:
    """What is known of a binding: its row, if it has a fused kernel, and the batch that it was in last."""

    row: Rows | None
    batch: _Batch | None = None


def supports(rule: Rule, step: Step) -> str | None:
    """Reason why this backend cannot do a step."""
    binding = step.binding
    if type(binding.plan) is not _Plan:
        reason = native.why_not() or _unfit(binding)
        if reason is not None:
            return reason
        row = describe(binding)
        if isinstance(row, str):
            log_once(f"kernel 'cpu': {row}; its states are decoded and encoded in C, its rule runs in torch")
        binding.plan = _Plan(None if isinstance(row, str) else row)
    return None


def _unfit(binding: Binding) -> str | None:
    """Why the addresses of a binding cannot be given to C."""
    if any(x.device.type != "cpu" for x in binding.tensors):
        return f"it works on the CPU, and the tensors are on {', '.join({x.device.type for x in binding.tensors})}"
    if binding.param is not None and not binding.param.is_contiguous():
        return "the parameter is not contiguous"
    if not all(plain(x) is x for x in binding.tensors):
        return "a parameter or state is not contiguous, or has torch's negative bit"
    if binding.param is not None and binding.param.dtype not in DTYPES:
        return f"the parameter is in {binding.param.dtype}"
    return None


def step(rule: Rule, steps: list[Step]) -> None:
    """Do the step of every binding."""
    fused = [s for s in steps if s.binding.plan.row is not None]
    if fused:
        bindings = [s.binding for s in fused]
        batch = bindings[0].plan.batch
        if batch is None or len(batch.bindings) != len(bindings) or not all(map(is_, batch.bindings, bindings)):
            batch = bindings[0].plan.batch = _Batch(rule, bindings)
        batch.step(fused)
    if len(fused) < len(steps):
        reference.step(rule, [s for s in steps if s.binding.plan.row is None], CODEC)


@dataclass
class _Batch:
    """Bindings that are done in one call, step after step: their rows, of which a step changes some columns."""

    rule: Rule
    bindings: list[Binding]
    rows: Rows = field(init=False)
    packed: struct.Struct = field(init=False)
    scalars: bytearray = field(init=False)
    first_scalar: int = field(init=False)
    columns: dict[str, npt.NDArray[Any]] = field(init=False)
    slots: list[_SlotColumns] = field(init=False)
    lengths: list[int] = field(init=False)
    held: dict[str, list[Any]] = field(init=False, default_factory=dict)
    """What columns hold that seldom change: comparing lists takes less time than writing one into a column."""

    def __post_init__(self) -> None:
        bindings = self.bindings
        self.rows = np.frombuffer(bytearray(b"".join(b.plan.row.tobytes() for b in bindings)), WORK)
        most = max(len(b.states) for b in bindings)
        self.slots = [_SlotColumns(self.rows["slot"][:, k], k, bindings) for k in range(most)]
        self.columns = {name: self.rows[name] for name in WORK.names or ()}
        self.packed = struct.Struct(f"{len(SCALARS[self.rule.name])}f")
        self.scalars = bytearray(self.packed.size * len(bindings))
        self.first_scalar = np.frombuffer(self.scalars, np.uint8).ctypes.data
        self.lengths = [b.shape.numel() for b in bindings]
        if self.rule.has_param:
            self.columns["param"][:] = [b.seen[0][0] for b in bindings]
            self.columns["param_kind"][:] = [DTYPES[b.seen[3][0]] for b in bindings]

    def step(self, steps: list[Step]) -> None:
        """Fill in what changes from step to step, and do it."""
        grads = self._inputs("grad", [s.inputs[0] for s in steps])
        self._fill_scalars(steps)
        self._hold("maximize", [s.maximize for s in steps])
        if self.rule.has_param:
            self._hold(
                "param_stochastic",
                [
                    s.param_rounding == "stochastic" and s.binding.seen[3][0] is not torch.float32
                    for s in steps
                ],
            )  # fmt: skip
            self.columns["param_key"][:] = [s.keys[-1] for s in steps]
        else:  # the second input is read where a parameter would be
            grads = [*grads, *self._inputs("param", [s.inputs[-1] for s in steps])]
        for columns in self.slots:
            columns.fill(steps)
        self._hold("skipped", [s.skipped.data_ptr() for s in steps])
        native.library().hu_step(self.rows.ctypes.data, len(steps), torch.get_num_threads())
        del grads  # alive until here

    def _inputs(self, name: str, given: list[Tensor]) -> list[Tensor]:
        """Give every row the address of an input; the tensors that have to live until C has read them."""
        inputs = [x if x.is_contiguous() and not x.is_neg() else plain(x) for x in given]
        if [*map(Tensor.numel, inputs)] != self.lengths or not all(x.is_cpu for x in inputs):
            wrong = next(x for x, n in zip(inputs, self.lengths, strict=True) if x.numel() != n or not x.is_cpu)
            raise RuntimeError(
                f"an input of a step is of shape {tuple(wrong.shape)} on {wrong.device.type}: it must have as many "
                "elements as the state, and be on the CPU as it is"
            )
        self._hold(name, [*map(Tensor.data_ptr, inputs)])
        self._hold(f"{name}_kind", [DTYPES[x.dtype] for x in inputs])
        return inputs

    def _hold(self, name: str, values: list[Any]) -> None:
        if self.held.get(name) != values:
            self.columns[name][:] = self.held[name] = values

    def _fill_scalars(self, steps: list[Step]) -> None:
        """Write the scalars of this step, each set once, and give every row the address of its own."""
        names, made, addresses = SCALARS[self.rule.name], dict[int, int](), []
        for one in steps:
            at = made.get(id(one.scalars))
            if at is None:
                at = made[id(one.scalars)] = self.packed.size * len(made)
                self.packed.pack_into(self.scalars, at, *[one.scalars[n] for n in names])
            addresses.append(self.first_scalar + at)
        self._hold("scalars", addresses)


class _SlotColumns:
    """The columns of one slot, and the bindings that have it."""

    def __init__(self, rows: Rows, slot: int, bindings: list[Binding]) -> None:
        self.slot = slot
        self.key, self.counts = rows["key"], rows["counts"]
        self.having = [i for i, b in enumerate(bindings) if len(b.states) > slot]
        self.all = len(self.having) == len(bindings)
        self.held: list[int] = []
        for i in self.having:
            state = bindings[i].states[slot]
            rows["codes"][i] = state.codes.data_ptr()
            if state.scale is not None:
                rows["scale"][i] = state.scale.data_ptr()

    def fill(self, steps: list[Step]) -> None:
        """The counts that this step adds to, and its keys."""
        k = self.slot
        counts = [0 if s.counts is None else s.counts[k].data_ptr() for s in steps]
        if counts != self.held:
            self.counts[:] = self.held = counts
        self.key[slice(None) if self.all else self.having] = [steps[i].keys[k] for i in self.having]


def _read(state: Stored) -> Tensor:
    """A state decoded in C; see :meth:`Stored.read`."""
    out = torch.empty(state.shape, dtype=torch.float32)
    slot = describe_slot(state.quantizer, state.shape)
    slot["codes"] = state.codes.data_ptr()
    if state.scale is not None:
        slot["scale"] = state.scale.data_ptr()
    native.library().hu_decode(slot.ctypes.data, *rows_and_cols(state.shape), out.data_ptr(), torch.get_num_threads())
    return out


def _quantize(state: Stored, x: Tensor, key: SlotKey, step: Step) -> tuple[Tensor, Tensor | None]:
    """Codes and scales of new values, encoded in C; see :meth:`Quantizer.quantize`."""
    quantizer: Quantizer = state.quantizer
    x = x.contiguous()
    (dtype, shape), *scales = quantizer.stored_as(x.shape)
    codes = torch.empty(shape, dtype=dtype)
    scale = torch.empty(scales[0][1], dtype=scales[0][0]) if scales else None
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
