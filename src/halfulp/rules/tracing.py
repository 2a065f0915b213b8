"""The programs of a rule: :func:`trace` runs it on symbols (:mod:`halfulp.rules.symbols`) instead of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from halfulp.rules.base import Rule
from halfulp.rules.program import Branches, Program, Sum, cut, extent_of, used
from halfulp.rules.slots import StateSlot
from halfulp.rules.stages import Staged, staged
from halfulp.rules.symbols import VECTORS, PendingSum, ProgramError, ScalarSymbols, Symbol, Tracer

__all__ = ["ProgramError", "reads_of", "trace", "traced"]

MOST_BRANCHES = 64
READINGS = (math.nan, 0.25, 1e9)
"""The values that scalars have in turn for functions such as those of :mod:`math`, to find rules that call them."""


@lru_cache(maxsize=4096)
def trace(
    function: Callable[..., Any], states: tuple[str, ...], numbers: tuple[str, ...] = (), ndim: int = 2,
    reads: tuple[str, ...] = ("param", "grad"), vectors: tuple[tuple[str, str], ...] = (), elementwise: bool = True,
) -> Branches:  # fmt: skip
    """Return the programs of an ``update`` or ``measure``. Raise ``ProgramError`` if it cannot be one.

    An ``update`` returns the new parameter and the new states, or the new states alone. A ``measure`` returns a mapping
    of results of :func:`~halfulp.rules.base.total` and :func:`~halfulp.rules.base.largest`. `states` have the
    parameter's shape, `numbers` one element, and `vectors` one value for each of the ``"rows"`` or ``"columns"``. The
    parameter has 1 (or fewer) or 2 (or more) dimensions. `reads` are the arguments before the states and scalars (see
    :func:`reads_of`). A function that does not work element by element has programs that are
    :class:`~halfulp.rules.stages.Staged`.

    Examples
    --------
    >>> import torch
    >>> def update(param, grad, states, c):
    ...     average = states["m"] + (grad - states["m"]) * c["weight"]
    ...     return param - torch.sign(average) * c["lr"], {"m": average}
    >>> print(trace(update, ("m",)).programs[0].code)
    1 states, 0 numbers
    %0 = state [0]
    %1 = param
    %2 = grad
    %3 = sub %2 %0
    %4 = scalar [0]
    %5 = mul %3 %4
    %6 = add %0 %5
    %7 = sign %6
    %8 = scalar [1]
    %9 = mul %7 %8
    %10 = sub %1 %9
    param 10 states (6,) numbers ()
    """
    first, *others = (
        _branches(function, states, numbers, ndim, reads, vectors, elementwise, reading) for reading in READINGS
    )
    if any(other != first for other in others):
        raise ProgramError(
            "the rule reads the value of a scalar, as functions of `math` do, or changes by itself; use `scalars`"
        )
    return first


def _branches(
    function: Callable[..., Any], states: tuple[str, ...], numbers: tuple[str, ...], ndim: int, reads: tuple[str, ...],
    vectors: tuple[tuple[str, str], ...], elementwise: bool, reading: float,
) -> Branches:  # fmt: skip
    """Return the programs of a function, whose scalars have this value where they are read."""
    found: dict[Program | Staged, int] = {}

    def source(decisions: dict[str, bool]) -> str:
        """Return an expression that gives the number of the program, under these decisions."""
        tracer = Tracer(min(max(ndim, 1), 2), dict(decisions), elementwise, reading)
        program = _run(tracer, function, states, numbers, reads, vectors)
        undecided = [condition for condition in tracer.decisions if condition not in decisions]
        if not undecided:
            if len(found) >= MOST_BRANCHES:
                raise ProgramError(f"a program cannot have more than {MOST_BRANCHES} branches")
            return str(found.setdefault(program, len(found)))
        first = undecided[0]
        yes, no = (source({**decisions, first: way}) for way in (True, False))
        return yes if yes == no else f"({yes} if {first} else {no})"

    text = source({})
    return Branches(tuple(found), text)


def reads_of(rule: Rule) -> tuple[str, ...]:
    """Return the arguments of a rule's functions before the states and scalars, named ``param`` and ``grad`` here.

    Raise ``ProgramError`` if there are more arguments than a program has.
    """
    names = ("param", "grad") if rule.has_param else ("grad", "param")[: len(rule.inputs)]
    if len(names) != rule.has_param + len(rule.inputs):
        raise ProgramError(f"a program reads a parameter and one input, or two inputs; the rule has {rule.inputs}")
    return names


def traced(rule: Rule, function: Callable[..., Any], slots: Sequence[StateSlot], ndim: int) -> Branches:
    """Return the programs of a rule's `update` or `measure` for a parameter with `ndim` dimensions and these states.

    Raise ``ProgramError`` if it is not a program, or a state has a shape that programs do not support.
    """
    extents = {s.name: extent_of(s, ndim) for s in slots}
    update = function is rule.update
    odd = [name for name, extent in extents.items() if extent is None or (rule.elementwise and extent in VECTORS)]
    if update and odd:
        raise ProgramError(f"{odd[0]!r}, a state of {rule.name!r}, has another shape than its parameter")
    states, numbers = (tuple(n for n, of in extents.items() if of == extent) for extent in ("tensor", "number"))
    vectors = tuple((name, extent) for name, extent in extents.items() if extent in VECTORS) if update else ()
    elementwise = rule.elementwise or not update
    return trace(function, states, numbers, min(max(ndim, 1), 2), reads_of(rule), vectors, elementwise)


def _run(
    tracer: Tracer, function: Callable[..., Any], states: tuple[str, ...], numbers: tuple[str, ...],
    reads: tuple[str, ...], vectors: tuple[tuple[str, str], ...],
) -> Program | Staged:  # fmt: skip
    """Return the program of one run."""
    given: dict[str, Symbol] = {name: tracer.op("state", of=k) for k, name in enumerate(states)}
    given |= {name: tracer.op("number", of=k) for k, name in enumerate(numbers)}
    given |= {name: tracer.op("vector", of=k, extent=extent) for k, (name, extent) in enumerate(vectors)}
    try:
        result = function(*map(tracer.op, reads), dict(given), ScalarSymbols(tracer))
    except ProgramError:
        raise
    except Exception as error:
        raise ProgramError(f"on symbols the rule fails: {type(error).__name__}: {error}") from error
    if isinstance(result, Mapping):
        if any(isinstance(value, PendingSum) for value in result.values()):
            return _measuring(tracer, states, numbers, _sums(result))
        if reads[0] != "param":
            result = (tracer.op("param"), result)
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise ProgramError("the rule does not return (new param, new states)")
    missing = [name for name in given if name not in result[1]]
    if missing:
        raise ProgramError(f"the rule returns no new {', '.join(missing)}")
    if set(result[1]) != set(given):
        raise ProgramError(f"the rule returns the states {sorted(map(str, result[1]))}, not {sorted(given)}")
    if not all(isinstance(value, Symbol) for value in (result[0], *result[1].values())):
        raise ProgramError("the rule returns something that is not a tensor")
    new_param, new = tracer.value(result[0]), {name: tracer.value(value) for name, value in result[1].items()}
    extents = {name: tracer.extents[given[name].index] for name in given}
    for name, extent in extents.items():
        found = tracer.extents[new[name].index]
        if found not in (extent, "number"):
            raise ProgramError(f"the new {name} has values of the {found}, the old one of the {extent}")
    param = None if new_param.index == tracer.op("param").index else new_param.index
    new_states, new_numbers = (tuple(new[n].index for n in names) for names in (states, numbers))
    if not tracer.elementwise:
        new_vectors = tuple(new[name].index for name, _ in vectors)
        return staged(
            tuple(tracer.ops), tuple(tracer.extents), states, numbers, vectors, tuple(tracer.scalars), param,
            new_states, new_numbers, new_vectors,
        )  # fmt: skip
    outputs = [*([] if param is None else [param]), *new_states, *new_numbers]
    ops, scalars, place = cut(tracer.ops, outputs, tracer.scalars)
    return Program(
        states, numbers, scalars, ops, None if param is None else place[param],
        tuple(place[i] for i in new_states), tuple(place[i] for i in new_numbers),
    )  # fmt: skip


def _sums(result: Mapping[str, Any]) -> tuple[Sum, ...]:
    if not all(isinstance(value, PendingSum) for value in result.values()):
        raise ProgramError("a program measures what base.total and base.largest give; `combine` computes with it")
    return tuple(Sum(n, s.kind, s.a.index, None if s.b is None else s.b.index) for n, s in result.items())


def _measuring(tracer: Tracer, states: tuple[str, ...], numbers: tuple[str, ...], sums: tuple[Sum, ...]) -> Program:
    """Return a program that only measures, with the states and numbers that it reads."""
    ops, scalars, place = cut(tracer.ops, [i for s in sums for i in (s.a, s.b) if i is not None], tracer.scalars)
    ops, read = used(ops, ("state", "number"))
    of_states, of_numbers = tuple(states[k] for k in read["state"]), tuple(numbers[k] for k in read["number"])
    return Program(of_states, of_numbers, scalars, ops, None, (), (), tuple(s.at(place) for s in sums))
