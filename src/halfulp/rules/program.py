"""Programs: a rule as a straight-line list of operations, from which code is generated.

:func:`halfulp.rules.tracing.trace` runs a rule's ``update`` (or ``measure``) on symbols instead of tensors. The result
is :class:`Branches`, with one :class:`Program` for each combination of outcomes of the rule's conditions on its scalars
(``c["l2"] != 0.0``). A rule remains ordinary torch code. If it does something that a program cannot express,
:class:`~halfulp.rules.tracing.ProgramError` names the operation, the file and the line.

A program is a list of operations, each of which defines one value. A value's number is its position in the list. Values
have one of three types: ``float`` (fp32), ``mask`` and ``int`` (int32). Every operation rounds separately, to nearest
even, and keeps subnormals. A value is *uniform* if it depends only on scalars, numbers and constants. It is then the
same for all elements of a tensor.

========================= ============ ===========================================================================
operation                 result       meaning
========================= ============ ===========================================================================
``param``, ``grad``       float        the parameter and its gradient, element by element
``state`` [k]             float        the k-th of ``Program.states``, decoded
``number`` [k]            float        the k-th of ``Program.numbers``: a state of one element; uniform
``row``, ``column`` [k]   float        the k-th of ``Program.rows`` or ``columns``: a value for each row, or column
``scalar`` [k]            float        the k-th of ``Program.scalars``, rounded to fp32; uniform
``constant`` [x]          float        x, which fp32 has exactly; uniform
``add sub mul div``       float        ``a + b``, ...
``neg abs sqrt``          float        sign bit flipped; sign bit cleared; correctly rounded root
``sign``                  float        ``(0 < a) - (a < 0)``: zero for zeros of both signs and NaN
``max min``               float        ``a if a > b else b``, ``a if a < b else b``: b, if either is a NaN or both zero
``lt le eq ne``           mask         IEEE comparison: with a NaN false, but ``ne`` true
``and or not``            mask         of masks
``select``                float        ``b if a else c``, a mask first
``bits``                  int          the pattern of a float
``from_bits``             float        the float of a pattern
``rounded``               int          nearest integer, ties to even; of numbers below 2**31 (else any int)
``to_float``              float        of an int, rounded to nearest even
``add_int`` [n]           int          ``a + n``, modulo 2**32
``sub_int``               int          ``a - b``, modulo 2**32
``shift_left`` [n]        int          ``a << n``
``shift_right`` [n]       int          ``a >> n``, the sign bit repeated
========================= ============ ===========================================================================

Outputs are numbers of values: ``param`` (``None`` if the rule does not change it), ``new_states`` and ``new_numbers``
in the order of ``states`` and ``numbers``, and ``sums``. No two operations of a program are the same, and an output
depends on each of them. A rule that needs sums within its update is several programs (:mod:`halfulp.rules.stages`).
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from halfulp.numbers.single import all_of_fp32
from halfulp.rules import base
from halfulp.rules.base import Scalars
from halfulp.rules.slots import Shape, StateSlot

__all__ = [
    "EVALUATE", "EVALUATE_TORCH", "TYPES", "Branches", "Floats", "Op", "Program", "Sum", "cut", "evaluate", "extent_of",
    "is_number", "scalar_sets", "scalar_table", "scalar_values", "spoilt", "used",
]  # fmt: skip

Floats = npt.NDArray[np.float32]
FLOATS = (
    "param", "grad", "state", "number", "row", "column", "scalar", "constant", "add", "sub", "mul", "div", "neg", "abs",
    "sqrt", "sign", "max", "min", "select", "from_bits", "to_float",
    "vector", "side", "by_row", "by_column", "mean", "row_means", "column_means", "norm", "rms",  # from rules.stages
)  # fmt: skip
MASKS = ("lt", "le", "eq", "ne", "and", "or", "not")
INTS = ("bits", "rounded", "add_int", "sub_int", "shift_left", "shift_right")
TYPES = {name: kind for names, kind in ((FLOATS, "float"), (MASKS, "mask"), (INTS, "int")) for name in names}
"""The type of the result of every operation."""


class Op(NamedTuple):
    """One operation: its name, the values it takes, and its parameter in brackets (see the table above)."""

    name: str
    args: tuple[int, ...] = ()
    of: float | int | None = None


class Sum(NamedTuple):
    """An output of a measuring program, in float64.

    `kind` ``"sum"`` is the sum of ``a * b`` (of ``a`` if ``b`` is ``None``), with exact float64 products, in the order
    of :func:`halfulp.rules.base.total`. ``"rows"`` and ``"columns"`` are the same for each row or column, in the order
    of :func:`~halfulp.rules.base.row_means` and :func:`~halfulp.rules.base.column_means`. ``"largest"`` is the largest
    magnitude of ``a``, or NaN if any is NaN.
    """

    name: str
    kind: str
    a: int
    b: int | None = None

    def at(self, place: Mapping[int, int]) -> Sum:
        """Return the same sum for renumbered values."""
        return self._replace(a=place[self.a], b=None if self.b is None else place[self.b])


@dataclass(frozen=True)
class Program:
    """A straight-line list of operations. See the module.

    Parameters
    ----------
    states, numbers, rows, columns
        The names of the states that it reads: those of the parameter's shape, those of one element, and the vectors
        with one value per row and per column.
    scalars
        Expressions in ``c``, the rule's scalars, in the order of their first use. They are evaluated in Python floats,
        and each is rounded once to fp32.
    ops, param, new_states, new_numbers, sums
        The operations and the outputs.
    """

    states: tuple[str, ...]
    numbers: tuple[str, ...]
    scalars: tuple[str, ...]
    ops: tuple[Op, ...]
    param: int | None
    new_states: tuple[int, ...]
    new_numbers: tuple[int, ...]
    sums: tuple[Sum, ...] = ()
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @cached_property
    def terms(self) -> tuple[tuple[int, int | None, str], ...]:
        """The distinct terms of the sums: `a`, `b` and the kind, which is ``"columns"`` where rows are summed, too."""
        return tuple(dict.fromkeys(map(self.term_of, self.sums)))

    def term_of(self, one: Sum) -> tuple[int, int | None, str]:
        """Return the term of a sum, one of :attr:`terms`."""
        both = one.kind == "rows" and any((s.a, s.b, s.kind) == (one.a, one.b, "columns") for s in self.sums)
        return one.a, one.b, "columns" if both else one.kind

    vectors = ()
    """States that are vectors. A plain program has none."""

    @cached_property
    def checks_grad(self) -> bool:
        """Whether the gradient itself must be checked, since no new state is certainly non-finite if it is."""
        return self.reads("grad") and not spoilt(self.ops, self.ops.index(Op("grad"))) & {*self.new_states}

    @property
    def programs(self) -> tuple[Program, ...]:
        """The programs of a step: this one."""
        return (self,)

    @cached_property
    def uniform(self) -> tuple[bool, ...]:
        """Whether each value is the same for all elements."""
        found: list[bool] = []
        for name, args, _ in self.ops:
            leaf = name in ("number", "scalar", "constant")
            found.append(leaf or (bool(args) and all(found[i] for i in args)))
        return tuple(found)

    @cached_property
    def uniforms(self) -> tuple[int, ...]:
        """The uniform values, except constants, that elementwise operations and outputs use: the inputs of a kernel."""
        taken = [i for k, op in enumerate(self.ops) if not self.uniform[k] for i in op.args]
        taken += [i for i in (self.param, *self.new_states) if i is not None]
        taken += [i for s in self.sums for i in (s.a, s.b) if i is not None]
        return tuple(i for i in sorted(set(taken)) if self.uniform[i] and self.ops[i].name != "constant")

    @cached_property
    def plain(self) -> list[int] | None:
        """The scalars that are the uniform values, or ``None`` if some uniform values are computed."""
        ops = [self.ops[i] for i in self.uniforms]
        if self.numbers or any(op.name != "scalar" for op in ops):
            return None
        return [int(op.of or 0) for op in ops]

    def reads(self, name: str) -> bool:
        """Whether the program contains an operation of this name."""
        return any(op.name == name for op in self.ops)

    @cached_property
    def code(self) -> str:
        """The text that generated code depends on, one operation per line, without names of states or scalars."""
        lines = [f"{len(self.states)} states, {len(self.numbers)} numbers"]
        lines += [f"{len(self.rows)} rows, {len(self.columns)} columns"] if self.rows or self.columns else []
        for k, (name, args, of) in enumerate(self.ops):
            shown = [] if of is None else [f"[{of!r}]"]
            lines.append(" ".join([f"%{k} = {name}", *shown, *(f"%{i}" for i in args)]))
        lines.append(f"param {self.param} states {self.new_states} numbers {self.new_numbers}")
        lines += [f"{s.kind} {s.a} {s.b}" for s in self.sums]
        return "\n".join(lines)

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that identify the code."""
        return hashlib.sha256(self.code.encode()).hexdigest()[:16]

    def scalar_values(self, c: Scalars) -> tuple[float, ...]:
        """Return the program's scalars in a step, rounded to fp32."""
        return scalar_values(self.scalars, c)


def scalar_values(sources: tuple[str, ...], c: Scalars) -> tuple[float, ...]:
    """Evaluate expressions in the scalars of a step, rounded to fp32."""
    return all_of_fp32(_scalars(sources)(c))


def scalar_sets(sources: tuple[str, ...], sets: Sequence[Scalars]) -> list[tuple[float, ...]]:
    """Return :func:`scalar_values` for each set of scalars, or once if all of them are the same set."""
    distinct = {id(c): c for c in sets}
    known = {key: scalar_values(sources, c) for key, c in distinct.items()}
    return [known[id(c)] for c in sets] if len(known) > 1 else [*known.values()]


def scalar_table(sources: tuple[str, ...], sets: Sequence[Scalars]) -> Floats:
    """Return :func:`scalar_sets` as a matrix with a line for each expression."""
    values = scalar_sets(sources, sets)
    return np.array(values, np.float32).reshape(len(values), len(sources)).T


@lru_cache(maxsize=1024)
def _scalars(sources: tuple[str, ...]) -> Callable[[Scalars], tuple[float, ...]]:
    made: Callable[[Scalars], tuple[float, ...]] = _function(f"({''.join(f'{source}, ' for source in sources)})")
    return made


def _function(expression: str) -> Any:
    """Return a function of ``c`` from an expression that symbols have built."""
    return eval(f"lambda c: {expression}", {"inf": float("inf"), "nan": float("nan")})


@dataclass(frozen=True)
class Branches:
    """The programs of a rule for given states, and the choice between them in a step.

    The programs are :class:`~halfulp.rules.stages.Staged` if the rule has sums within its update.
    """

    programs: tuple[Any, ...]
    source: str
    """An expression in ``c`` whose value is the number of the program."""

    @cached_property
    def number(self) -> Callable[[Scalars], int]:
        """A function from scalars to the number of their program."""
        chosen: Callable[[Scalars], int] = _function(self.source)
        return chosen

    def choose(self, c: Scalars) -> Any:
        """Return the program for these scalars."""
        return self.programs[self.number(c)]


def is_number(slot: StateSlot) -> bool:
    """Whether a state is one number per tensor, whatever the shape of the parameter."""
    return _shape_beside(slot, (2,)) == ()


def _shape_beside(slot: StateSlot, param: Shape) -> Shape | None:
    """Return the shape of a state for a made-up parameter shape, or ``None`` if the rule does not allow that shape."""
    try:
        return slot.shape(param)
    except (ValueError, IndexError):
        return None


def extent_of(slot: StateSlot, ndim: int) -> str | None:
    """Return what a state has one value for: each element of the ``"tensor"``, each of its ``"rows"`` or ``"columns"``.

    The result is ``"number"`` for a single value, and ``None`` for a state of another shape.
    """
    if is_number(slot):
        return "number"
    shape = (2, 3)[: min(max(ndim, 1), 2)]
    return {(2,): "rows", (3,): "columns", shape: "tensor"}.get(_shape_beside(slot, shape) or ())


def cut(
    ops: Sequence[Op], outputs: Iterable[int], scalars: Sequence[str], leaf: Callable[[int], Op | None] = lambda i: None
) -> tuple[tuple[Op, ...], tuple[str, ...], dict[int, int]]:
    """Return the operations that outputs need. `leaf` may replace a value by an operation without arguments.

    The result is the operations, the scalars, and a mapping from old to new value numbers.
    """
    needed: dict[int, Op] = {}
    pending = list(outputs)
    while pending:
        i = pending.pop()
        if i not in needed:
            needed[i] = leaf(i) or ops[i]
            pending += needed[i].args
    place = {old: new for new, old in enumerate(sorted(needed))}
    found = [Op(name, tuple(place[i] for i in args), of) for name, args, of in (needed[old] for old in place)]
    ops, read = used(found, ("scalar",))
    return ops, tuple(scalars[k] for k in read["scalar"]), place


def used(ops: Sequence[Op], names: Sequence[str]) -> tuple[tuple[Op, ...], dict[str, tuple[int, ...]]]:
    """Renumber the inputs of some names without gaps. Return the operations, and the old numbers by name."""
    read = {name: tuple(dict.fromkeys(int(op.of or 0) for op in ops if op.name == name)) for name in names}
    place = {(name, float(k)): new for name, found in read.items() for new, k in enumerate(found)}
    return tuple(op._replace(of=place[op.name, float(op.of or 0)]) if op.name in read else op for op in ops), read


def spoilt(ops: Sequence[Op], start: int) -> set[int]:
    """Return the values that are certainly infinite or NaN if the value `start` is."""
    found = {start}
    for k, (name, args, _) in enumerate(ops):
        carriers = {"neg": 1, "abs": 1, "sqrt": 1, "div": 1, "add": 2, "sub": 2, "mul": 2}.get(name, 0)
        if any(i in found for i in args[:carriers]):
            found.add(k)
    return found


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda args, of: function(*args)


OPERATORS: dict[str, Callable[..., Any]] = {
    "add": _plain(operator.add), "sub": _plain(operator.sub), "mul": _plain(operator.mul),
    "div": _plain(operator.truediv), "neg": _plain(operator.neg), "abs": _plain(operator.abs),
    "lt": _plain(operator.lt), "le": _plain(operator.le), "eq": _plain(operator.eq), "ne": _plain(operator.ne),
    "and": _plain(operator.and_), "or": _plain(operator.or_), "sub_int": _plain(operator.sub),
    "shift_left": lambda args, of: args[0] << of, "shift_right": lambda args, of: args[0] >> of,
}  # fmt: skip
"""The operations whose operators are the same for arrays of numpy and of torch."""
EVALUATE: dict[str, Callable[..., Any]] = OPERATORS | {
    "constant": lambda args, of: np.float32(of), "sqrt": _plain(np.sqrt),
    "sign": _plain(lambda a: np.float32(a > 0) - np.float32(a < 0)),
    "max": _plain(lambda a, b: np.where(a > b, a, b)), "min": _plain(lambda a, b: np.where(a < b, a, b)),
    "not": _plain(np.logical_not), "select": _plain(np.where),
    "bits": _plain(lambda a: np.asarray(a).view(np.int32)),
    "from_bits": _plain(lambda a: np.asarray(a).view(np.float32)),
    "rounded": _plain(lambda a: np.rint(a).astype(np.int32)),
    "to_float": _plain(lambda a: np.asarray(a).astype(np.float32)),
    "add_int": lambda args, of: args[0] + np.int32(of),
}  # fmt: skip
"""Every operation in numpy, except those that take an input."""
EVALUATE_TORCH: dict[str, Callable[..., Any]] = OPERATORS | {
    "sqrt": _plain(base.sqrt), "sign": _plain(lambda a: (a > 0).float() - (a < 0).float()),
    "max": _plain(base.larger), "min": _plain(base.smaller), "not": _plain(torch.logical_not),
    "select": _plain(torch.where), "bits": _plain(base.bits), "from_bits": _plain(base.from_bits),
    "rounded": _plain(base.rounded), "to_float": _plain(torch.Tensor.float),
    "add_int": lambda args, of: args[0] + (of + (1 << 31)) % (1 << 32) - (1 << 31),
}  # fmt: skip
"""The same in torch, on tensors of one device. Constants are tensors, too."""


def evaluate(program: Program, values: Mapping[str, Any], only_uniform: bool = False) -> list[Any]:
    """Evaluate every value of a program in numpy, one entry per operation.

    Inputs are given by the name of their operation: ``param`` and ``grad`` are fp32 arrays; ``state``, ``number`` and
    ``scalar`` are lists of arrays and numbers; ``row`` and ``column`` are lists of vectors. With `only_uniform`, values
    that are not uniform are skipped (``None`` in their place).
    """
    found: list[Any] = []
    with np.errstate(all="ignore"):
        for k, (name, args, of) in enumerate(program.ops):
            if only_uniform and not program.uniform[k]:
                found.append(None)
            elif name in EVALUATE:
                found.append(EVALUATE[name]([found[i] for i in args], of))
            elif name in ("param", "grad"):
                found.append(values[name])
            elif name == "row":
                found.append(values[name][of][:, None])
            else:
                found.append(values[name][of] if name in ("state", "column") else np.float32(values[name][of]))
    return found
