"""What the C library runs for a rule: generated code or machine instructions for each program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from halfulp.kernels import native
from halfulp.kernels.binding import Step
from halfulp.kernels.code import flags, machine_code, uniform_values
from halfulp.rules.base import Rule, Scalars
from halfulp.rules.program import Branches, Floats, Program, scalar_sets, scalar_table
from halfulp.rules.slots import StateSlot
from halfulp.rules.stages import Staged, work_out
from halfulp.rules.tracing import ProgramError, reads_of, traced

__all__ = ["Compiled", "Passes", "Programs", "chosen", "programs_of"]


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program in the form that C runs.

    Parameters
    ----------
    program
        The program.
    number
        The number of its generated code, or -1 if it runs on the machine.
    code
        The machine's instructions, if it runs there.
    constants
        The constants that follow its uniform values.
    flags
        ``HU_READS_PARAM`` and ``HU_WRITES_PARAM``.
    """

    program: Program
    number: int
    code: npt.NDArray[np.int32] | None
    constants: Floats
    flags: int

    def uniforms(self, scalars: Sequence[Scalars], numbers: Sequence[Floats] = ()) -> tuple[Floats, list[Floats]]:
        """Return the uniform values that its code needs, a line for each tensor or one for all, and the new numbers.

        Parameters
        ----------
        scalars
            The scalars of each tensor's step.
        numbers
            The numbers that the program reads, each of all tensors.
        """
        first = len(self.program.rows)  # the values of a piece's row come first
        if self.program.plain is not None:
            head, tail = [0.0] * first, self.constants.tolist()
            sets = scalar_sets(self.program.scalars, scalars)
            return np.array([[*head, *[c[k] for k in self.program.plain], *tail] for c in sets], np.float32), []
        values, new = uniform_values(self.program, scalar_table(self.program.scalars, scalars), numbers)
        last = first + len(values)
        lines = np.zeros((values.shape[1], last + len(self.constants)), np.float32)
        lines[:, first:last] = values.T
        lines[:, last:] = self.constants
        return lines, new

    @property
    def address(self) -> int:
        """The address of the instructions."""
        return 0 if self.code is None else self.code.ctypes.data


@lru_cache(maxsize=1024)
def _compiled(program: Program, on_machine: bool) -> Compiled:
    number = -1 if on_machine else native.library().hu_find(int(program.digest, 16))
    code, constants = (None, np.zeros(0, np.float32)) if number >= 0 else machine_code(program)
    return Compiled(program, number, code, constants, flags(program))


@dataclass(frozen=True, eq=False)
class Passes:
    """A rule with sums within its update in the form that C runs: the measuring rounds and the update."""

    staged: Staged
    rounds: tuple[Compiled, ...]
    update: Compiled


@dataclass(frozen=True, eq=False)
class Programs:
    """The programs of a rule's `update` or `measure` for some states."""

    function: Callable[..., Any]
    reads: tuple[str, ...]
    branches: Branches
    shape: tuple[int, ...]
    """The shape of the values on which programs are checked."""
    checked: set[int] = field(default_factory=set)

    @lru_cache(maxsize=64)  # noqa: B019 - as many as there are branches, of objects that live as long as the process
    def _at(self, number: int) -> Any:
        program = self.branches.programs[number]
        *rounds, last = (_compiled(one, on_machine=False) for one in program.programs)
        return Passes(program, tuple(rounds), last) if isinstance(program, Staged) else last

    def choose(self, scalars: Scalars) -> Any:
        """Return :class:`Compiled` code for these scalars, or :class:`Passes` for a rule that is not elementwise.

        Raises
        ------
        ProgramError
            If the program does not give the bits of the rule, because the rule looks at something that symbols do not
            show, such as `math.isfinite` of a scalar. Each program is checked once, on random values.
        """
        number = self.branches.number(scalars)
        if number not in self.checked:
            self._check(self.branches.programs[number], scalars)
            self.checked.add(number)
        return self._at(number)

    def _check(self, program: Program | Staged, scalars: Scalars) -> None:
        generator = np.random.default_rng(0)
        shapes = dict.fromkeys((*self.reads, *program.states), self.shape)
        for name, extent in program.vectors:
            shapes[name] = self.shape[:1] if extent == "rows" else self.shape[1:]
        arrays = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        arrays |= {name: np.abs(x) for name, x in arrays.items() if name not in self.reads}
        arrays |= {name: np.array(0.5, np.float32) for name in program.numbers}
        given = {name: torch.from_numpy(x) for name, x in arrays.items()}
        inputs = [given.pop(name) for name in self.reads]
        result = self.function(*inputs, given, scalars)
        param, new = result if isinstance(result, tuple) else (None, result)
        wanted = {"param": param, **new}
        for name, got in work_out(program, arrays, scalars).items():
            want = wanted[name].numpy()
            if name in shapes and want.shape != tuple(shapes[name]):
                raise ProgramError(f"the rule returns {name} in another shape than it was given")
            if not np.array_equal(np.broadcast_to(got, want.shape), want, equal_nan=True):
                raise ProgramError(
                    "the rule has other results on tensors than on symbols: it looks at more than they show"
                )


def chosen(programs: Sequence[Programs | None], steps: Sequence[Step]) -> list[Any]:
    """Return what each step runs (:meth:`Programs.choose`), or ``None`` where there are no programs."""
    known: dict[tuple[int, int], Any] = {}
    found = []
    for of, step in zip(programs, steps, strict=True):
        key = id(of), id(step.scalars)
        if key not in known:
            known[key] = None if of is None else of.choose(step.scalars)
        found.append(known[key])
    return found


@lru_cache(maxsize=1024)
def programs_of(rule: Rule, measure: bool, slots: tuple[StateSlot, ...], ndim: int) -> Programs:
    """Return the programs of a rule's `update` or `measure`.

    Raises
    ------
    ProgramError
        If the function is not a program, or is too large.
    """
    function = rule.measure if measure else rule.update
    assert function is not None
    branches = traced(rule, function, slots, ndim)
    made = Programs(function, reads_of(rule), branches, (64,) if ndim < 2 else (9, 7))
    for number in range(len(branches.programs)):
        made._at(number)
    return made
