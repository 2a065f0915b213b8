"""The step in C (``csrc/``), which decodes, updates and encodes states in one pass, with the reference's bits.

One call steps all parameters. A rule that is a program (:mod:`halfulp.rules.program`) runs entirely in C. What it needs
beforehand is computed for all parameters at once (:mod:`halfulp.kernels.cpu_stages`). Any other rule runs in torch,
between decoding and encoding in C, by the code of the reference (:class:`~halfulp.kernels.reference.Codec`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halfulp.kernels import native, reference
from halfulp.kernels.binding import Binding, Step, Stored, plain
from halfulp.kernels.compiled import Programs, chosen, programs_of
from halfulp.kernels.constants import MAX_UNIFORMS
from halfulp.kernels.cpu_codec import CODEC
from halfulp.kernels.cpu_stages import Groups, Ready
from halfulp.kernels.cpu_sums import Inputs, is_of, lines_of
from halfulp.kernels.descriptors import DTYPES, SLOT, WORK, Rows, describe, fill_master
from halfulp.numbers.log import warn_once
from halfulp.rules.base import Rule
from halfulp.rules.program import Floats, extent_of
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
    return _Plan(programs, row, slots, arrays, tuple(map(binding.states.index, arrays)))


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
    if fused:
        bindings = [s.binding for s in fused]
        batch = bindings[0].plan.batch
        if batch is None or not is_of(batch.bindings, bindings):
            batch = bindings[0].plan.batch = _Batch(rule, bindings)
        left += batch.step(fused)
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
    uniforms: Floats = field(init=False)
    uniform_lines: npt.NDArray[np.uint64] = field(init=False)
    """The addresses of the lines of uniform values."""
    columns: dict[str, npt.NDArray[Any]] = field(init=False)
    slots: list[_SlotColumns] = field(init=False)
    lengths: list[int] = field(init=False)
    sixteen_bit: list[bool] = field(init=False)
    """Whether each parameter has 16 bits, and so may be rounded stochastically."""
    programs: list[Programs] = field(init=False)
    chosen: list[Any] = field(init=False, default_factory=list)
    """What each binding runs."""
    groups: Groups = field(init=False)
    held: dict[str, list[Any]] = field(init=False, default_factory=dict)
    """The current values of columns that seldom change. Comparing lists is faster than writing one into a column."""

    def __post_init__(self) -> None:
        bindings = self.bindings
        self.rows = np.frombuffer(bytearray(b"".join(b.plan.row.tobytes() for b in bindings)), WORK)
        self.first_row = self.rows.ctypes.data
        self.columns = {name: self.rows[name] for name in WORK.names or ()}
        self.slot_rows, self.slots = _slots(bindings)
        self.columns["slot"][:] = lines_of(self.slot_rows)
        self.uniforms = np.zeros((len(bindings), MAX_UNIFORMS), np.float32)
        self.uniform_lines = lines_of(self.uniforms)
        self.lengths = [b.shape.numel() for b in bindings]
        self.programs = [b.plan.programs for b in bindings]
        self.sixteen_bit = [self.rule.has_param and b.seen[3][0] is not torch.float32 for b in bindings]
        if self.rule.has_param:
            self.columns["param"][:] = [b.seen[0][0] for b in bindings]
            self.columns["param_kind"][:] = [DTYPES[b.seen[3][0]] for b in bindings]

    def step(self, steps: list[Step]) -> list[Step]:
        """Fill in what changes from step to step, and do the step. Return the steps that are left to the reference."""
        self._hold("maximize", [s.maximize for s in steps])
        inputs = [self._inputs("grad", [s.inputs[0] for s in steps])]
        if not self.rule.has_param:  # the second input is read in place of a parameter
            inputs.append(self._inputs("param", [s.inputs[-1] for s in steps]))
        ready = self._ready(steps, inputs[0])
        if self.rule.has_param:
            self._hold(
                "param_stochastic",
                [b and s.param_rounding == "stochastic" for b, s in zip(self.sixteen_bit, steps, strict=True)],
            )
            self.columns["param_key"][:] = [s.keys[-1] for s in steps]
        for columns in self.slots:
            columns.fill(steps)
        self._hold("skipped", [s.skipped.data_ptr() for s in steps])
        left = [i for one in ready for i in one.left]
        if left:
            kept = self.columns["rows"][left]
            self.columns["rows"][left] = 0  # C leaves a tensor without rows alone
        native.library().hu_step(self.first_row, len(steps), torch.get_num_threads())
        if left:
            self.columns["rows"][left] = kept
        del inputs  # keep them alive until here
        for one in ready:
            one.store(steps)
        return [steps[i] for i in left]

    def _inputs(self, name: str, given: list[Tensor]) -> Inputs:
        """Give every row the address of an input."""
        inputs = Inputs.of(given, self.lengths)
        self._hold(name, inputs.addresses)
        self._hold(f"{name}_kind", inputs.kinds)
        return inputs

    def _hold(self, name: str, values: list[Any]) -> None:
        if self.held.get(name) != values:
            self.columns[name][:] = self.held[name] = values

    def _ready(self, steps: list[Step], inputs: Inputs) -> list[Ready]:
        """Do everything before the last pass, and fill in the inputs of its programs."""
        now = chosen(self.programs, steps)
        if now != self.chosen:
            self.chosen, self.groups = now, Groups(now, self.bindings)
            for group in self.groups.all:
                for name, of in (("program", "number"), ("code", "address"), ("flags", "flags")):
                    self.columns[name][group.where] = getattr(group.last, of)
        ready, first = self.groups.ready(steps, inputs), 0
        for one in ready:
            lines = slice(first, first + len(one.uniforms))
            self.uniforms[lines, : one.uniforms.shape[1]] = one.uniforms
            self.columns["scalars"][one.where] = self.uniform_lines[lines]
            if one.vectors is not None:
                one.vectors.fill(self.columns, one.where)
            first = lines.stop
        return ready


def _slots(bindings: list[Binding]) -> tuple[Rows, list[_SlotColumns]]:
    """Return the ``hu_slot`` of the states of each binding, one line per binding."""
    most = max(len(b.plan.arrays) for b in bindings)
    rows = np.zeros((len(bindings), max(most, 1)), SLOT)
    for line, binding in zip(rows, bindings, strict=True):
        line[: len(binding.plan.arrays)] = binding.plan.slots
    return rows, [_SlotColumns(rows[:, k], k, bindings) for k in range(most)]


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
