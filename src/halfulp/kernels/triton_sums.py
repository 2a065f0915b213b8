"""Sums over tensors, rows and columns on the device, in the fixed orders of :mod:`halfulp.rules.base`.

The kernel of a measuring program leaves one number for each segment of 1024 elements, and for columns one number for
each column and the rows of each program. These are folded until each tensor, row or column has one.

The sums of a rule's ``measure`` come to the host together, since its ``combine`` works on Python floats. This is the
only time a step waits for the device.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfulp.kernels.binding import Step
from halfulp.kernels.triton_launch import Batch, Launch, Member
from halfulp.kernels.triton_plan import STRETCH, Line, power_of_two

__all__ = ["NOT_FINITE", "ColumnFold", "Fold", "SumBatch", "SumLaunch", "SumMember", "starts"]

NOT_FINITE = float(0x7F800000)
"""The smallest bit pattern, without the sign, of an fp32 number that is not finite."""
_HEIGHT, _WIDTH = 16, 128
"""The rows and columns of the numbers that a program of ``fold_columns`` adds up."""


def starts(lengths: Sequence[int]) -> tuple[list[int], int]:
    """Return where each of several pieces starts if they follow each other, and the length of all."""
    ends = np.cumsum(lengths).tolist()
    return [0, *ends[:-1]], ends[-1]


class Fold:
    """The folding of the rows of several tensors' numbers, until each row has one.

    Parameters
    ----------
    firsts, rows, counts
        For each tensor: the position of its numbers, its rows, and the numbers in each row.
    device
        The device.
    largest
        Whether the largest is taken instead of the sum.
    """

    def __init__(
        self, firsts: list[int], rows: list[int], counts: list[int], device: torch.device, *, largest: bool = False
    ) -> None:
        self.largest = largest
        self.levels: list[tuple[Tensor, int, int, int]] = []
        while not self.levels or max(counts) > 1:
            width = min(STRETCH, power_of_two(max(counts)))
            after = [-(-count // STRETCH) for count in counts]
            targets, length = starts([r * n for r, n in zip(rows, after, strict=True)])
            programs, grid = starts([-(-r * n * width // STRETCH) for r, n in zip(rows, after, strict=True)])
            self.levels.append((_table(programs, firsts, rows, counts, targets, device=device), grid, length, width))
            firsts, counts = targets, after

    def start(self, numbers: Tensor) -> Tensor:
        """Fold numbers, and return one per row."""
        from halfulp.kernels.triton_tiles import fold

        for table, grid, length, width in self.levels:
            folded = numbers.new_empty(length)
            fold[(grid,)](
                table, numbers, folded, len(table), WIDTH=width, LARGEST=self.largest, enable_fp_fusion=False
            )  # fmt: skip
            numbers = folded
        return numbers


class ColumnFold:
    """The folding of the columns of several tensors' numbers, until each column has one."""

    def __init__(self, firsts: list[int], rows: list[int], cols: list[int], device: torch.device) -> None:
        self.levels: list[tuple[Tensor, int, int]] = []
        while not self.levels or max(rows) > 1:
            after = [-(-r // _HEIGHT) for r in rows]
            targets, length = starts([r * n for r, n in zip(after, cols, strict=True)])
            programs, grid = starts([r * -(-n // _WIDTH) for r, n in zip(after, cols, strict=True)])
            self.levels.append((_table(programs, firsts, rows, cols, targets, device=device), grid, length))
            firsts, rows = targets, after

    def start(self, numbers: Tensor) -> Tensor:
        """Fold numbers, and return one per column."""
        from halfulp.kernels.triton_tiles import fold_columns

        for table, grid, length in self.levels:
            folded = numbers.new_empty(length)
            fold_columns[(grid,)](
                table, numbers, folded, len(table), HEIGHT=_HEIGHT, WIDTH=_WIDTH, enable_fp_fusion=False
            )  # fmt: skip
            numbers = folded
        return numbers


def _table(*columns: list[int], device: torch.device) -> Tensor:
    """Return the table of a folding kernel."""
    return torch.tensor(columns, dtype=torch.int64, device="cpu").t().contiguous().to(device)


class SumMember(Member):
    """A tensor of a measuring launch."""

    def launched(self, members: Sequence[Any], numbers: list[int]) -> Any:
        """See :class:`~halfulp.kernels.triton_launch.Member`."""
        return SumLaunch(members, numbers)


class SumLaunch(Launch):
    """One measuring kernel over several tensors, and the folding of its results."""

    def __init__(self, members: Sequence[Member], numbers: list[int]) -> None:
        super().__init__(members, numbers)
        rows, cols = ([getattr(m.cut, name) for m in members] for name in ("rows", "cols"))
        device, kinds = self.kind.device, [s.kind for s in self.kind.program.sums]
        segments = [-(-n // STRETCH) for n in cols]
        firsts, length = starts([r * n for r, n in zip(rows, segments, strict=True)])
        self.of_columns = kinds.count("columns")
        self.of_segments = len(kinds) - self.of_columns
        self.lines[:, Line.FIRST_SUM], self.lines[:, Line.SUMS] = firsts, length
        self.folds: dict[str, Any] = {}
        if "rows" in kinds:
            self.folds["rows"] = Fold(firsts, rows, segments, device)
        one, whole = [1] * len(members), [r * n for r, n in zip(rows, segments, strict=True)]
        for kind in {"sum", "largest"}.intersection(kinds):
            self.folds[kind] = Fold(firsts, one, whole, device, largest=kind == "largest")
        all_columns = 0
        if self.of_columns:
            groups = [-(-r // m.cut.tiles_a_program) for r, m in zip(rows, members, strict=True)]
            firsts, all_columns = starts([r * n for r, n in zip(groups, cols, strict=True)])
            self.lines[:, Line.FIRST_COLUMN_SUM], self.lines[:, Line.COLUMN_SUMS] = firsts, all_columns
            self.folds["columns"] = ColumnFold(firsts, groups, cols, device)
        self.split = self.of_segments * length
        self.numbers = torch.zeros(self.split + self.of_columns * all_columns, dtype=torch.float64, device=device)

    def sums(self, given: Tensor | None = None) -> dict[str, Tensor]:
        """Launch the kernels. Return the sums on the device by name, those of all tensors in one float64 vector."""
        self.start(self.numbers, given)
        segments = iter(self.numbers[: self.split].view(self.of_segments or 1, -1))
        columns = iter(self.numbers[self.split :].view(self.of_columns or 1, -1))
        return {
            s.name: self.folds[s.kind].start(next(columns if s.kind == "columns" else segments))
            for s in self.kind.program.sums
        }


class SumBatch(Batch):
    """The measuring launches of a step."""

    def read(self, steps: Sequence[Step]) -> list[dict[str, float]]:
        """Return the sums of each step, by name. This waits for the device."""
        self.fill(steps)
        results = []
        for launch in self.launches:
            with launch.on_device():
                results.append(torch.stack([*launch.sums().values()]))
        found: list[dict[str, float]] = [{} for _ in self.bindings]
        for launch, numbers in zip(self.launches, results, strict=True):
            for one, of_tensors in zip(launch.kind.program.sums, numbers.tolist(), strict=True):
                for i, value in zip(launch.members, of_tensors, strict=True):
                    found[i][one.name] = _magnitude(value) if one.kind == "largest" else value
        return found


def _magnitude(pattern: float) -> float:
    """Return the fp32 number of a bit pattern."""
    return float(struct.unpack("<f", struct.pack("<I", int(pattern)))[0])
