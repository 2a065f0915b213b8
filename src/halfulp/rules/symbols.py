"""Symbols that stand for tensors and scalars while a rule is traced (:mod:`halfulp.rules.tracing`).

Symbols are used like tensors, through operators and ``__torch_function__``, and record the operations. Scalars are
symbols too. What the rule computes from them remains an expression of Python floats. If the rule branches on a
condition of scalars, both outcomes are traced.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from halfulp.numbers.single import fp32
from halfulp.rules import base
from halfulp.rules.program import TYPES, Op

__all__ = ["VECTORS", "PendingSum", "ProgramError", "ScalarSymbol", "ScalarSymbols", "Symbol", "Tracer"]

VECTORS = ("rows", "columns")
SUMS = "a rule with sums has `measure` and `combine`, or is not elementwise and takes base.norm, rms or means"
_HERE = os.path.dirname(os.path.abspath(__file__))
OWN_FILES = (
    *(os.path.join(_HERE, name) for name in ("symbols.py", "tracing.py", "base.py")), os.path.dirname(torch.__file__),
)  # fmt: skip


class ProgramError(TypeError):
    """A rule does something that a program cannot express. It then runs in torch operations."""


def _error(what: str, hint: str = "") -> ProgramError:
    """Return an error that names the operation and the line of the rule."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OWN_FILES):
        frame = frame.f_back
    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return ProgramError(f"a program cannot say {what} ({place}){'; ' + hint if hint else ''}")


@dataclass
class Tracer:
    """One run on symbols: the operations so far, and the outcomes of conditions."""

    ndim: int
    decisions: dict[str, bool]
    elementwise: bool
    """Whether the update works element by element, without sums."""
    reading: float
    """The value of every scalar for functions that read it. The program must not depend on it."""
    ops: list[Op] = field(default_factory=list)
    extents: list[str] = field(default_factory=list)
    """The extent of each value, as in :func:`~halfulp.rules.program.extent_of`."""
    known: dict[Op, int] = field(default_factory=dict)
    scalars: list[str] = field(default_factory=list)

    def op(self, name: str, *args: Symbol, of: float | int | None = None, extent: str = "") -> Symbol:
        """Return the value of an operation. The same operation gives the same value again."""
        made = Op(name, tuple(a.index for a in args), of)
        if made not in self.known:
            self.known[made] = len(self.ops)
            self.ops.append(made)
            self.extents.append(extent or self._extent(name, args))
        return Symbol(self, self.known[made], TYPES[name])

    def _extent(self, name: str, args: Sequence[Symbol]) -> str:
        """Return the extent of an elementwise operation on these values."""
        found = {self.extents[a.index] for a in args} - {"number"}
        if len(found) > 1:
            raise _error(
                f"an operation on {' and '.join(sorted(found))}", "base.by_row and base.by_column spread vectors"
            )
        return "tensor" if name in ("param", "grad", "state") else found.pop() if found else "number"

    def over(self, name: str, x: object, takes: tuple[str, ...], extent: str) -> Symbol:
        """Return a value of another extent: a sum over a tensor, or a vector spread over one."""
        if self.elementwise:
            raise _error("a sum over the tensor within an elementwise update", SUMS)
        value = self.value(x)
        if self.extents[value.index] not in takes:
            raise _error(f"base.{name} of a {self.extents[value.index]}")
        return self.op(name, value, extent=extent)

    def side(self, which: int) -> Symbol:
        """Return the number of rows or columns."""
        if self.elementwise:
            raise _error("the shape of a tensor within an elementwise update")
        return self.op("side", of=which, extent="number")

    def constant(self, value: float) -> Symbol:
        """Return the value of a number, rounded to fp32."""
        return self.op("constant", of=fp32(value))

    def scalar(self, source: str) -> Symbol:
        """Return the value of an expression in the rule's scalars."""
        if source not in self.scalars:
            self.scalars.append(source)
        return self.op("scalar", of=self.scalars.index(source))

    def decide(self, condition: str) -> bool:
        """Whether a condition holds in this run. It does unless decided otherwise."""
        return self.decisions.setdefault(condition, True)

    def value(self, x: object) -> Symbol:
        """Return a symbol, a scalar of the rule or a Python number as a float value."""
        if isinstance(x, ScalarSymbol):
            return self.scalar(x.source)
        if isinstance(x, (int, float)) and not isinstance(x, bool):
            if x != x:
                raise _error("a NaN", "functions of `math` belong into the rule's `scalars`")
            return self.constant(x)
        if isinstance(x, PendingSum):
            raise _error("an operation on a sum over the tensor", SUMS)
        if not isinstance(x, Symbol):
            raise _error(f"an operation on {type(x).__name__}", "it knows the rule's arguments and numbers")
        if x.type != "float":
            raise _error(f"arithmetic on a value of type {x.type}", "torch.where turns a mask into numbers")
        return x


def _literal(x: object) -> str:
    if isinstance(x, ScalarSymbol):
        return x.source
    if isinstance(x, (int, float)):
        return repr(float(x))
    raise _error(f"an operation of a scalar and {type(x).__name__}")


class ScalarSymbol(float):
    """A scalar of the rule, or an expression in scalars: a Python float when the step runs.

    It is a float because torch accepts nothing else as a scalar. Functions that read its value, such as those of
    :mod:`math`, get the tracer's `reading`.
    """

    tracer: Tracer
    source: str

    def __new__(cls, tracer: Tracer, source: str) -> ScalarSymbol:
        """Return the tracer's reading with its expression."""
        made = super().__new__(cls, tracer.reading)
        made.tracer, made.source = tracer, source
        return made

    def __neg__(self) -> ScalarSymbol:
        return ScalarSymbol(self.tracer, f"(-{self.source})")

    def __abs__(self) -> ScalarSymbol:
        return ScalarSymbol(self.tracer, f"abs({self.source})")

    def __bool__(self) -> bool:
        return self != 0.0

    def __hash__(self) -> int:
        return hash(self.source)

    def __pos__(self) -> ScalarSymbol:
        return self

    def _unknown(self, *args: object) -> Any:
        raise _error("the value of a scalar", "compare it (c['x'] != math.inf), or compute it in `scalars`")

    __float__ = __int__ = __round__ = __trunc__ = __floor__ = __ceil__ = _unknown
    __divmod__ = __rdivmod__ = is_integer = as_integer_ratio = hex = _unknown


def _arithmetic(form: str) -> Callable[[ScalarSymbol, object], Any]:
    def operator(self: ScalarSymbol, other: object) -> Any:
        if isinstance(other, Symbol):
            return NotImplemented
        return ScalarSymbol(self.tracer, form.format(self.source, _literal(other)))

    return operator


def _comparison(form: str, holds: bool = True) -> Callable[[ScalarSymbol, object], Any]:
    def operator(self: ScalarSymbol, other: object) -> Any:
        if isinstance(other, Symbol):
            return NotImplemented
        return self.tracer.decide(form.format(self.source, _literal(other))) == holds

    return operator


for _name, _sign in {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**",
}.items():  # fmt: skip
    setattr(ScalarSymbol, f"__{_name}__", _arithmetic(f"({{0}} {_sign} {{1}})"))
    setattr(ScalarSymbol, f"__r{_name}__", _arithmetic(f"({{1}} {_sign} {{0}})"))
for _name, _sign in {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    setattr(ScalarSymbol, f"__{_name}__", _comparison(f"{{0}} {_sign} {{1}}"))
setattr(ScalarSymbol, "__ne__", _comparison("{0} == {1}", holds=False))  # noqa: B010 - mypy takes no assignment


class ScalarSymbols(dict[str, Any]):
    """The rule's scalars. Every name exists."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __missing__(self, name: str) -> ScalarSymbol:
        return ScalarSymbol(self.tracer, f"c[{name!r}]")


def _tracer(*args: object) -> Tracer:
    return next(a.tracer for a in args if isinstance(a, Symbol))


def _unary(name: str) -> Callable[[Any], Symbol]:
    return lambda x: x.tracer.op(name, x.tracer.value(x))


def _binary(name: str, swap: bool = False) -> Callable[[Any, Any], Symbol]:
    """Return a function that records an operation on its arguments, in the other order if swapped."""

    def function(a: Any, b: Any) -> Symbol:
        tracer = _tracer(a, b)
        first, second = tracer.value(a), tracer.value(b)
        return tracer.op(name, *((second, first) if swap else (first, second)))

    return function


def _masked(name: str) -> Callable[..., Symbol]:
    def function(*masks: Any) -> Symbol:
        if not all(isinstance(m, Symbol) and m.type == "mask" for m in masks):
            raise _error(f"{name!r} of anything but masks")
        return _tracer(*masks).op(name, *masks)

    return function


class Symbol:
    """A value of the program being traced, in place of a tensor. Its methods are those of a tensor."""

    __hash__ = None  # type: ignore[assignment]
    __array_priority__ = 1000

    def __init__(self, tracer: Tracer, index: int, kind: str) -> None:
        self.tracer, self.index, self.type = tracer, index, kind

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Apply a function of torch or of :mod:`halfulp.rules.base` to symbols."""
        if func not in FUNCTIONS:
            name = getattr(func, "__name__", str(func))
            raise _error(f"torch.{name}", HINTS.get(name, ""))
        return FUNCTIONS[func](*args, **(kwargs or {}))

    def __add__(self, other: object) -> Symbol:
        return _binary("add")(self, other) if self.type == "float" else self._add_int(other)

    def __radd__(self, other: object) -> Symbol:
        return _binary("add", swap=True)(self, other) if self.type == "float" else self._add_int(other)

    def _add_int(self, other: object) -> Symbol:
        if self.type != "int" or not isinstance(other, int):
            raise _error(f"the sum of a value of type {self.type} and {type(other).__name__}")
        return self.tracer.op("add_int", self, of=other)

    def __sub__(self, other: object) -> Symbol:
        if self.type == "int" and isinstance(other, Symbol) and other.type == "int":
            return self.tracer.op("sub_int", self, other)
        return _binary("sub")(self, other)

    def __mul__(self, other: object) -> Symbol:
        return self if type(other) in (int, float) and other == 1.0 else _binary("mul")(self, other)

    def __rtruediv__(self, other: object) -> Symbol:
        return self.reciprocal() * other  # as in torch

    def __pow__(self, exponent: object) -> Symbol:
        if exponent != 2:
            raise _error(f"a power of {exponent}", "products and base.sqrt, base.cbrt or base.exp make it")
        return self * self

    __rmul__, __rsub__, __truediv__ = __mul__, _binary("sub", swap=True), _binary("div")
    __lt__, __gt__ = _binary("lt"), _binary("lt", swap=True)
    __le__, __ge__ = _binary("le"), _binary("le", swap=True)
    __eq__, __ne__ = _binary("eq"), _binary("ne")  # type: ignore[assignment]
    __and__, __or__, __invert__ = _masked("and"), _masked("or"), _masked("not")
    __neg__, __abs__ = neg, abs = _unary("neg"), _unary("abs")
    sign = _unary("sign")

    def __lshift__(self, by: int) -> Symbol:
        return self.tracer.op("shift_left", self, of=by)

    def __rshift__(self, by: int) -> Symbol:
        return self.tracer.op("shift_right", self, of=by)

    def __bool__(self) -> bool:
        raise _error("a branch on the values of a tensor", "torch.where chooses element by element")

    def __float__(self) -> float:
        raise _error("the value of a tensor in Python", "numbers that steps compute stay tensors")

    __int__ = __index__ = __float__

    def __iter__(self) -> Any:
        raise _error("a loop over a tensor")

    def _in_place(self, other: object) -> Any:
        raise _error("an operation in place", "write x = x + y")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = _in_place

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _error(f"Tensor.{name}", HINTS.get(name, ""))

    @property
    def ndim(self) -> int:
        """The number of dimensions of the parameter: 1 (or fewer), or 2 (or more)."""
        return self.tracer.ndim

    def float(self) -> Symbol:
        """Return the value itself, or the nearest float of an int."""
        return self.tracer.op("to_float", self) if self.type == "int" else self.tracer.value(self)

    def square(self) -> Symbol:
        """See ``torch.square``."""
        return self * self

    def reciprocal(self) -> Symbol:
        """See ``torch.reciprocal``."""
        return _binary("div", swap=True)(self, 1.0)

    def isnan(self) -> Symbol:
        """See ``torch.isnan``."""
        return self != self

    def isfinite(self) -> Symbol:
        """See ``torch.isfinite``."""
        return abs(self) < float("inf")

    def clamp(self, min: object = None, max: object = None) -> Symbol:
        """See ``torch.clamp``. The limits are numbers, and NaN stays NaN."""
        if isinstance(min, Symbol) or isinstance(max, Symbol):
            raise _error("torch.clamp with tensors as limits", "base.maximum and base.minimum take them")
        held = self if min is None else _binary("max", swap=True)(self, min)
        return held if max is None else _binary("min", swap=True)(held, max)


def _where(mask: Any, a: object, b: object) -> Symbol:
    if not isinstance(mask, Symbol) or mask.type != "mask":
        raise _error("torch.where with anything but a comparison as its condition")
    tracer = mask.tracer
    return tracer.op("select", mask, tracer.value(a), tracer.value(b))


@dataclass(frozen=True)
class PendingSum:
    """A sum over a tensor, returned by ``measure``. It cannot be used in operations."""

    kind: str
    a: Symbol
    b: Symbol | None = None

    def __getattr__(self, name: str) -> Any:
        raise _error("an operation on a sum over the tensor", SUMS)


def _over(name: str, extent: str, *takes: str) -> Callable[..., Symbol]:
    return lambda x, like=None: _tracer(x).over(name, x, takes, extent)


FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.where: _where, torch.sign: Symbol.sign, torch.abs: abs, torch.neg: Symbol.neg, torch.square: Symbol.square,
    torch.reciprocal: Symbol.reciprocal, torch.clamp: Symbol.clamp, torch.isnan: Symbol.isnan,
    torch.isfinite: Symbol.isfinite, torch.add: _binary("add"), torch.sub: _binary("sub"), torch.mul: _binary("mul"),
    torch.div: _binary("div"), torch.zeros_like: lambda x, **options: _tracer(x).value(0.0),
    torch.ones_like: lambda x, **options: _tracer(x).value(1.0),
    torch.full_like: lambda x, value, **options: _tracer(x).value(value),
    torch.logical_and: Symbol.__and__, torch.logical_or: Symbol.__or__, torch.logical_not: Symbol.__invert__,
    base.sqrt: _unary("sqrt"), base.larger: _binary("max"), base.smaller: _binary("min"),
    base.total: lambda a, b=None: PendingSum("sum", a, b), base.largest: lambda x: PendingSum("largest", x),
    base.bits: _unary("bits"), base.rounded: _unary("rounded"), base.from_bits: lambda x: x.tracer.op("from_bits", x),
    base.sides: lambda x: tuple(_tracer(x).side(k) for k in range(2)),
    base.norm: _over("norm", "number", "tensor"), base.rms: _over("rms", "number", "tensor"),
    base.mean: _over("mean", "number", *VECTORS),
    base.row_means: _over("row_means", "rows", "tensor"), base.column_means: _over("column_means", "columns", "tensor"),
    base.by_row: _over("by_row", "tensor", "rows"), base.by_column: _over("by_column", "tensor", "columns"),
}  # fmt: skip
FUNCTIONS[torch.maximum], FUNCTIONS[torch.minimum] = base.maximum, base.minimum
INSTEAD = {"sqrt": "sqrt", "exp": "exp", "sigmoid": "sigmoid", "sum": "total", "mean": "total", "norm": "norm"}
HINTS = {name: f"halfulp.rules.base.{mine} has the same bits everywhere" for name, mine in INSTEAD.items()}
HINTS |= {
    "pow": "base.cbrt, base.sqrt, base.exp and products make powers",
    "double": "values are fp32; base.sqrt and base.total are wide within",
    "shape": "a program does not know it; `ndim` it knows",
}
