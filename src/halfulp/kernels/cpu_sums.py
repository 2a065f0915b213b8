"""Sums of measuring programs over tensors in C, in the fixed orders of :mod:`halfulp.rules.base`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from halfulp.kernels import native
from halfulp.kernels.binding import Step, plain
from halfulp.kernels.compiled import Compiled, programs_of
from halfulp.kernels.constants import CAP, MAX_UNIFORMS, TERMS, TREE, UNIT
from halfulp.kernels.descriptors import DTYPES, WORK, Rows, describe_slots, fill_master
from halfulp.numbers.log import log_once
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.scaling import rows_and_cols
from halfulp.rules.base import Rule
from halfulp.rules.tracing import ProgramError

__all__ = ["Vectors", "measure", "sums_of"]


def measure(rule: Rule, steps: list[Step]) -> list[dict[str, float] | None]:
    """Return what a rule measures of each binding, or ``None`` where C cannot."""
    chosen = [_compiled(rule, one) for one in steps]
    able = [
        (one, compiled, compiled.uniforms(one.scalars, compiled.numbers(one.binding.states))[0], Vectors())
        for one, compiled in zip(steps, chosen, strict=True)
        if compiled is not None
    ]
    found = iter(sums_of(able) if able else [])
    return [None if compiled is None else next(found) for compiled in chosen]


def _compiled(rule: Rule, step: Step) -> Compiled | None:
    """Return the measuring program of a step, if the rule's `measure` is a program and C can use the binding."""
    binding = step.binding
    if native.why_not() or not all(x.is_cpu and plain(x) is x for x in (*binding.tensors, *step.inputs)):
        return None
    try:
        programs = programs_of(rule, True, tuple(s.slot for s in binding.states), len(binding.shape))
        compiled: Compiled = programs.choose(step.scalars)
    except ProgramError as error:
        log_once(f"sums by 'cpu' not used: {error}")
        return None
    stored = {s.slot.name: s for s in binding.states}
    same = all(stored[name].shape == binding.shape for name in compiled.program.states)
    return compiled if same else None


class Vectors:
    """Vectors along the rows and columns of a tensor, in the form that C reads."""

    def __init__(self, rows: Sequence[Any] = (), columns: Sequence[Any] = ()) -> None:
        self.counts = len(rows), len(columns)
        self.rows = np.array(rows, np.float32)
        self.columns = np.zeros((0, 0), np.float32)
        if columns:  # C reads beyond the end of the last piece
            self.columns = np.zeros((len(columns), len(columns[0]) + UNIT), np.float32)
            self.columns[:, :-UNIT] = columns

    def fill(self, row: Any) -> None:
        """Point a ``hu_work`` at the vectors, which must outlive it."""
        row["row_vectors"], row["column_vectors"] = self.counts
        row["row_values"], row["column_values"] = self.rows.ctypes.data, self.columns.ctypes.data


def sums_of(able: list[tuple[Step, Compiled, list[float], Vectors]]) -> list[dict[str, Any]]:
    """Return the sums of a program over each step's tensor, with uniform values and vectors, in one call of C.

    They are floats, or float64 arrays for ``"rows"`` and ``"columns"``.
    """
    rows = np.zeros(len(able), WORK)
    made = [_Sums(rows, line, *one) for line, one in enumerate(able)]
    native.library().hu_measure(rows.ctypes.data, len(able), torch.get_num_threads())
    return [one.found() for one in made]


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


class _Sums:
    """One row of the table passed to C, and the memory of its sums."""

    def __init__(self, table: Rows, line: int, step: Step, compiled: Compiled, uniforms: list[float], vectors: Vectors):
        binding, self.program = step.binding, compiled.program
        states = [s for name in self.program.states for s in binding.states if s.slot.name == name]
        row, slots = _described(compiled, tuple(s.quantizer for s in states), binding.shape)
        table[line], row, self.slots = row, table[line], slots.copy()
        for slot, state in zip(self.slots, states, strict=True):
            slot["codes"] = state.codes.data_ptr()
            slot["scale"] = 0 if state.scale is None else state.scale.data_ptr()
        self.uniforms, self.vectors = np.zeros(MAX_UNIFORMS, np.float32), vectors
        self.uniforms[: len(uniforms)] = uniforms
        self.rows, self.cols = rows_and_cols(binding.shape)
        terms, stretches = self.program.terms, self.rows * -(-self.cols // CAP)
        self.sums = np.zeros((len(terms), max(stretches, 1)))
        if binding.param is not None:
            row["param"], row["param_kind"] = binding.param.data_ptr(), DTYPES[binding.param.dtype]
            fill_master(row, binding)
        row["grad"], row["grad_kind"] = step.inputs[0].data_ptr(), DTYPES[step.inputs[0].dtype]
        row["maximize"], row["scalars"] = step.maximize, self.uniforms.ctypes.data
        row["slot"], row["sums"] = self.slots.ctypes.data, self.sums.ctypes.data
        vectors.fill(row)
        self.by_column = [term for term in terms if term[2] == "columns"]
        self.columns = np.empty((len(self.by_column), max(-(-self.rows >> TREE), 1), self.cols))
        row["column_sums"] = self.columns.ctypes.data

    def found(self) -> dict[str, Any]:
        """Return the sums by name."""
        found: dict[str, Any] = {}
        for one in self.program.sums:
            term = self.program.term_of(one)
            if one.kind == "columns":
                found[one.name] = self.columns[self.by_column.index(term), 0] + 0.0
            else:
                sums = self.sums[self.program.terms.index(term)]
                found[one.name] = sums[: self.rows] + 0.0 if one.kind == "rows" else float(sums[0]) + 0.0
        return found
