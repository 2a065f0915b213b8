"""The C kernels under AddressSanitizer with UBSan and under ThreadSanitizer, and without compiler warnings.

Each test builds the library and runs random kernel cases, states and optimizers on it, in another process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hatch_build
import pytest

from halfulp.kernels import native
from support.processes import environment
from support.seeds import many

COUNT = 100 * many("HALFULP_FUZZ", 1)
RUNTIMES = {"address,undefined": "libasan.so", "thread": "libtsan.so"}
CSRC = Path(hatch_build.PACKAGE) / "csrc"


def runtime(name: str) -> str | None:
    """Path of a sanitizer's runtime library, if the compiler has it."""
    command = hatch_build.compiler()
    if command is None:
        return None
    found = subprocess.run([*command, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return found if os.path.isabs(found) else None


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", RUNTIMES)
def test_nothing_is_found(sanitize: str, tmp_path: Path) -> None:
    preload = runtime(RUNTIMES[sanitize])
    if preload is None or native.why_not() is not None:
        pytest.skip(f"the compiler has no {RUNTIMES[sanitize]}")
    library = tmp_path / "_cpu.so"
    assert hatch_build.build(library, sanitize, native.isas()[:1]) is None
    # without the C++ library before torch's, AddressSanitizer ends the process where torch throws an exception
    libraries = " ".join(filter(None, (preload, runtime("libstdc++.so.6"))))
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "ignore_noninstrumented_modules=1"}  # torch's threads
    env = environment(LD_PRELOAD=libraries, HALFULP_ISA=native.isas()[0], **options)
    command = [sys.executable, "-W", "ignore", "-m", "support.sanitized", str(library), str(COUNT)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60 * COUNT)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer cannot run here: the kernel spreads addresses too far")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Sanitizer" not in done.stderr, done.stderr[-4000:]
    assert int(done.stdout.split()[0]) > 40, done.stdout


@pytest.mark.parametrize("source", ["step.c", "driver.c"])
@pytest.mark.parametrize("isa", ["baseline", *hatch_build.X86] if native.why_not() is None else [])
def test_no_warning(source: str, isa: str, tmp_path: Path) -> None:
    if isa != "baseline" and "avx2" not in native.isas():
        pytest.skip("another architecture")
    command = hatch_build.compiler()
    assert command is not None
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
    flags = [*hatch_build.FLAGS, "-O1", *hatch_build.EXACT, *warnings, f"-DHU_ISA={isa}", *hatch_build.X86.get(isa, [])]
    done = subprocess.run(
        [*command, *flags, "-c", str(CSRC / source), "-o", str(tmp_path / "made.o")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("isa", hatch_build.X86 if native.why_not() is None else [])
def test_a_build_for_one_instruction_set_refers_to_no_other(isa: str, tmp_path: Path) -> None:
    if "avx2" not in native.isas():
        pytest.skip("another architecture")
    command = hatch_build.compiler()
    assert command is not None
    left_out = [f"-DHU_WITHOUT_{name}" for name in hatch_build.X86 if name != isa]
    made = tmp_path / "driver.o"
    subprocess.run([*command, *hatch_build.FLAGS, *left_out, "-c", str(CSRC / "driver.c"), "-o", str(made)], check=True)
    symbols = subprocess.run(["nm", "-u", str(made)], capture_output=True, text=True, check=True).stdout.split()
    assert {x for x in symbols if x.startswith("hu_isa_")} == {"hu_isa_baseline", f"hu_isa_{isa}"}
