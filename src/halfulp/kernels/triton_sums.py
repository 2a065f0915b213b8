"""Sums over tensors on the device, in the fixed order of :func:`halfulp.rules.base.total`.

The kernel of a measuring program leaves one number for each segment of 1024 elements. These are folded, 1024 at a time,
until each tensor has one. All numbers of a step come to the host together, since a rule's ``combine`` works on Python
floats. This is the only time a step waits for the device, and only rules with sums need it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from halfulp.kernels.binding import Step
from halfulp.kernels.triton_launch import Batch, Launch, Member
from halfulp.kernels.triton_plan import STRETCH, Line

__all__ = ["SumBatch"]


class _SumLaunch(Launch):
    """One measuring kernel over several tensors, and the folding of its results."""

    def __init__(self, members: list[Member], numbers: list[int]) -> None:
        super().__init__(members, numbers)
        counts = [m.cut.rows * -(-m.cut.cols // STRETCH) for m in members]
        ends = np.cumsum(counts)
        firsts = [0, *ends[:-1].tolist()]
        total, sums = int(ends[-1] + 1) // 2 * 2, len(self.kind.program.sums)
        self.lines[:, Line.FIRST_SUM], self.lines[:, Line.SUMS] = firsts, total
        self.stretches = torch.zeros(sums * total, dtype=torch.float64, device=self.kind.device)
        self.folds = {kind: _Fold(firsts, counts, kind == "largest", self.kind.device) for kind in ("sum", "largest")}

    def sums(self) -> Tensor:
        """Launch the kernels, and return the sums on the device, one line per sum."""
        self.start(self.stretches)
        parts = self.stretches.reshape(len(self.kind.program.sums), -1)
        folded = [self.folds[s.kind].start(part) for s, part in zip(self.kind.program.sums, parts, strict=True)]
        return torch.stack(folded)


class _Fold:
    """The folding of several tensors' numbers, stored one after the other, until each tensor has one."""

    def __init__(self, firsts: list[int], counts: list[int], largest: bool, device: torch.device) -> None:
        self.largest = largest
        self.levels: list[tuple[Tensor, int]] = []
        while not self.levels or max(counts) > 1:
            after = [-(-count // STRETCH) for count in counts]
            ends = np.cumsum(after)
            targets = [0, *ends[:-1].tolist()]
            table = np.zeros((len(counts), 4), np.int64)
            table[:, 0], table[:, 1], table[:, 2] = targets, firsts, counts
            self.levels.append((torch.from_numpy(table).to(device), int(ends[-1])))
            firsts, counts = targets, after

    def start(self, numbers: Tensor) -> Tensor:
        """Fold numbers, and return one per tensor."""
        from halfulp.kernels.triton_tiles import fold

        for table, programs in self.levels:
            folded = numbers.new_empty(programs)
            fold[(programs,)](table, numbers, folded, len(table), LARGEST=self.largest, enable_fp_fusion=False)
            numbers = folded
        return numbers


class SumBatch(Batch):
    """The measuring launches of a step."""

    launch_type = _SumLaunch

    def read(self, steps: Sequence[Step]) -> list[dict[str, float]]:
        """Return the sums of each step, by name. This waits for the device."""
        self.fill(steps)
        results = []
        for launch in self.launches:
            assert isinstance(launch, _SumLaunch)
            with launch.on_device():
                results.append(launch.sums())
        found: list[dict[str, float]] = [{} for _ in self.bindings]
        for launch, numbers in zip(self.launches, results, strict=True):
            for one, of_tensors in zip(launch.kind.program.sums, numbers.tolist(), strict=True):
                for i, value in zip(launch.members, of_tensors, strict=True):
                    found[i][one.name] = _magnitude(value) if one.kind == "largest" else value
        return found


def _magnitude(pattern: float) -> float:
    """Return the fp32 number of a bit pattern."""
    return float(struct.unpack("<f", struct.pack("<I", int(pattern)))[0])
