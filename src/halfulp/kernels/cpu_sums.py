"""Sums of measuring programs over tensors in C, in the fixed orders of :mod:`halfulp.rules.base`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halfulp.kernels import native
from halfulp.kernels.binding import Binding, Step, plain
from halfulp.kernels.compiled import Compiled, Programs, chosen, programs_of
from halfulp.kernels.constants import CAP, MAX_UNIFORMS, TERMS, TREE, UNIT
from halfulp.kernels.cpu_small import SmallState
from halfulp.kernels.descriptors import DTYPES, SLOT, WORK, Rows, describe_slots, fill_master
from halfulp.numbers.log import log_once
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.scaling import rows_and_cols
from halfulp.rules.base import Rule
from halfulp.rules.program import Floats
from halfulp.rules.tracing import ProgramError

__all__ = ["Inputs", "Round", "Vectors", "is_of", "lines_of", "measure"]


@dataclass
class Inputs:
    """Inputs of steps as C reads them. It must live until C has read them."""

    tensors: list[Tensor]
    addresses: list[int]
    kinds: list[int]

    @staticmethod
    def of(given: Sequence[Tensor], lengths: list[int]) -> Inputs:
        """Return the inputs of tensors that have these numbers of elements."""
        tensors = [x if x.is_contiguous() and not x.is_neg() else plain(x) for x in given]
        if [*map(Tensor.numel, tensors)] != lengths or not all(x.is_cpu for x in tensors):
            wrong = next(x for x, n in zip(tensors, lengths, strict=True) if x.numel() != n or not x.is_cpu)
            raise RuntimeError(
                f"an input of a step is of shape {tuple(wrong.shape)} on {wrong.device.type}: it must have as many "
                "elements as the state, and be on the CPU as it is"
            )
        return Inputs(tensors, [*map(Tensor.data_ptr, tensors)], [DTYPES[x.dtype] for x in tensors])


def is_of(bindings: Sequence[Binding], others: Sequence[Binding]) -> bool:
    """Whether two lists hold exactly the same bindings."""
    return len(bindings) == len(others) and all(map(is_, bindings, others))


# ---------------------------------------------------------------- a rule's `measure`


def measure(rule: Rule, steps: list[Step]) -> list[dict[str, float] | None]:
    """Return what a rule measures of each binding, or ``None`` where C cannot."""
    if native.why_not():
        return [None] * len(steps)
    bindings = [step.binding for step in steps]
    measured = bindings[0].measured
    if measured is None or measured.rule is not rule or not is_of(measured.bindings, bindings):
        measured = bindings[0].measured = _Measured(rule, bindings)
    found: list[dict[str, float] | None] = measured.sums(steps)
    return found


class _Measured:
    """Bindings whose sums are measured in one call."""

    def __init__(self, rule: Rule, bindings: list[Binding]) -> None:
        self.rule, self.bindings = rule, bindings
        self.programs = [_programs(rule, binding) for binding in bindings]
        self.chosen: list[Compiled | None] = []
        self.groups: list[tuple[list[int], Compiled, list[SmallState]]] = []

    def sums(self, steps: list[Step]) -> list[dict[str, float] | None]:
        """Return the sums of each step, or ``None`` where C cannot measure them."""
        try:
            now = chosen(self.programs, steps)
        except ProgramError as error:
            log_once(f"sums by 'cpu' not used: {error}")
            now = [None] * len(steps)
        if now != self.chosen:
            self._group(now)
        found: list[dict[str, float] | None] = [None] * len(steps)
        inputs = []
        for (which, compiled, numbers), part in zip(self.groups, self.round.parts, strict=True):
            mine = [steps[i] for i in which]
            inputs.append(Inputs.of([step.inputs[0] for step in mine], [part.rows * part.cols] * len(mine)))
            uniforms, _ = compiled.uniforms([step.scalars for step in mine], [x.read()[:, 0] for x in numbers])
            part.fill(inputs[-1].addresses, inputs[-1].kinds, [step.maximize for step in mine], uniforms)
        for (which, _, _), sums in zip(self.groups, self.round.sums(), strict=True):
            columns = [values.tolist() for values in sums.values()]
            for i, *values in zip(which, *columns, strict=True):
                found[i] = dict(zip(sums, values, strict=True))
        return found

    def _group(self, now: list[Compiled | None]) -> None:
        """Arrange the bindings by program and shape."""
        groups: dict[tuple[Compiled, torch.Size], list[int]] = {}
        for i, (compiled, binding) in enumerate(zip(now, self.bindings, strict=True)):
            if compiled is not None:
                groups.setdefault((compiled, binding.shape), []).append(i)
        self.chosen, self.groups = now, []
        for (compiled, _), which in groups.items():
            of = [self.bindings[i] for i in which]
            self.groups.append((which, compiled, [SmallState(of, name) for name in compiled.program.numbers]))
        self.round = Round([(compiled, [self.bindings[i] for i in which]) for which, compiled, _ in self.groups])


def _programs(rule: Rule, binding: Binding) -> Programs | None:
    """Return the programs of the rule's `measure`, if C can use the binding."""
    if not all(x.is_cpu and plain(x) is x for x in binding.tensors):
        return None
    try:
        programs = programs_of(rule, True, tuple(s.slot for s in binding.states), len(binding.shape))
    except ProgramError as error:
        log_once(f"sums by 'cpu' not used: {error}")
        return None
    states = {name for program in programs.branches.programs for name in program.states}
    return programs if all(s.shape == binding.shape for s in binding.states if s.slot.name in states) else None


# ---------------------------------------------------------------- measuring programs


class Vectors:
    """Vectors along the rows and columns of tensors of one shape, in the form that C reads."""

    def __init__(self, rows: Sequence[Floats], columns: Sequence[Floats]) -> None:
        self.counts = len(rows), len(columns)
        self.rows = np.stack(rows, 1) if rows else np.zeros((0, 0), np.float32)
        self.columns = np.zeros((0, 0), np.float32)
        if columns:  # C reads beyond the end of the last piece
            tensors, length = columns[0].shape
            self.columns = np.zeros((tensors, len(columns), length + UNIT), np.float32)
            self.columns[:, :, :-UNIT] = np.stack(columns, 1)

    def fill(self, columns: Mapping[str, npt.NDArray[Any]], which: Any = slice(None)) -> None:
        """Point some lines of ``hu_work`` at the vectors, which must outlive them."""
        columns["row_vectors"][which], columns["column_vectors"][which] = self.counts
        columns["row_values"][which], columns["column_values"][which] = lines_of(self.rows), lines_of(self.columns)


def lines_of(x: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Return the address of each line of an array, or 0 if it is empty."""
    if not x.size:
        return np.zeros(1, np.uint64)
    return x.ctypes.data + np.arange(len(x), dtype=np.uint64) * x.strides[0]


def _flags(a: int, b: int | None, kind: str) -> int:
    """Return the flags of a term."""
    holds = {
        "largest": kind == "largest", "by_row": kind in ("rows", "columns"), "by_column": kind == "columns",
        "square": b == a, "product": b not in (a, None),
    }  # fmt: skip
    return sum(TERMS[name] for name, yes in holds.items() if yes)


@lru_cache(maxsize=4096)
def _described(compiled: Compiled, quantizers: tuple[Quantizer, ...], shape: torch.Size) -> tuple[np.void, Rows]:
    """Return ``hu_work`` and ``hu_slot`` of a measuring program, to be copied."""
    row, terms = np.zeros(1, WORK)[0], compiled.program.terms
    row["rows"], row["cols"] = rows_and_cols(shape)
    row["slots"], row["terms"] = len(quantizers), len(terms)
    row["program"], row["code"], row["flags"] = compiled.number, compiled.address, compiled.flags
    row["term"][: len(terms)] = [_flags(*term) for term in terms]
    return row, describe_slots(quantizers, shape)


class Part:
    """Tensors of one shape over which a program measures sums: some rows of the table passed to C."""

    def __init__(self, rows: Rows, compiled: Compiled, bindings: Sequence[Binding]) -> None:
        self.program, self.tensors = compiled.program, len(rows)
        names = self.program.states
        self.slots = np.zeros((len(rows), max(len(names), 1)), SLOT)
        for line, (row, binding) in enumerate(zip(rows, bindings, strict=True)):
            states = [s for name in names for s in binding.states if s.slot.name == name]
            described, slots = _described(compiled, tuple(s.quantizer for s in states), binding.shape)
            rows[line] = described
            self.slots[line, : len(states)] = slots
            for slot, state in zip(self.slots[line], states, strict=False):
                slot["codes"] = state.codes.data_ptr()
                slot["scale"] = 0 if state.scale is None else state.scale.data_ptr()
            if binding.param is not None:
                row["param"], row["param_kind"] = binding.param.data_ptr(), DTYPES[binding.param.dtype]
                fill_master(row, binding)
        self.uniforms = np.zeros((len(rows), MAX_UNIFORMS), np.float32)
        self.columns = {name: rows[name] for name in WORK.names or ()}
        self.columns["slot"][:], self.columns["scalars"][:] = lines_of(self.slots), lines_of(self.uniforms)
        self.rows, self.cols = rows_and_cols(bindings[0].shape)
        self.by_column = [term for term in self.program.terms if term[2] == "columns"]

    def fill(
        self, grads: Any, kinds: Any, maximize: Any, uniforms: Floats, rows: Sequence[Floats] = (),
        columns: Sequence[Floats] = (),
    ) -> None:  # fmt: skip
        """Write what changes from step to step."""
        self.columns["grad"][:], self.columns["grad_kind"][:], self.columns["maximize"][:] = grads, kinds, maximize
        self.uniforms[:, : uniforms.shape[1]] = uniforms
        self.vectors = Vectors(rows, columns)
        self.vectors.fill(self.columns)
        stretches, groups = self.rows * -(-self.cols // CAP), -(-self.rows >> TREE)
        self.sums = np.zeros((self.tensors, len(self.program.terms), max(stretches, 1)))
        self.column_sums = np.empty((self.tensors, len(self.by_column), max(groups, 1), self.cols))
        self.columns["sums"][:], self.columns["column_sums"][:] = lines_of(self.sums), lines_of(self.column_sums)

    def found(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the sums by name, a line for each tensor with a number for each row or column. Free their memory."""
        found = {}
        for one in self.program.sums:
            term = self.program.term_of(one)
            if one.kind == "columns":
                found[one.name] = self.column_sums[:, self.by_column.index(term), 0] + 0.0
            else:
                sums = self.sums[:, self.program.terms.index(term)]
                found[one.name] = (sums[:, : self.rows] if one.kind == "rows" else sums[:, 0]) + 0.0
        del self.vectors, self.sums, self.column_sums  # up to an eighth of a byte for each element and sum
        return found


class Round:
    """One call of C: measuring programs, each over tensors of one shape."""

    def __init__(self, parts: Sequence[tuple[Compiled, Sequence[Binding]]]) -> None:
        self.table = np.zeros(sum(len(bindings) for _, bindings in parts), WORK)
        self.parts, first = [], 0
        for compiled, bindings in parts:
            self.parts.append(Part(self.table[first : first + len(bindings)], compiled, bindings))
            first += len(bindings)

    def sums(self) -> list[dict[str, npt.NDArray[np.float64]]]:
        """Return the sums of each part."""
        native.library().hu_measure(self.table.ctypes.data, len(self.table), torch.get_num_threads())
        return [part.found() for part in self.parts]
