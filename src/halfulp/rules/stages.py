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

Values per element are computed by programs, pass after pass. There are few other values. A :class:`Course` computes
them between the passes: in numpy here, and on a GPU in torch (:mod:`halfulp.kernels.triton_stages`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from halfulp.numbers.scaling import rows_and_cols
from halfulp.rules.base import DIVISORS, Scalars, fold_columns, fold_rows, from_sums, largest, total
from halfulp.rules.program import EVALUATE, TYPES, Floats, Op, Program, Sum, cut, evaluate, scalar_table, spoilt, used

__all__ = ["SUMS", "Course", "CourseInNumpy", "Stage", "Staged", "as_staged", "staged", "work_out"]

SUMS = {"norm": "sum", "rms": "sum", "row_means": "rows", "column_means": "columns"}
"""The kind of sum to measure for each operation."""
GIVEN = ("scalar", "number", "vector", "side")
"""The operations whose values are known before any pass."""


@dataclass(frozen=True)
class Stage:
    """A program, and the values that are its numbers, rows and columns."""

    program: Program
    numbers: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """These values by extent."""
        return {"number": self.numbers, "rows": self.rows, "columns": self.columns}


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
    param, new_states, new_numbers, new_vectors
        The operations that give the new parameter and states.
    levels
        The number of measuring rounds after which each operation is known.
    rounds
        The measuring passes. If every sum is finite, the gradient and all new states of the tensor's shape are finite
        too.
    update
        The last pass.
    """

    states: tuple[str, ...]
    numbers: tuple[str, ...]
    vectors: tuple[tuple[str, str], ...]
    scalars: tuple[str, ...]
    ops: tuple[Op, ...]
    extents: tuple[str, ...]
    param: int | None
    new_states: tuple[int, ...]
    new_numbers: tuple[int, ...]
    new_vectors: tuple[int, ...]
    levels: tuple[int, ...]
    rounds: tuple[Stage, ...]
    update: Stage

    @property
    def programs(self) -> tuple[Program, ...]:
        """All of its programs."""
        return (*(stage.program for stage in self.rounds), self.update.program)

    @cached_property
    def small(self) -> list[list[int]]:
        """The operations that are computed between passes, by level."""
        small = [
            k for k, (name, _, _) in enumerate(self.ops)
            if self.extents[k] != "tensor" and name not in SUMS and name not in GIVEN
        ]  # fmt: skip
        return [[k for k in small if self.levels[k] == level] for level in range(len(self.rounds) + 1)]

    @cached_property
    def decided(self) -> Staged:
        """The same update, which also measures the largest gradient and the largest value of each new state.

        These decide whether the tensor is updated, where the sums alone do not locate a non-finite value.
        """
        return staged(
            self.ops, self.extents, self.states, self.numbers, self.vectors, self.scalars, self.param,
            self.new_states, self.new_numbers, self.new_vectors, "all",
        )  # fmt: skip


class Course:
    """The progress of an update through its passes: the values that are not elements of the tensor.

    Parameters
    ----------
    staged
        The update.
    given
        The values of the operations ``scalar``, ``number``, ``vector`` and ``side``.

    Attributes
    ----------
    found
        One value for each operation, ``None`` where it is unknown.
    """

    def __init__(self, staged: Staged, given: Mapping[str, Sequence[Any]]) -> None:
        self.staged = staged
        self.found: list[Any] = [given[op.name][int(op.of or 0)] if op.name in GIVEN else None for op in staged.ops]
        self._settle(0)

    def proceed(self, level: int, sums: Mapping[str, Any]) -> None:
        """Add the values that depend on the float64 sums of a round."""
        for k, value in ((int(name), value) for name, value in sums.items()):
            name = self.staged.ops[k].name
            if name in SUMS:
                self.found[k] = self.divided(name, value, self.staged.extents[k])
        self._settle(level + 1)

    def taken(self, stage: Stage) -> dict[str, list[Any]]:
        """Return the inputs of a pass by extent."""
        return {extent: [self.fitted(self.found[k], extent) for k in of] for extent, of in stage.inputs.items()}

    @property
    def new_small(self) -> list[tuple[Any, str]]:
        """The new numbers, then the new vectors, each with its extent."""
        extents = ["number"] * len(self.staged.new_numbers) + [extent for _, extent in self.staged.vectors]
        places = (*self.staged.new_numbers, *self.staged.new_vectors)
        return [(self.fitted(self.found[k], extent), extent) for k, extent in zip(places, extents, strict=True)]

    def _settle(self, level: int) -> None:
        with np.errstate(all="ignore"):
            for k in self.staged.small[level]:
                self.found[k] = self.computed(k)

    def divided(self, name: str, sums: Any, extent: str) -> Any:
        """Return the result of one of :data:`SUMS` from float64 sums."""
        raise NotImplementedError

    def computed(self, k: int) -> Any:
        """Return the value of an operation on known values."""
        raise NotImplementedError

    def fitted(self, value: Any, extent: str) -> Any:
        """Return a value with this extent, which may have been that of a number, or one value for all tensors."""
        raise NotImplementedError


class CourseInNumpy(Course):
    """The progress of tensors of one shape. See :class:`Course`.

    Values are matrices: a line for each tensor or one for all, and a column for each row or column of it, or one.

    Parameters
    ----------
    staged
        The update.
    scalars
        The scalars of each tensor's step.
    numbers, vectors
        The states that are not of the tensors' shape, each as a matrix.
    shape
        The shape of the tensors.
    """

    def __init__(
        self, staged: Staged, scalars: Sequence[Scalars], numbers: Sequence[Floats], vectors: Sequence[Floats],
        shape: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.tensors, (rows, cols) = len(scalars), rows_and_cols(shape)
        self.lengths = {"number": 1, "rows": rows, "columns": cols}
        given: dict[str, Sequence[Any]] = {
            "scalar": list(scalar_table(staged.scalars, scalars)[:, :, None]), "number": numbers, "vector": vectors,
            "side": [np.full((1, 1), side, np.float32) for side in (rows, cols)],
        }  # fmt: skip
        super().__init__(staged, given)

    def divided(self, name: str, sums: Any, extent: str) -> Any:
        """See :class:`Course`."""
        divisor = DIVISORS[name](self.lengths["rows"], self.lengths["columns"])
        wide = torch.from_numpy(sums.reshape(self.tensors, -1))
        return from_sums(name, wide, wide.new_full((), divisor)).numpy()

    def computed(self, k: int) -> Any:
        """See :class:`Course`."""
        name, args, of = self.staged.ops[k]
        if name == "mean":
            vectors = torch.from_numpy(
                self.fitted(self.found[args[0]], self.staged.extents[args[0]]).astype(np.float64)
            )
            return from_sums(name, fold_rows(vectors), vectors.new_full((), vectors.shape[1])).unsqueeze(1).numpy()
        return EVALUATE[name]([self.found[i] for i in args], of)

    def fitted(self, value: Any, extent: str) -> Any:
        """See :class:`Course`."""
        return np.broadcast_to(value, (self.tensors, self.lengths[extent]))


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
    numbers, vectors = ([arrays[n].reshape(1, -1) for n in of] for of in (program.numbers, dict(program.vectors)))
    course = CourseInNumpy(program, [c], numbers, vectors, arrays["grad"].shape)
    for level, stage in enumerate(program.rounds):
        sums = _summed(stage.program, _passed(course, stage, arrays, c), arrays["grad"].shape)
        if not all(x.isfinite().all() for x in sums.values()):
            raise ValueError("a sum within the update is not finite")
        course.proceed(level, {name: value.numpy() for name, value in sums.items()})
    found = _updated(program.update.program, _passed(course, program.update, arrays, c))
    small = zip((*program.numbers, *dict(program.vectors)), course.new_small, strict=True)
    return found | {name: new.reshape(arrays[name].shape) for name, (new, _) in small}


def _passed(course: CourseInNumpy, stage: Stage, arrays: Mapping[str, Any], c: Scalars) -> list[Any]:
    """Return all values of a pass over one tensor."""
    taken = {extent: [x[0] for x in of] for extent, of in course.taken(stage).items()}
    return _evaluated(
        stage.program, arrays, c, number=[x[0] for x in taken["number"]], row=taken["rows"], column=taken["columns"]
    )


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
    new_numbers: tuple[int, ...], new_vectors: tuple[int, ...], checks: Literal["needed", "all", "none"] = "needed",
) -> Staged:  # fmt: skip
    """Split an update into passes. Each sum is measured as soon as its term can be computed.

    `checks` says for which values (the gradient and new states) it is checked that they are finite: those that would
    not spoil a sum, all, or none.
    """
    checked = () if checks == "none" else (ops.index(Op("grad")), *new_states)
    outputs = [*([] if param is None else [param]), *new_states, *new_numbers, *new_vectors]
    ops, scalars, place = cut(ops, [*outputs, *checked], scalars)
    extents = tuple(extents[old] for old in place)
    param = None if param is None else place[param]
    checked, new_states, new_numbers, new_vectors = (
        tuple(place[k] for k in found) for found in (checked, new_states, new_numbers, new_vectors)
    )
    levels: list[int] = []
    for name, args, _ in ops:
        levels.append(max((levels[i] for i in args), default=0) + (name in SUMS))
    sums: list[list[Sum]] = [[] for _ in range(max(levels, default=0))]
    for k, (name, args, _) in enumerate(ops):
        if name in SUMS:
            sums[levels[args[0]]].append(Sum(str(k), SUMS[name], args[0], args[0] if SUMS[name] == "sum" else None))
    measured = {s.a for found in sums for s in found}
    for k in checked:
        if checks == "all" or not measured & spoilt(ops, k):  # only to check that it is finite
            sums += [[]] * (levels[k] == len(sums))
            sums[levels[k]].append(Sum(str(k), "largest", k))
    return Staged(
        states, numbers, vectors, scalars, ops, extents, param, new_states, new_numbers, new_vectors, tuple(levels),
        tuple(_stage(ops, extents, states, scalars, sums=tuple(found)) for found in sums),
        _stage(ops, extents, states, scalars, param, new_states),
    )  # fmt: skip


@lru_cache(maxsize=1024)
def as_staged(program: Program) -> Staged:
    """Return an elementwise update that reads numbers as a single pass, whose numbers are computed before it."""
    extents = tuple("number" if uniform else "tensor" for uniform in program.uniform)
    return staged(
        program.ops, extents, program.states, program.numbers, (), program.scalars, program.param, program.new_states,
        program.new_numbers, (), "none",
    )  # fmt: skip


def _stage(
    ops: tuple[Op, ...], extents: tuple[str, ...], states: tuple[str, ...], scalars: tuple[str, ...],
    param: int | None = None, new_states: tuple[int, ...] = (), sums: tuple[Sum, ...] = (),
) -> Stage:  # fmt: skip
    """Return the pass that gives some outputs. Its inputs are numbered like the values that they stand for."""

    def leaf(k: int) -> Op | None:
        name = ops[k].name
        if name in ("by_row", "by_column"):
            return Op(name.removeprefix("by_"), (), ops[k].args[0])
        number = extents[k] == "number" and TYPES[name] == "float" and name not in ("scalar", "constant")
        return Op("number", (), k) if number else None

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
