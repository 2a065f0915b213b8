"""Updates on GPUs with values that are not elements of the tensor: numbers, and values of rows and columns.

A step is a course of launches (:mod:`halfulp.rules.stages`). Measuring kernels leave sums on the device. torch
operations compute the few values between passes, those of all tensors of a launch in one vector, and write them to a
table that the kernel of the next pass reads. The host waits for nothing: a flag for each tensor, on the device, says
whether everything is finite, and the last kernel updates a tensor only then.

States that are numbers or vectors are decoded and encoded by the kernels of two programs, :data:`LOAD` and
:data:`STORE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfulp.kernels.binding import Step, plain
from halfulp.kernels.triton_launch import Launch, Member
from halfulp.kernels.triton_plan import Line
from halfulp.kernels.triton_sums import NOT_FINITE, Fold, SumLaunch, starts
from halfulp.kernels.triton_tables import DeviceTable
from halfulp.numbers.scaling import rows_and_cols
from halfulp.rules.base import DIVISORS, bits, from_sums
from halfulp.rules.program import EVALUATE_TORCH, Op, Program, scalar_table
from halfulp.rules.stages import Course, Staged

__all__ = ["LOAD", "STORE", "StagedKind", "StagedMember"]

LOAD = Program(("state",), (), (), (Op("state", (), 0),), 0, (), ())
"""The program that writes a state to the parameter."""
STORE = Program(("state",), (), (), (Op("grad"),), None, (0,), ())
"""The program that stores the gradient as a state."""


@dataclass(frozen=True)
class StagedKind:
    """The shared properties of the tensors of a course: the update, and the kinds of its passes."""

    device: torch.device
    staged: Staged
    passes: tuple[Any, ...]


@dataclass(eq=False)
class StagedMember:
    """A tensor of a course: as a member of each pass, and its states that are numbers or vectors."""

    kind: StagedKind
    passes: tuple[Member, ...]
    shape: torch.Size
    loads: tuple[Member, ...]
    """The numbers, then the vectors, as members of launches of :data:`LOAD`."""
    stores: tuple[Member, ...]
    """The same of launches of :data:`STORE`."""

    def launched(self, members: Sequence[Any], numbers: list[int]) -> StagedLaunch:
        """See :class:`~halfulp.kernels.triton_launch.Member`."""
        return StagedLaunch(members, numbers)


class StagedLaunch:
    """The passes of an update over several tensors."""

    def __init__(self, members: Sequence[StagedMember], numbers: list[int]) -> None:
        self.kind, self.members, self.tensors = members[0].kind, numbers, members
        self.staged, device = self.kind.staged, self.kind.device
        *rounds, last = zip(*(m.passes for m in members), strict=True)
        self.rounds = [SumLaunch(of, numbers) for of in rounds]
        self.last = Launch(last, numbers)
        self.sides = [rows_and_cols(m.shape) for m in members]
        self.extents = {name: _Extent([n[k] for n in self.sides], device) for k, name in enumerate(("rows", "columns"))}
        stages = (*self.staged.rounds, self.staged.update)
        for launch, stage in zip((*self.rounds, self.last), stages, strict=True):
            rows, columns = self.extents["rows"], self.extents["columns"]
            first_row = len(members) * (1 + len(stage.numbers))
            first_column = first_row + len(stage.rows) * rows.length
            launch.lines[:, Line.FIRST_ROW] = first_row + np.array(rows.firsts)
            launch.lines[:, Line.FIRST_COLUMN] = first_column + np.array(columns.firsts)
            launch.lines[:, Line.ALL_ROWS], launch.lines[:, Line.ALL_COLUMNS] = rows.length, columns.length
        self.of_step = np.zeros((len(self.staged.scalars), len(members)), np.float32)
        self.scalars = DeviceTable(max(self.of_step.size, len(members)), torch.int32, device)
        lengths = [[1] * len(members)] * len(self.staged.numbers)
        lengths += [self.extents[extent].counts for _, extent in self.staged.vectors]
        self.loads = _OfStates([m.loads for m in members], lengths, device)
        self.stores = _OfStates([m.stores for m in members], lengths, device)
        self.constants: dict[float, Tensor] = {}
        self.divisors: dict[str, Tensor] = {}

    def on_device(self) -> AbstractContextManager[Any]:
        """Return a context that makes the device current."""
        return self.last.on_device()

    def fill(self, steps: list[Step]) -> None:
        """Write and upload what has changed."""
        steps = [replace(step, inputs=tuple(map(plain, step.inputs))) for step in steps]  # copied once for all passes
        for launch in (*self.rounds, self.last):
            launch.fill(steps)
        for one in (*self.loads.launches, *self.stores.launches):
            one.fill([steps[i] for i in one.tensors])
        if self.of_step.size:
            self.of_step[:] = scalar_table(self.staged.scalars, [step.scalars for step in steps])
            self.scalars.update(self.of_step.view(np.int32).reshape(-1))

    def start(self) -> None:
        """Launch all passes."""
        course = _Course(self)
        for level, launch in enumerate(self.rounds):
            course.proceed(level, launch.sums(course.table(self.staged.rounds[level])))
        new = course.checked()
        self.last.start(given=course.table(self.staged.update))
        self.stores.store(new, course.fine.float())

    def constant(self, value: float) -> Tensor:
        """Return a constant on the device."""
        if value not in self.constants:
            self.constants[value] = torch.full((), value, dtype=torch.float32, device=self.kind.device)
        return self.constants[value]

    def divisor(self, name: str) -> Tensor:
        """Return what a function divides by, for each tensor."""
        if name not in self.divisors:
            made = [DIVISORS[name](*sides) for sides in self.sides]
            self.divisors[name] = torch.tensor(made, dtype=torch.float64, device=self.kind.device)
        return self.divisors[name]


class _OfState(Launch):
    """A launch of :data:`LOAD` or :data:`STORE` over states of some tensors."""

    def __init__(self, members: Sequence[Member], tensors: list[int]) -> None:
        super().__init__(members, [*range(len(members))])
        self.tensors = tensors
        self.of_tensor = torch.tensor(tensors, device="cpu").to(self.kind.device)

    def point(self, steps: list[Step]) -> None:
        """Leave the addresses of the values, which do not change."""


class _OfStates:
    """The numbers and vectors of several tensors, state by state, and the launches that load or store them.

    Parameters
    ----------
    members
        For each tensor, the members of these launches, one for each state.
    lengths
        For each state, its length in each tensor.
    device
        The device.
    """

    def __init__(
        self, members: Sequence[Sequence[Member]], lengths: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        self.lengths = [sum(of) for of in lengths]
        self.values = torch.zeros(sum(self.lengths), dtype=torch.float32, device=device)
        address, groups = self.values.data_ptr(), dict[int, list[tuple[int, Member]]]()
        for k, of in enumerate(lengths):
            for i, length in enumerate(of):
                member = members[i][k]
                member.line[Line.GRAD] = member.line[Line.PARAM] = address
                address += 4 * length
                groups.setdefault(id(member.kind), []).append((i, member))
        self.launches = [_OfState([one for _, one in of], [i for i, _ in of]) for of in groups.values()]

    def load(self) -> list[Tensor]:
        """Return the states, each of all tensors in one vector."""
        for launch in self.launches:
            launch.start()
        return [*self.values.split(self.lengths)]

    def store(self, values: list[Tensor], fine: Tensor) -> None:
        """Store new states where the flags of their tensors are set."""
        if self.launches:
            torch.cat(values, out=self.values)
        for launch in self.launches:
            launch.start(given=fine[launch.of_tensor])


class _Extent:
    """The rows or the columns of several tensors: vectors of them follow each other."""

    def __init__(self, counts: list[int], device: torch.device) -> None:
        self.counts, self.device = counts, device
        self.firsts, self.length = starts(counts)

    @cached_property
    def tensors(self) -> Tensor:
        """The number of the tensor of each row or column."""
        return torch.repeat_interleave(torch.tensor(self.counts, device="cpu")).to(self.device)

    @cached_property
    def sizes(self) -> Tensor:
        """The number of rows or columns of each tensor, in float64."""
        return torch.tensor(self.counts, dtype=torch.float64, device=self.device)

    @cached_property
    def sum(self) -> Fold:
        """The sum over each tensor."""
        return Fold(self.firsts, [1] * len(self.counts), self.counts, self.device)

    @cached_property
    def largest(self) -> Fold:
        """The largest of each tensor."""
        return Fold(self.firsts, [1] * len(self.counts), self.counts, self.device, largest=True)


class _Course(Course):
    """The progress of the tensors of a launch. Numbers are one vector of all of them; vectors follow each other."""

    def __init__(self, launch: StagedLaunch) -> None:
        self.launch, self.extents = launch, launch.extents
        self.fine: Tensor = torch.ones(len(launch.tensors), dtype=torch.bool, device=launch.kind.device)
        small, count = launch.loads.load(), len(launch.staged.numbers)
        scalars = launch.scalars.tensor.view(torch.float32).view(-1, len(launch.tensors))
        given = {
            "scalar": [*scalars.unbind()],
            "number": small[:count],
            "vector": small[count:],
            "side": [extent.sizes.float() for extent in launch.extents.values()],
        }
        super().__init__(launch.staged, given)

    def proceed(self, level: int, sums: Any) -> None:
        """See :class:`~halfulp.rules.stages.Course`."""
        for one in self.staged.rounds[level].program.sums:
            if one.kind == "largest":
                self.fine = self.fine & (sums[one.name] < NOT_FINITE)
        super().proceed(level, sums)

    def divided(self, name: str, sums: Tensor, extent: str) -> Tensor:
        """See :class:`~halfulp.rules.stages.Course`."""
        return from_sums(name, sums, self.fitted(self.launch.divisor(name), extent))

    def computed(self, k: int) -> Tensor:
        """See :class:`~halfulp.rules.stages.Course`."""
        name, args, of = self.staged.ops[k]
        if name == "constant":
            return self.launch.constant(float(of or 0.0))
        if name == "mean":
            extent = self.staged.extents[args[0]]
            vector = self.fitted(self.found[args[0]], extent)
            return from_sums(name, self.extents[extent].sum.start(vector.double()), self.extents[extent].sizes)
        return EVALUATE_TORCH[name]([self.fitted(self.found[i], self.staged.extents[k]) for i in args], of)

    def checked(self) -> list[Tensor]:
        """Return the new numbers and vectors, and clear the flags of tensors in which they are not finite."""
        new = self.new_small
        for value, extent in new:
            patterns = (bits(value) & 0x7FFFFFFF).double()
            largest = self.extents[extent].largest.start(patterns) if extent in self.extents else patterns
            self.fine = self.fine & (largest < NOT_FINITE)
        return [value for value, _ in new]

    def table(self, stage: Any) -> Tensor:
        """Return what the kernel of a pass reads: the flags, then its numbers, rows and columns."""
        return torch.cat([self.fine.float(), *(x for of in self.taken(stage).values() for x in of)])

    def fitted(self, value: Tensor, extent: str) -> Tensor:
        """See :class:`~halfulp.rules.stages.Course`."""
        tensors = len(self.launch.tensors)
        length = self.extents[extent].length if extent in self.extents else tensors
        if not value.dim():
            return value.expand(length)
        return value[self.extents[extent].tensors] if extent in self.extents and len(value) == tensors else value
