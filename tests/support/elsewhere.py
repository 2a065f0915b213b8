"""The C kernels for another architecture, run by an emulator, with one process per step.

:class:`Elsewhere` replaces the library of :mod:`halfulp.kernels.native`. It copies all memory that a step reads to the
emulated process, and copies the results back.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from halfulp.kernels import native
from halfulp.kernels.constants import MAX_UNIFORMS, PARTS
from halfulp.kernels.descriptors import EVEN, FORMAT, SLOT, WORK

CSRC = Path(__file__).resolve().parents[2] / "src" / "halfulp" / "kernels" / "csrc"
TABLES = (
    {"values": 2048} | dict.fromkeys(("levels", "middles", "density", "start", "base"), 1024) | {"even": EVEN.itemsize}
)
"""The bytes of the tables of an 8-bit format. A 4-bit format has 16 values."""


class Elsewhere:
    """A stand-in for the compiled library: ``hu_step``, and the local library's ``hu_find``."""

    def __init__(self, compiler: str, emulator: list[str], folder: Path, flags: list[str]) -> None:
        self.command = [*emulator, str(folder / "replay")]
        self.hu_find = native.library().hu_find
        exact = ["-O2", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-DHU_ISA=baseline"]
        build = [compiler, *exact, *flags, f"-I{CSRC}"]
        parts = [str(folder / f"programs{k}.o") for k in range(PARTS)]
        for k, part in enumerate(parts):
            subprocess.run([*build, f"-DHU_PART={k}", "-c", str(CSRC / "programs.c"), "-o", part], check=True)
        sources = [str(CSRC / "step.c"), str(CSRC / "driver.c"), str(Path(__file__).with_name("replay.c")), *parts]
        subprocess.run([*build, "-static", "-pthread", *sources, "-lm", "-o", self.command[-1]], check=True)

    def hu_step(self, address: int, count: int, threads: int) -> int:
        """Do the library's ``hu_step`` on `count` rows of :data:`WORK` at `address`."""
        rows = np.frombuffer(ctypes.string_at(address, count * WORK.itemsize), WORK)
        lists: dict[int, int] = {}
        formats: dict[int, int] = {}
        data: dict[int, int] = {}
        for row in rows:
            cells = int(row["rows"]) * int(row["cols"])
            data[int(row["param"])] = cells * (2 if row["param_kind"] else 4)
            data[int(row["grad"])] = cells * (2 if row["grad_kind"] else 4)
            data[int(row["scalars"])] = 4 * MAX_UNIFORMS
            data[int(row["skipped"])] = 8
            if row["code"]:
                instructions = ctypes.c_int32.from_address(int(row["code"])).value
                data[int(row["code"])] = 4 * (3 + 5 * instructions)
            lists[int(row["slot"])] = size = int(row["slots"]) * SLOT.itemsize
            for slot in np.frombuffer(ctypes.string_at(int(row["slot"]), size), SLOT):
                at = int(slot["format"])
                formats[at] = FORMAT.itemsize
                form = np.frombuffer(ctypes.string_at(at, FORMAT.itemsize), FORMAT)[0]
                for name, size in TABLES.items():
                    data[int(form[name])] = 64 if form["bits"] == 4 and name == "values" else size
                columns = (row["cols"] + 1) // 2 if form["bits"] == 4 else row["cols"] * (form["bits"] // 8)
                data[int(slot["codes"])] = int(row["rows"]) * int(columns)
                data[int(slot["counts"])] = 16
                if form["scale"]:
                    blocks = int(row["rows"]) * -(-int(row["cols"]) // int(slot["block"])) if slot["block"] else 0
                    scales = {0: blocks, 1: int(row["rows"]), 2: 1}[int(slot["per"])]
                    data[int(slot["scale"])] = scales * (1 if form["scale"] == 1 else 4)
        data.pop(0, None)
        moved = [*formats.items(), *((a, n) for a, n in lists.items() if n)]
        regions = [(address, rows.nbytes), *moved, *((a, n) for a, n in data.items() if n)]
        said = np.array([count, threads, len(formats), len(moved), len(regions)], np.int64).tobytes()
        said += b"".join(np.array(r, np.uint64).tobytes() + ctypes.string_at(*r) for r in regions)
        made = subprocess.run(self.command, input=said, capture_output=True, check=True).stdout
        for at, size in regions[1 + len(moved) :]:
            ctypes.memmove(at, made[:size], size)
            made = made[size:]
        assert not made
        return sum(ctypes.c_int64.from_address(int(at)).value for at in rows["skipped"])
