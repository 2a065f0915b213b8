"""Sums of measuring programs over tensors in C, in the fixed orders of :mod:`halfulp.rules.base`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from halfulp.kernels import native
from halfulp.kernels.binding import Step, plain
from halfulp.kernels.compiled import Compiled, programs_of
from halfulp.kernels.constants import CAP, MAX_UNIFORMS, TREE, UNIT
from halfulp.kernels.descriptors import DTYPES, WORK, describe_slots, fill_master
from halfulp.numbers.log import log_once
from halfulp.numbers.scaling import rows_and_cols
from halfulp.rules.base import Rule, fold_columns, fold_rows
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
            self.columns = np.pad(np.array(columns, np.float32), ((0, 0), (0, UNIT)))

    def fill(self, row: Any) -> None:
        """Point a ``hu_work`` at the vectors, which must outlive it."""
        row["row_vectors"], row["column_vectors"] = self.counts
        row["row_values"], row["column_values"] = self.rows.ctypes.data, self.columns.ctypes.data


def sums_of(able: list[tuple[Step, Compiled, list[float], Vectors]]) -> list[dict[str, Any]]:
    """Return the sums of a program over each step's tensor, with uniform values and vectors, in one call of C.

    They are floats, or float64 tensors for ``"rows"`` and ``"columns"``.
    """
    rows = np.zeros(len(able), WORK)
    made = [_Sums(row, *one) for row, one in zip(rows, able, strict=True)]
    native.library().hu_measure(rows.ctypes.data, len(able), torch.get_num_threads())
    return [one.found() for one in made]


class _Sums:
    """One row of the table passed to C, and the memory of its sums."""

    def __init__(self, row: np.void, step: Step, compiled: Compiled, uniforms: list[float], vectors: Vectors) -> None:
        binding, self.program = step.binding, compiled.program
        states = [s for name in self.program.states for s in binding.states if s.slot.name == name]
        self.slots = describe_slots(tuple(s.quantizer for s in states), binding.shape)
        for slot, state in zip(self.slots, states, strict=True):
            slot["codes"] = state.codes.data_ptr()
            slot["scale"] = 0 if state.scale is None else state.scale.data_ptr()
        self.uniforms, self.vectors = np.zeros(MAX_UNIFORMS, np.float32), vectors
        self.uniforms[: len(uniforms)] = uniforms
        self.rows, self.cols = row["rows"], row["cols"] = rows_and_cols(binding.shape)
        terms, stretches = self.program.terms, self.rows * -(-self.cols // CAP)
        self.sums = np.zeros((len(terms), max(stretches, 1)))
        if binding.param is not None:
            row["param"], row["param_kind"] = binding.param.data_ptr(), DTYPES[binding.param.dtype]
            fill_master(row, binding)
        row["grad"], row["grad_kind"] = step.inputs[0].data_ptr(), DTYPES[step.inputs[0].dtype]
        row["maximize"], row["scalars"], row["slots"] = step.maximize, self.uniforms.ctypes.data, len(states)
        row["program"], row["code"], row["flags"] = compiled.number, compiled.address, compiled.flags
        row["slot"], row["sums"], row["terms"] = self.slots.ctypes.data, self.sums.ctypes.data, len(terms)
        row["largest"], row["vectors"] = (
            sum(1 << k for k, term in enumerate(terms) if term[2] == kind) for kind in ("largest", "vectors")
        )
        vectors.fill(row)
        self.columns: npt.NDArray[np.float64] | None = None
        if row["vectors"]:
            self.columns = np.empty((len(terms), -(-self.rows >> TREE), self.cols))
            row["column_sums"] = self.columns.ctypes.data

    def found(self) -> dict[str, Any]:
        """Return the sums by name."""
        found: dict[str, Any] = {}
        for one in self.program.sums:
            k = self.program.terms.index(self.program.term_of(one))
            if one.kind == "rows":
                found[one.name] = fold_rows(torch.from_numpy(self.sums[k].reshape(self.rows, -1)))
            elif one.kind == "columns" and self.columns is not None:
                found[one.name] = fold_columns(torch.from_numpy(self.columns[k]))
            else:
                found[one.name] = float(self.sums[k, 0]) + 0.0
        return found
