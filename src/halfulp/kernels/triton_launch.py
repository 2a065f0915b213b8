"""Launches: tensors that are stored alike, with their tables on the device.

A :class:`Batch` is made for the bindings of a step, and is reused while the same bindings come in the same order,
stored in the same way. :meth:`Batch.fill` updates the tables, which is the host's part of a step. :meth:`Batch.launch`
launches the kernels, which is the device's part and can be recorded in a CUDA graph.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfulp.kernels.binding import Step, plain
from halfulp.kernels.triton_plan import Line, Plan, StoredAs, Tiling, codebook
from halfulp.kernels.triton_source import kernel_of
from halfulp.kernels.triton_tables import DeviceTable
from halfulp.numbers.formats import Format
from halfulp.rules.program import Program

__all__ = ["Batch", "Kind", "Launch", "Member"]

LANES = 64 if torch.version.hip is not None else 32
"""The number of threads in a warp."""


@dataclass(frozen=True)
class Kind:
    """The shared properties of the tensors of a launch, for which their kernel is compiled.

    `stored` has the constants of the states, of the gradient and of the parameter; `formats` are the states' formats.
    """

    device: torch.device
    program: Program
    plan: Plan
    stored: tuple[StoredAs, ...]
    formats: tuple[Format, ...]

    @property
    def constants(self) -> dict[str, Plan | StoredAs]:
        """The constants by the names of the kernel's arguments."""
        slots = len(self.formats)
        names = [*(f"SLOT{k}" for k in range(slots)), "GRAD", "STORED"]
        return {"PLAN": self.plan, **dict(zip(names, self.stored, strict=True))}

    def options(self, lanes: int) -> dict[str, int | bool]:
        """Compiler options: no fused multiply-add, and hashes may overflow (also with ``TRITON_DEBUG``).

        A warp has 32 lanes (64 on AMD). A lane has as many elements as registers allow without spills.
        """
        scaled = any(stored.scaled for stored in self.stored[:-2])
        elements = 2 if lanes == 64 else 16 if scaled else 8
        warps = min(16, max(1, self.plan.padded * self.plan.tiles // (lanes * elements)))
        return {"num_warps": warps, "enable_fp_fusion": False, "sanitize_overflow": False}


@dataclass(eq=False)
class Member:
    """A tensor of a launch: its tiling, and its line of the table without the inputs and what the launch adds."""

    kind: Kind
    cut: Tiling
    line: list[int]

    def launched(self, members: Sequence[Any], numbers: list[int]) -> Any:
        """Return the launch of members that are of the same kind as this one, with their numbers in the batch."""
        return Launch(members, numbers)


class Launch:
    """One kernel over several tensors."""

    def __init__(self, members: Sequence[Member], numbers: list[int]) -> None:
        kind, count = members[0].kind, len(members)
        self.kind, self.members, self.count = kind, numbers, count
        self.width = max(1, len(kind.program.scalars))
        self.lines = np.array([member.line for member in members], np.int64)
        ends = np.cumsum([member.cut.programs for member in members])
        self.lines[1:, Line.FIRST_PROGRAM] = ends[:-1]
        self.programs = int(ends[-1])
        self.line_table = DeviceTable(self.lines.size, torch.int64, kind.device)
        self.keys = (2 * count + 3) // 4 * 4  # the scalars after them start at a multiple of 16 bytes
        self.of_step = np.zeros(self.keys + self.width * count, np.int32)
        self.step_table = DeviceTable(self.of_step.size, torch.int32, kind.device)
        self.levels = [_levels(fmt, kind.device) for fmt in kind.formats]
        self.inputs: list[list[Tensor]] = []

    def on_device(self) -> AbstractContextManager[Any]:
        """Return a context that makes the device current."""
        device = self.kind.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def fill(self, steps: list[Step]) -> None:
        """Write and upload what has changed."""
        program, packed = self.kind.program, struct.Struct(f"<{self.width}f")
        self.point(steps)
        places: dict[int, int] = {}
        scalars = bytearray()
        place_of_step = []
        for step in steps:
            place = places.get(id(step.scalars))
            if place is None:
                place = places[id(step.scalars)] = len(places)
                scalars += packed.pack(*(program.scalar_values(step.scalars) or (0.0,)))
            place_of_step.append(place)
        self.lines[:, Line.SCALARS] = place_of_step
        self.line_table.update(self.lines.reshape(-1))
        if not program.sums:
            self.of_step[: 2 * len(steps)].view(np.uint32).reshape(-1, 2)[:] = [s.keys[-1][:2] for s in steps]
        self.of_step[self.keys : self.keys + len(scalars) // 4] = np.frombuffer(scalars, np.int32)
        self.step_table.update(self.of_step)

    def point(self, steps: list[Step]) -> None:
        """Write the addresses of the inputs."""
        self.inputs = [[plain(x) for x in s.inputs] for s in steps]  # kept alive until the next step
        self.lines[:, Line.GRAD] = [first.data_ptr() for first, *_ in self.inputs]
        if steps[0].binding.param is None:  # a second input is read in place of a parameter
            self.lines[:, Line.PARAM] = [inputs[-1].data_ptr() for inputs in self.inputs]

    def start(self, sums: Tensor | None = None, given: Tensor | None = None) -> None:
        """Launch the kernel. Sums are written to `sums`, and `given` has numbers, rows and columns that it reads."""
        table = self.step_table.tensor
        scalars = table[self.keys :].view(torch.float32)
        kernel_of(self.kind.program)[(self.programs,)](
            self.line_table.tensor, table if sums is None else sums, scalars, scalars if given is None else given,
            *self.levels, len(self.members), **self.kind.constants, **self.kind.options(LANES),
        )  # fmt: skip


@cache
def _levels(fmt: Format, device: torch.device) -> Tensor:
    if fmt.kind == "codebook":
        return codebook(fmt, device)
    return torch.zeros(1, dtype=torch.float32, device=device)  # never read


class Batch:
    """The launches of a step.

    Parameters
    ----------
    steps
        The steps, in the order in which they will come.
    members
        The member of each step.
    """

    def __init__(self, steps: Sequence[Step], members: Sequence[Any]) -> None:
        self.bindings = [step.binding for step in steps]
        self.members = list(members)
        groups: dict[int, list[int]] = {}
        for i, member in enumerate(members):
            groups.setdefault(id(member.kind), []).append(i)
        self.launches = [members[group[0]].launched([members[i] for i in group], group) for group in groups.values()]

    def serves(self, steps: Sequence[Step], members: Sequence[Any]) -> bool:
        """Whether the batch was made for exactly these steps, stored in the same way."""
        return (
            len(steps) == len(self.members)
            and all(step.binding is known for step, known in zip(steps, self.bindings, strict=True))
            and all(member is known for member, known in zip(members, self.members, strict=True))
        )

    def fill(self, steps: Sequence[Step]) -> None:
        """Update the tables on the device."""
        for launch in self.launches:
            with launch.on_device():
                launch.fill([steps[i] for i in launch.members])

    def launch(self) -> None:
        """Launch the kernels."""
        for launch in self.launches:
            with launch.on_device():
                launch.start()
