"""Predicted time of a kernel on a GPU: the longer of moving its bytes and issuing its instructions.

The code's demands are in ``docs/results/gpu_code.csv`` (written by ``tests/support/triton_code.py``). A GPU's
capacities are a row of :data:`GPUS`, or are read from the present GPU. ``step_gpu.py`` prints the prediction beside its
measurement, so that a run can refute it:

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
"""Share of the peak bandwidth that a large copy reaches, and thus the best that a kernel can reach."""
LAUNCH = 5e-6
"""Seconds per kernel that are due to neither bytes nor instructions."""


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
        Instruction lanes that a unit issues per clock: four warps of 32, or one wavefront of 64 on AMD, whose four
        vector units take four clocks each.
    """

    target: str
    bandwidth: float
    units: int
    clock: float
    lanes: int = 128

    @property
    def instructions(self) -> float:
        """Single-lane instructions issued per second."""
        return self.units * self.clock * self.lanes


GPUS = {
    "A100 SXM 80 GB": Gpu("sm_80", 2.039e12, 108, 1.41e9),
    "H100 SXM": Gpu("sm_90", 3.35e12, 132, 1.755e9),
    "H200": Gpu("sm_90", 4.8e12, 132, 1.755e9),
    "B200": Gpu("sm_100", 8.0e12, 148, 1.85e9),
    "MI300X": Gpu("gfx942", 5.3e12, 304, 2.1e9, 64),
}
"""Values from the manufacturers' data sheets."""


@dataclass(frozen=True)
class Code:
    """Demands of a kernel per parameter: bytes to move, and machine instructions."""

    bytes: float
    instructions: float


def read_code(path: Path = CODE) -> dict[tuple[str, str], Code]:
    """Return the demands by target and storage (``"8bit"``, ``"8bit remainder16"``)."""
    with path.open(newline="") as file:
        return {
            (row["target"], row["storage"]): Code(float(row["bytes"]), float(row["instructions"]))
            for row in csv.DictReader(file)
        }


def seconds(code: Code, gpu: Gpu, elements: int) -> tuple[float, str]:
    """Return the time of a kernel over `elements` parameters, and its bound: ``"bytes"`` or ``"instructions"``."""
    moving, issuing = elements * code.bytes / (REACHED * gpu.bandwidth), elements * code.instructions / gpu.instructions
    return LAUNCH + max(moving, issuing), "bytes" if moving >= issuing else "instructions"


def present(bandwidth: float) -> Gpu:
    """Return the present GPU with the measured bandwidth of a copy."""
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
