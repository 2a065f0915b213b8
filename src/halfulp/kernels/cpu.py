"""The step in C (``csrc/``), which decodes, updates and encodes states in one pass, with the reference's bits.

One call steps all parameters. A rule that is a program (:mod:`halfulp.rules.program`) runs entirely in C. Sums within
an update are measured first (:mod:`halfulp.kernels.cpu_stages`). Any other rule runs in torch, between decoding and
encoding in C, by the code of the reference (:class:`~halfulp.kernels.reference.Codec`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halfulp.kernels import native, reference
from halfulp.kernels.binding import Binding, Step, Stored, plain
from halfulp.kernels.compiled import Compiled, Programs, programs_of
from halfulp.kernels.constants import MAX_UNIFORMS
from halfulp.kernels.cpu_codec import CODEC
from halfulp.kernels.cpu_stages import Measured, measured
from halfulp.kernels.descriptors import DTYPES, SLOT, WORK, Rows, describe, fill_master
from halfulp.numbers.log import warn_once
from halfulp.rules.base import Rule
from halfulp.rules.program import extent_of
from halfulp.rules.tracing import ProgramError

__all__ = ["status", "step", "supports"]


def status() -> str:
    """Return whether this backend can run here and with which instruction set, or the reason why not."""
    return native.why_not() or f"available ({native.chosen()})"


@dataclass
class _Plan:
    """Data on a binding: its programs, if its rule has any, and the batch that it was in last."""

    programs: Programs | None
    row: Rows | None = None
    slots: Rows | None = None
    arrays: tuple[Stored, ...] = ()
    """The states of the parameter's shape."""
    places: tuple[int, ...] = ()
    """Their indices among all states."""
    numbers: tuple[Stored, ...] = ()
    """The states of one element."""
    batch: _Batch | None = None


def supports(rule: Rule, step: Step) -> str | None:
    """Return the reason why this backend cannot do a step."""
    binding = step.binding
    if type(binding.plan) is not _Plan:
        reason = native.why_not() or _unfit(binding)
        if reason is not None:
            return reason
        try:
            binding.plan = _plan(rule, step)
        except ProgramError as error:
            warn_once(f"kernel 'cpu': {error}; states are decoded and encoded in C, the rule runs in torch")
            binding.plan = _Plan(None)
    return None


def _plan(rule: Rule, step: Step) -> _Plan:
    """Return the plan of a binding whose rule is a program."""
    binding = step.binding
    extents = [extent_of(s.slot, len(binding.shape)) for s in binding.states]
    numbers, arrays = (
        tuple(s for s, extent in zip(binding.states, extents, strict=True) if extent == wanted)
        for wanted in ("number", "tensor")
    )
    if any(s.shape != binding.shape for s in arrays):
        raise ProgramError(f"a state of {rule.name!r} has another shape than its parameter")
    if any(not s.quantizer.format.is_float32 for s in numbers):
        raise ProgramError(f"a state of {rule.name!r} is one number, and not stored in fp32")
    programs = programs_of(rule, False, tuple(s.slot for s in binding.states), len(binding.shape))
    by_row = not rule.elementwise and len(binding.shape) > 1
    made = describe(binding.shape, tuple(s.quantizer for s in arrays), binding.row_stride, by_row)
    if isinstance(made, str):
        raise ProgramError(made)
    programs.choose(step.scalars)
    row, slots = made[0].copy(), made[1].copy()
    row["first_element"] = binding.first_element
    row["slots"] = len(arrays)
    fill_master(row, binding)
    return _Plan(programs, row, slots, arrays, tuple(map(binding.states.index, arrays)), numbers)


def _unfit(binding: Binding) -> str | None:
    """Return the reason why C cannot use the tensors of a binding."""
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
    fused = [s for s in steps if s.binding.plan.programs is not None]
    left = [s for s in steps if s.binding.plan.programs is None]
    found: list[Measured] = []
    if fused and not rule.elementwise:
        given, fused = measured(fused), []
        for one in given:
            if isinstance(one, Measured):
                fused.append(one.step)
                found.append(one)
            else:
                left.append(one)
    if fused:
        bindings = [s.binding for s in fused]
        batch = bindings[0].plan.batch
        if batch is None or not batch.is_of(bindings):
            batch = bindings[0].plan.batch = _Batch(rule, bindings)
        batch.step(fused, found)
    if left:
        reference.step(rule, left, CODEC)


@dataclass
class _Batch:
    """Bindings that are stepped in one call. Each step changes only some columns of their rows."""

    rule: Rule
    bindings: list[Binding]
    rows: Rows = field(init=False)
    first_row: int = field(init=False)
    slot_rows: Rows = field(init=False)
    uniforms: bytearray = field(init=False)
    first_uniform: int = field(init=False)
    columns: dict[str, npt.NDArray[Any]] = field(init=False)
    slots: list[_SlotColumns] = field(init=False)
    lengths: list[int] = field(init=False)
    has_numbers: bool = field(init=False)
    sixteen_bit: list[bool] = field(init=False)
    """Whether each parameter has 16 bits, and so may be rounded stochastically."""
    programs: list[int] = field(init=False)
    """Identifies the bindings that share their programs."""
    chosen: list[Compiled] = field(init=False, default_factory=list)
    held: dict[str, list[Any]] = field(init=False, default_factory=dict)
    """The current values of columns that seldom change. Comparing lists is faster than writing one into a column."""

    def __post_init__(self) -> None:
        bindings = self.bindings
        self.rows = np.frombuffer(bytearray(b"".join(b.plan.row.tobytes() for b in bindings)), WORK)
        self.first_row = self.rows.ctypes.data
        self.columns = {name: self.rows[name] for name in WORK.names or ()}
        self.slot_rows, self.slots = _slots(bindings)
        _point(self.columns, self.slot_rows, bindings)
        self.uniforms = bytearray(4 * MAX_UNIFORMS * len(bindings))
        self.first_uniform = np.frombuffer(self.uniforms, np.uint8).ctypes.data
        self.lengths = [b.shape.numel() for b in bindings]
        self.has_numbers = any(b.plan.numbers for b in bindings)
        self.programs = [id(b.plan.programs) for b in bindings]
        self.sixteen_bit = [self.rule.has_param and b.seen[3][0] is not torch.float32 for b in bindings]
        if self.rule.has_param:
            self.columns["param"][:] = [b.seen[0][0] for b in bindings]
            self.columns["param_kind"][:] = [DTYPES[b.seen[3][0]] for b in bindings]

    def is_of(self, bindings: list[Binding]) -> bool:
        """Whether the batch consists of exactly these bindings."""
        return len(self.bindings) == len(bindings) and all(map(is_, self.bindings, bindings))

    def step(self, steps: list[Step], found: list[Measured]) -> None:
        """Fill in what changes from step to step, and do the step. `found` has the results of sums in the update."""
        inputs = self._fill_inputs(steps)
        new = self._fill_uniforms(steps, found)
        if self.rule.has_param:
            self._hold(
                "param_stochastic",
                [b and s.param_rounding == "stochastic" for b, s in zip(self.sixteen_bit, steps, strict=True)],
            )
            self.columns["param_key"][:] = [s.keys[-1] for s in steps]
        for columns in self.slots:
            columns.fill(steps)
        self._hold("skipped", [s.skipped.data_ptr() for s in steps])
        spoilt = [i for i, values in new.items() if not all(map(math.isfinite, values))]
        if spoilt:  # skip the whole parameter if a number is not finite
            kept = self.columns["rows"][spoilt]
            self.columns["rows"][spoilt] = 0
        native.library().hu_step(self.first_row, len(steps), torch.get_num_threads())
        if spoilt:
            self.columns["rows"][spoilt] = kept
        del inputs  # keep them alive until here
        for i, values in new.items():
            if i in spoilt:
                steps[i].skipped += self.lengths[i]
            elif self.lengths[i]:  # an empty tensor is not stepped
                _write_numbers(steps[i], values)
        for one in found:
            one.write_vectors()

    def _fill_inputs(self, steps: list[Step]) -> list[Tensor]:
        self._hold("maximize", [s.maximize for s in steps])
        inputs = self._inputs("grad", [s.inputs[0] for s in steps])
        if not self.rule.has_param:  # the second input is read in place of a parameter
            inputs += self._inputs("param", [s.inputs[-1] for s in steps])
        return inputs

    def _inputs(self, name: str, given: list[Tensor]) -> list[Tensor]:
        """Give every row the address of an input. Return the tensors that must live until C has read them."""
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

    def _fill_uniforms(self, steps: list[Step], found: list[Measured]) -> dict[int, list[np.float32]]:
        """Choose each binding's program, and write each distinct set of uniform values once. Return the new numbers."""
        sets = [id(s.scalars) for s in steps]
        if self.has_numbers or found:
            keys: list[Any] = list(range(len(steps)))
        else:
            keys = list(zip(sets, self.programs, strict=True))
        made: dict[Any, tuple[Compiled, int]] = {}
        new: dict[int, list[np.float32]] = {}
        for i, key in enumerate(keys):
            if key not in made:
                one = steps[i]
                if found:
                    compiled, values, numbers = found[i].compiled, found[i].uniforms, found[i].numbers
                    found[i].vectors.fill(self.rows[i])
                else:
                    compiled = one.binding.plan.programs.choose(one.scalars)
                    values, numbers = compiled.uniforms(one.scalars, compiled.numbers(one.binding.plan.numbers))
                at = 4 * MAX_UNIFORMS * len(made)
                compiled.packed.pack_into(self.uniforms, at, *values)
                made[key] = compiled, self.first_uniform + at
                if numbers:
                    new[i] = numbers
        taken = [made[key] for key in keys]
        self._hold("scalars", [at for _, at in taken])
        chosen = [compiled for compiled, _ in taken]
        if chosen != self.chosen:
            self.chosen = chosen
            for name, of in (("program", "number"), ("code", "address"), ("flags", "flags")):
                self.columns[name][:] = [getattr(compiled, of) for compiled in chosen]
        return new


def _write_numbers(step: Step, values: list[np.float32]) -> None:
    for k, state in enumerate(step.binding.states):
        if state in step.binding.plan.numbers:
            value = float(values[step.binding.plan.numbers.index(state)])
            if step.counts is not None:
                step.counts[k, 0] += int(value != float(state.codes))
            state.codes.fill_(value)


def _slots(bindings: list[Binding]) -> tuple[Rows, list[_SlotColumns]]:
    """Return the ``hu_slot`` of the states of each binding, one line per binding."""
    most = max(len(b.plan.arrays) for b in bindings)
    rows = np.zeros((len(bindings), max(most, 1)), SLOT)
    for line, binding in zip(rows, bindings, strict=True):
        line[: len(binding.plan.arrays)] = binding.plan.slots
    return rows, [_SlotColumns(rows[:, k], k, bindings) for k in range(most)]


def _point(columns: dict[str, npt.NDArray[Any]], slot_rows: Rows, bindings: list[Binding]) -> None:
    """Give each row the address of its slots."""
    line = slot_rows.dtype.itemsize * slot_rows.shape[1]
    columns["slot"][:] = slot_rows.ctypes.data + line * np.arange(len(bindings), dtype=np.uintp)


class _SlotColumns:
    """The columns of one slot, and the bindings that have it."""

    def __init__(self, rows: Rows, slot: int, bindings: list[Binding]) -> None:
        arrays = [b.plan.arrays for b in bindings]
        self.key, self.counts = rows["key"], rows["counts"]
        self.having = [i for i, states in enumerate(arrays) if len(states) > slot]
        self.all = len(self.having) == len(arrays)
        self.places = [bindings[i].plan.places[slot] for i in self.having]
        self.held: list[int] = []
        for i in self.having:
            state = arrays[i][slot]
            rows["codes"][i] = state.codes.data_ptr()
            if state.scale is not None:
                rows["scale"][i] = state.scale.data_ptr()

    def fill(self, steps: list[Step]) -> None:
        """Set the counters and the keys of this step."""
        having = steps if self.all else [steps[i] for i in self.having]
        counts = [0 if s.counts is None else s.counts[k].data_ptr() for s, k in zip(having, self.places, strict=True)]
        which = slice(None) if self.all else self.having
        if counts != self.held:
            self.counts[which] = self.held = counts
        self.key[which] = [s.keys[k] for s, k in zip(having, self.places, strict=True)]
