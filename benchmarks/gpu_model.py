"""A prediction of how long a kernel takes on a GPU: the longer of moving its bytes and issuing its instructions.

What the code asks for stands in ``docs/results/gpu_code.csv`` (made by ``tests/support/triton_code.py``); what a GPU
gives is a row of :data:`GPUS`, or is read from the GPU that is there. ``step_gpu.py`` prints the prediction beside what
it measures, so that a run can prove it wrong:

    python benchmarks/gpu_model.py                       AdamW on 2^24 parameters, every GPU and kind of storage
    python benchmarks/gpu_model.py --elements 1048576
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path

CODE = Path(__file__).parents[1] / "docs" / "results" / "gpu_code.csv"
REACHED = 0.85
"""Share of the peak bandwidth that a large copy reaches, and so the kernel at best."""
LAUNCH = 5e-6
"""Seconds from one end of a kernel to the other that are neither bytes nor instructions."""


@dataclass(frozen=True)
class Gpu:
    """What a GPU gives.

    Parameters
    ----------
    target
        Architecture that the code is compiled for, as in the table of code.
    bandwidth
        Peak, bytes a second.
    units
        Multiprocessors (NVIDIA) or compute units (AMD).
    clock
        Hertz, boosted.
    lanes
        Lanes of instructions that a unit issues a clock: four warps of 32, or one wavefront of 64 on AMD, whose four
        vector units take four clocks each.
    """

    target: str
    bandwidth: float
    units: int
    clock: float
    lanes: int = 128

    @property
    def instructions(self) -> float:
        """Instructions of single lanes that it issues a second."""
        return self.units * self.clock * self.lanes


GPUS = {
    "A100 SXM 80 GB": Gpu("sm_80", 2.039e12, 108, 1.41e9),
    "H100 SXM": Gpu("sm_90", 3.35e12, 132, 1.755e9),
    "H200": Gpu("sm_90", 4.8e12, 132, 1.755e9),
    "B200": Gpu("sm_100", 8.0e12, 148, 1.85e9),
    "MI300X": Gpu("gfx942", 5.3e12, 304, 2.1e9, 64),
}
"""From the makers' data sheets."""


@dataclass(frozen=True)
class Code:
    """What a kernel asks for, for one parameter: bytes that have to move, and instructions of the machine code."""

    bytes: float
    instructions: float


def read_code(path: Path = CODE) -> dict[tuple[str, str], Code]:
    """The table of code, by target and storage (``"8bit"``, ``"8bit remainder16"``)."""
    with path.open(newline="") as file:
        return {
            (row["target"], row["storage"]): Code(float(row["bytes"]), float(row["instructions"]))
            for row in csv.DictReader(file)
        }


def seconds(code: Code, gpu: Gpu, elements: int) -> tuple[float, str]:
    """Time of a kernel over so many parameters, and what bounds it: ``"bytes"`` or ``"instructions"``."""
    moving, issuing = elements * code.bytes / (REACHED * gpu.bandwidth), elements * code.instructions / gpu.instructions
    return LAUNCH + max(moving, issuing), "bytes" if moving >= issuing else "instructions"


def present(bandwidth: float) -> Gpu:
    """The GPU that is there, with the bandwidth that a copy was measured to reach on it."""
    import torch

    found = torch.cuda.get_device_properties(0)
    if torch.version.hip is not None:
        target, lanes = found.gcnArchName.split(":")[0], 64
    else:
        target, lanes = f"sm_{found.major}{found.minor}", 128
    clock = float(getattr(found, "clock_rate", 1.755e6)) * 1e3
    return Gpu(target, bandwidth / REACHED, found.multi_processor_count, clock, lanes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=1 << 24)
    args = parser.parse_args()
    codes = read_code()
    print(f"AdamW, {args.elements:,} parameters; microseconds a step, and what bounds it")
    for storage in dict.fromkeys(storage for _, storage in codes):
        for name, gpu in GPUS.items():
            code = codes.get((gpu.target, storage))
            if code is not None:
                time, bound = seconds(code, gpu, args.elements)
                share = args.elements * code.bytes / (REACHED * gpu.bandwidth) / time
                print(f"{storage:18} {name:16} {1e6 * time:8.0f} {bound:13} {share:6.0%} of the byte bound's speed")


if __name__ == "__main__":
    sys.exit(main())
