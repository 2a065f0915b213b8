"""Updates that contain sums, split into several programs: the measuring passes over a tensor, and the update.

Such an update has the operations of a program (:mod:`halfulp.rules.program`) and those below. Its values have one of
four *extents*: one per element of the ``"tensor"``, one for each of its ``"rows"`` or ``"columns"``, or one
``"number"``.

================================ ========= ==========================================================================
operation                        extent    meaning
================================ ========= ==========================================================================
``vector`` [k]                   either    the k-th of ``Staged.vectors``: a state, decoded
``side`` [k]                     number    of rows, or of columns: :func:`halfulp.rules.base.sides`
``by_row``, ``by_column``        tensor    a vector, spread over the tensor (:func:`halfulp.rules.base.by_row`, ...)
``row_means``, ``column_means``  vector    :func:`halfulp.rules.base.row_means`, ...
``norm``, ``rms``                number    :func:`halfulp.rules.base.norm`, ...
``mean``                         number    of a vector: :func:`halfulp.rules.base.mean`
================================ ========= ==========================================================================

Values per element are computed by programs, pass after pass. There are few other values. :class:`Staged` computes them
between the passes in numpy, with the same bits on every backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfulp.numbers.scaling import rows_and_cols
from halfulp.rules.base import FROM_SUMS, Scalars, fold_columns, fold_rows, largest, total
from halfulp.rules.program import EVALUATE, Op, Program, Sum, cut, evaluate, scalar_values, spoilt, used

__all__ = ["Stage", "Staged", "staged", "work_out"]

SUMS = {"norm": "sum", "rms": "sum", "row_means": "rows", "column_means": "columns"}
"""The kind of sum to measure for each operation."""


@dataclass(frozen=True)
class Stage:
    """A program, and the values that are its numbers, rows and columns."""

    program: Program
    numbers: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def inputs(self, found: list[Any]) -> dict[str, list[Any]]:
        """Return these values."""
        places = {"number": self.numbers, "row": self.rows, "column": self.columns}
        return {name: [found[k] for k in of] for name, of in places.items()}


@dataclass(frozen=True)
class Staged:
    """An update as passes over a tensor. See the module.

    Parameters
    ----------
    states, numbers, vectors, scalars
        As in a :class:`~halfulp.rules.program.Program`. `vectors` are the states that are vectors, each with its
        extent.
    ops, extents
        All operations, and the extent of each.
    levels
        The number of measuring rounds after which each operation is known.
    rounds
        The measuring passes. If every sum is finite, the gradient and all new states of the tensor's shape are finite
        too.
    update
        The last pass.
    new_numbers, new_vectors
        The operations that give the new states.
    """

    states: tuple[str, ...]
    numbers: tuple[str, ...]
    vectors: tuple[tuple[str, str], ...]
    scalars: tuple[str, ...]
    ops: tuple[Op, ...]
    extents: tuple[str, ...]
    levels: tuple[int, ...]
    rounds: tuple[Stage, ...]
    update: Stage
    new_numbers: tuple[int, ...]
    new_vectors: tuple[int, ...]

    @property
    def programs(self) -> tuple[Program, ...]:
        """All of its programs."""
        return (*(stage.program for stage in self.rounds), self.update.program)

    @cached_property
    def _small(self) -> list[list[int]]:
        """The operations that are computed in numpy, by level."""
        small = [k for k, op in enumerate(self.ops) if self.extents[k] != "tensor" and op.name not in SUMS]
        return [[k for k in small if self.levels[k] == level] for level in range(len(self.rounds) + 1)]

    def begin(self, c: Scalars, numbers: list[float], vectors: list[Any], sides: tuple[int, int]) -> list[Any]:
        """Return the values known before any measurement, with one entry per operation (``None`` for unknown ones)."""
        found: list[Any] = [None] * len(self.ops)
        given = {"scalar": scalar_values(self.scalars, c), "number": numbers, "vector": vectors, "side": sides}
        for k, (name, _, of) in enumerate(self.ops):
            if name in given:
                found[k] = np.array(given[name][int(of or 0)], np.float32)
        self._settle(found, 0)
        return found

    def proceed(self, found: list[Any], level: int, sums: Mapping[str, Any], rows: int, cols: int) -> bool:
        """Add the values that depend on the sums of a round. Return whether all sums are finite."""
        for name, value in sums.items():
            k = int(name)
            value = np.asarray(value)
            if not np.isfinite(value).all():
                return False
            if self.ops[k].name in SUMS:
                wide = torch.from_numpy(value)
                found[k] = FROM_SUMS[self.ops[k].name](wide, rows, cols).numpy()
        self._settle(found, level + 1)
        return True

    def _settle(self, found: list[Any], level: int) -> None:
        with np.errstate(all="ignore"):
            for k in self._small[level]:
                name, args, of = self.ops[k]
                if name == "constant":
                    found[k] = np.float32(of)
                elif name == "mean":
                    found[k] = _mean(found[args[0]])
                elif name in EVALUATE:
                    found[k] = EVALUATE[name]([found[i] for i in args], of)


def _mean(x: Any) -> np.float32:
    """Compute :func:`halfulp.rules.base.mean` of an array."""
    return np.float32(fold_rows(x.astype(np.float64)[None])[0] / x.size)


def work_out(program: Program | Staged, arrays: Mapping[str, Any], c: Scalars) -> dict[str, Any]:
    """Run a program on arrays in numpy. Return ``param`` and states, or sums, by name.

    Parameters
    ----------
    program
        The program.
    arrays
        The arrays ``param`` and ``grad``, and the states.
    c
        The scalars of the rule.

    Raises
    ------
    ValueError
        If a sum within an update is not finite.
    """
    if isinstance(program, Program):
        got = _evaluated(program, arrays, c, number=[arrays[name] for name in program.numbers])
        if program.sums:
            return _summed(program, got, arrays["grad"].shape)
        return _updated(program, got) | {
            name: got[k] for name, k in zip(program.numbers, program.new_numbers, strict=True)
        }
    numbers, vectors = ([arrays[n] for n in names] for names in (program.numbers, dict(program.vectors)))
    rows, cols = rows_and_cols(arrays["grad"].shape)
    values = program.begin(c, numbers, vectors, (rows, cols))
    for level, stage in enumerate(program.rounds):
        got = _evaluated(stage.program, arrays, c, **stage.inputs(values))
        if not program.proceed(values, level, _summed(stage.program, got, arrays["grad"].shape), rows, cols):
            raise ValueError("a sum within the update is not finite")
    last = program.update.program
    got = _evaluated(last, arrays, c, **program.update.inputs(values))
    found = _updated(last, got)
    found |= {name: values[k] for name, k in zip(program.numbers, program.new_numbers, strict=True)}
    return found | {name: values[k] for (name, _), k in zip(program.vectors, program.new_vectors, strict=True)}


def _evaluated(program: Program, arrays: Mapping[str, Any], c: Scalars, **values: Any) -> list[Any]:
    state = [arrays[name] for name in program.states]
    return evaluate(program, {**arrays, "state": state, "scalar": program.scalar_values(c), **values})


def _updated(program: Program, values: list[Any]) -> dict[str, Any]:
    """Return the new parameter and the new states of the tensor's shape, from all values of a program."""
    param = {} if program.param is None else {"param": values[program.param]}
    return param | {name: values[k] for name, k in zip(program.states, program.new_states, strict=True)}


def _summed(program: Program, values: list[Any], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return the sums of a measuring program, from all its values."""
    rows, cols = rows_and_cols(shape)

    def tensor(k: int) -> Tensor:
        return torch.from_numpy(np.array(np.broadcast_to(values[k], shape), np.float32)).reshape(rows, cols)

    found = {}
    for name, kind, a, b in program.sums:
        if kind == "sum":
            found[name] = total(tensor(a), None if b is None else tensor(b))
        elif kind == "largest":
            found[name] = largest(tensor(a))
        else:
            found[name] = (fold_rows if kind == "rows" else fold_columns)(tensor(a).double())
    return found


def staged(
    ops: tuple[Op, ...], extents: tuple[str, ...], states: tuple[str, ...], numbers: tuple[str, ...],
    vectors: tuple[tuple[str, str], ...], scalars: tuple[str, ...], param: int | None, new_states: tuple[int, ...],
    new_numbers: tuple[int, ...], new_vectors: tuple[int, ...],
) -> Staged:  # fmt: skip
    """Split an update into passes. Each sum is measured as soon as its term can be computed."""
    outputs = [*([] if param is None else [param]), *new_states, *new_numbers, *new_vectors]
    ops, scalars, place = cut(ops, [*outputs, ops.index(Op("grad"))], scalars)
    extents = tuple(extents[old] for old in place)
    param = None if param is None else place[param]
    new_states, new_numbers, new_vectors = (
        tuple(place[k] for k in found) for found in (new_states, new_numbers, new_vectors)
    )
    levels: list[int] = []
    for name, args, _ in ops:
        levels.append(max((levels[i] for i in args), default=0) + (name in SUMS))
    sums: list[list[Sum]] = [[] for _ in range(max(levels))]
    for k, (name, args, _) in enumerate(ops):
        if name in SUMS:
            sums[levels[args[0]]].append(Sum(str(k), SUMS[name], args[0], args[0] if SUMS[name] == "sum" else None))
    measured = {s.a for found in sums for s in found}
    for k in (ops.index(Op("grad")), *new_states):
        if not measured & spoilt(ops, k):  # only to check that it is finite
            sums += [[]] * (levels[k] == len(sums))
            sums[levels[k]].append(Sum(str(k), "largest", k))
    return Staged(
        states, numbers, vectors, scalars, ops, extents, tuple(levels),
        tuple(_stage(ops, extents, states, scalars, sums=tuple(found)) for found in sums),
        _stage(ops, extents, states, scalars, param, new_states), new_numbers, new_vectors,
    )  # fmt: skip


def _stage(
    ops: tuple[Op, ...], extents: tuple[str, ...], states: tuple[str, ...], scalars: tuple[str, ...],
    param: int | None = None, new_states: tuple[int, ...] = (), sums: tuple[Sum, ...] = (),
) -> Stage:  # fmt: skip
    """Return the pass that gives some outputs. Its inputs are numbered like the values that they stand for."""

    def leaf(k: int) -> Op | None:
        if ops[k].name in ("by_row", "by_column"):
            return Op(ops[k].name.removeprefix("by_"), (), ops[k].args[0])
        return Op("number", (), k) if extents[k] == "number" and ops[k].name not in ("scalar", "constant") else None

    outputs = [*([] if param is None else [param]), *new_states]
    outputs += [i for s in sums for i in (s.a, s.b) if i is not None]
    found, of_scalars, place = cut(ops, outputs, scalars, leaf)
    found, read = used(found, ("number", "row", "column", *(("state",) if sums else ())))
    program = Program(
        tuple(states[k] for k in read["state"]) if sums else states, tuple(map(str, read["number"])), of_scalars, found,
        None if param is None else place[param], tuple(place[k] for k in new_states), (),
        tuple(s.at(place) for s in sums), tuple(map(str, read["row"])), tuple(map(str, read["column"])),
    )  # fmt: skip
    return Stage(program, read["number"], read["row"], read["column"])
