"""Predicted time of a kernel on a GPU: the longest of moving its bytes, issuing its instructions, and waiting.

Waiting is what threads take that do one after the other, since only so many fit into the registers: each waits for
memory once, and issues at most one instruction per clock.

The code's demands are in ``docs/results/gpu_code.csv`` (written by ``tests/support/triton_code.py``). A GPU's
capacities are a row of :data:`GPUS`, or are read from the present GPU. ``step_gpu.py`` prints the prediction beside its
measurement, so that a run can refute it:

    python benchmarks/gpu_model.py                       AdamW on 2^24 parameters, every GPU and kind of storage
    python benchmarks/gpu_model.py --elements 1048576
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from dataclasses import dataclass
from pathlib import Path

CODE = Path(__file__).parents[1] / "docs" / "results" / "gpu_code.csv"
REACHED = 0.85
"""Share of the peak bandwidth that a large copy reaches, and thus the best that a kernel can reach."""
LAUNCH = 5e-6
"""Seconds per kernel that are due to neither bytes nor instructions."""
LATENCY = 1e-6
"""Seconds from a load to its value in a busy memory: about twice that of an idle one."""
MOST_THREADS = 2048
"""Threads that a unit holds if they need few registers."""


@dataclass(frozen=True)
class Gpu:
    """Capacities of a GPU.

    Parameters
    ----------
    target
        Architecture that the code is compiled for, as in the CSV of demands.
    bandwidth
        Peak bandwidth in bytes per second.
    units
        Multiprocessors (NVIDIA) or compute units (AMD).
    clock
        Boost clock in hertz.
    lanes
        Instruction lanes that a unit issues per clock: four warps of 32, or one wavefront of 64 on AMD.
    registers
        32-bit registers of a unit.
    pace
        Clocks between two instructions of one warp, at least. AMD's vector units take four for a wavefront.
    """

    target: str
    bandwidth: float
    units: int
    clock: float
    lanes: int = 128
    registers: int = 1 << 16
    pace: int = 1

    @property
    def instructions(self) -> float:
        """Single-lane instructions issued per second."""
        return self.units * self.clock * self.lanes


GPUS = {
    "A100 SXM 80 GB": Gpu("sm_80", 2.039e12, 108, 1.41e9),
    "H100 SXM": Gpu("sm_90", 3.35e12, 132, 1.755e9),
    "H200": Gpu("sm_90", 4.8e12, 132, 1.755e9),
    "B200": Gpu("sm_100", 8.0e12, 148, 1.85e9),
    "MI300X": Gpu("gfx942", 5.3e12, 304, 2.1e9, 64, 1 << 17, 4),
}
"""Values from the manufacturers' data sheets."""


@dataclass(frozen=True)
class Code:
    """Demands of a kernel: bytes to move and machine instructions per parameter, and the shape of its blocks."""

    bytes: float
    instructions: float
    threads: int
    elements: float
    registers: int

    def resident(self, gpu: Gpu) -> int:
        """Return the number of threads that a unit of `gpu` holds at once. Registers come in groups of eight."""
        block = 8 * math.ceil(self.registers / 8) * self.threads
        return self.threads * min(gpu.registers // block, MOST_THREADS // self.threads)


def read_code(path: Path = CODE) -> dict[tuple[str, str], Code]:
    """Return the demands by target and storage (``"8bit"``, ``"8bit remainder16"``)."""
    with path.open(newline="") as file:
        return {
            (row["target"], row["storage"]): Code(
                float(row["bytes"]),
                float(row["instructions"]),
                int(row["threads"]),
                float(row["elements"]),
                int(row["registers"]),
            )
            for row in csv.DictReader(file)
        }


def seconds(code: Code, gpu: Gpu, elements: int) -> tuple[float, str]:
    """Return the time of a kernel over `elements` parameters, and its bound.

    The bound is ``"bytes"``, ``"instructions"`` or ``"waiting"``.
    """
    at_once = gpu.units * code.resident(gpu) * code.elements
    a_thread = LATENCY + code.elements * code.instructions * gpu.pace / gpu.clock
    bounds = {
        "bytes": elements * code.bytes / (REACHED * gpu.bandwidth),
        "instructions": elements * code.instructions / gpu.instructions,
        "waiting": elements / at_once * a_thread,
    }
    longest = max(bounds, key=bounds.__getitem__)
    return LAUNCH + bounds[longest], longest


def present(bandwidth: float) -> Gpu:
    """Return the present GPU with the measured bandwidth of a copy."""
    import torch

    found = torch.cuda.get_device_properties(0)
    if torch.version.hip is not None:
        target, amd = found.gcnArchName.split(":")[0], (64, 1 << 17, 4)
    else:
        target, amd = f"sm_{found.major}{found.minor}", ()
    clock = float(getattr(found, "clock_rate", 1.755e6)) * 1e3
    return Gpu(target, bandwidth / REACHED, found.multi_processor_count, clock, *amd)


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
