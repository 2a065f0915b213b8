"""What the C library runs for a rule: generated code or instructions of the machine, for each of its programs."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from halfulp.kernels import native
from halfulp.kernels.binding import Stored
from halfulp.kernels.code import flags, machine_code, uniform_values
from halfulp.rules.base import Rule, Scalars, largest, total
from halfulp.rules.program import Branches, Program, evaluate, is_number
from halfulp.rules.slots import StateSlot
from halfulp.rules.tracing import ProgramError, reads_of, trace

__all__ = ["Compiled", "Programs", "programs_of"]


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program as C runs it.

    Parameters
    ----------
    program
        The program.
    number
        Of its generated code; -1: it runs on the machine.
    code
        Instructions of the machine, if it does.
    constants
        What follows its uniform values.
    flags
        ``HU_READS_PARAM``, ``HU_WRITES_PARAM``.
    packed
        Its uniform values in memory.
    """

    program: Program
    number: int
    code: npt.NDArray[np.int32] | None
    constants: tuple[float, ...]
    flags: int
    packed: struct.Struct

    def uniforms(self, scalars: Scalars, numbers: list[float]) -> tuple[list[float], list[np.float32]]:
        """Everything that its code takes as uniform values, and the new numbers."""
        values, new = uniform_values(self.program, scalars, numbers)
        return [*values, *self.constants], new

    def numbers(self, states: Iterable[Stored]) -> list[float]:
        """Values of the states of one element that the program reads, in its order."""
        stored = {s.slot.name: s for s in states}
        return [float(stored[name].codes) for name in self.program.numbers]

    @property
    def address(self) -> int:
        """Of the instructions."""
        return 0 if self.code is None else self.code.ctypes.data


@lru_cache(maxsize=1024)
def _compiled(program: Program, on_machine: bool) -> Compiled:
    number = -1 if on_machine else native.library().hu_find(int(program.digest, 16))
    code, constants = (None, ()) if number >= 0 else machine_code(program)
    count = len(program.uniforms) + len(constants)
    return Compiled(
        program, number, code, tuple(map(float, constants)), flags(program), struct.Struct(f"{count}f")
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Programs:
    """The programs of a rule's `update` or `measure` under some states."""

    function: Callable[..., Any]
    reads: tuple[str, ...]
    states: tuple[str, ...]
    numbers: tuple[str, ...]
    branches: Branches
    shape: tuple[int, ...]
    """Of the values that programs are checked on."""
    checked: set[int] = field(default_factory=set)

    @lru_cache(maxsize=64)  # noqa: B019 - as many as there are branches, of objects that live as long as the process
    def _at(self, number: int) -> Compiled:
        return _compiled(self.branches.programs[number], on_machine=False)

    def choose(self, scalars: Scalars) -> Compiled:
        """What these scalars choose.

        Raises
        ------
        ProgramError
            If it has not the bits of the rule: that looks at something its symbols do not show, as `math.isfinite` of a
            scalar does. Looked at once for each program, on random values.
        """
        number = self.branches.number(scalars)
        if number not in self.checked:
            self._check(self.branches.programs[number], scalars)
            self.checked.add(number)
        return self._at(number)

    def _check(self, program: Program, scalars: Scalars) -> None:
        generator = np.random.default_rng(0)
        arrays = {n: generator.standard_normal(self.shape).astype(np.float32) for n in (*self.reads, *self.states)}
        arrays |= {name: np.abs(arrays[name]) for name in self.states}
        given = {name: torch.from_numpy(x) for name, x in arrays.items()}
        states = {name: given[name] for name in self.states} | {n: torch.tensor(0.5) for n in self.numbers}
        result = self.function(*(given[name] for name in self.reads), states, scalars)
        got = evaluate(program, {
            **{name: arrays[name] for name in self.reads}, "state": [arrays[n] for n in program.states],
            "number": [0.5] * len(program.numbers), "scalar": program.scalar_values(scalars),
        })  # fmt: skip
        pairs = []
        if program.sums:
            of = {"sum": total, "largest": lambda a, b: largest(a)}
            tensors = {i: torch.from_numpy(np.array(got[i])) for s in program.sums for i in (s.a, s.b) if i is not None}
            for name, kind, a, b in program.sums:
                pairs.append((result[name], of[kind](tensors[a], None if b is None else tensors[b]).numpy()))
        else:
            param, new = result if isinstance(result, tuple) else (None, result)
            pairs = [] if program.param is None else [(param, got[program.param])]
            pairs += [(new[name], got[i]) for name, i in zip(program.states, program.new_states, strict=True)]
        if not all(np.array_equal(np.broadcast_to(x, want.shape), want.numpy(), equal_nan=True) for want, x in pairs):
            raise ProgramError("the rule has other results on tensors than on symbols: it looks at more than they show")


@lru_cache(maxsize=1024)
def programs_of(rule: Rule, measure: bool, slots: tuple[StateSlot, ...], ndim: int) -> Programs:
    """Programs of a rule's `update`, or of its `measure`.

    Raises
    ------
    ProgramError
        If it is not a program, or one that is too large.
    """
    if not rule.elementwise:
        raise ProgramError(f"rule {rule.name!r} is not elementwise")
    states = tuple(s.name for s in slots if not is_number(s))
    numbers = tuple(s.name for s in slots if is_number(s))
    function = rule.measure if measure else rule.update
    assert function is not None
    branches = trace(function, states, numbers, min(max(ndim, 1), 2), reads_of(rule))
    made = Programs(function, reads_of(rule), states, numbers, branches, (64,) if ndim < 2 else (8, 8))
    for number in range(len(branches.programs)):
        made._at(number)
    return made
