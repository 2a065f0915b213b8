"""Compile the C kernels, for the wheel and for development. Needs a C compiler, but not torch.

``python hatch_build.py`` builds in place, into ``src/halfulp/kernels``. As a build hook of hatchling it does the same
and gives the wheel its platform tag. Without a compiler the package is built without kernels and reports this at run
time (``halfulp.kernels.backends()``). ``HALFULP_BUILD=require`` makes that an error, and ``HALFULP_BUILD=skip`` builds
no kernels. ``HALFULP_SANITIZE=address,undefined`` (or ``thread``) builds with the compiler's sanitizers, whose runtime
Python then needs in ``LD_PRELOAD`` (``tests/test_sanitizers.py``).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script, outside a build
    BuildHookInterface = object

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "src" / "halfulp" / "kernels"
LIBRARY = "_cpu.so"
FLAGS = ["-std=gnu11", "-fPIC", "-fvisibility=hidden", "-pthread"]
EXACT = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
"""Each operation rounds separately. The last two only let `sqrtf` and conversions become single instructions."""
PARTS = 4
"""Number of separately compiled parts of the generated code (``HU_PARTS``)."""
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
X86 = {"avx2": ["-mavx2", "-mf16c"], "avx512": AVX512, "avx512vbmi": [*AVX512, "-mavx512vbmi"]}


def compiler() -> list[str] | None:
    """Return the C compiler as a command: ``$CC``, else the first of cc, gcc, clang; ``None`` if there is none."""
    for candidate in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if candidate and shutil.which(shlex.split(candidate)[0]):
            return shlex.split(candidate)
    return None


def fingerprint(sources: Path) -> str:
    """Return a hash of all C sources. ``kernels/native.py`` uses it to detect a library built from other sources."""
    digest = hashlib.sha256()
    for path in sorted(sources.glob("*.[ch]")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build(target: Path, sanitize: str = "", isas: Iterable[str] = ("baseline", *X86)) -> str | None:
    """Compile a library atomically. Return the reason if it fails, or ``None``.

    Parameters
    ----------
    target
        Path of the library.
    sanitize
        Sanitizers, as for ``-fsanitize``.
    isas
        Instruction sets that the library can choose from. Those of another architecture are skipped.
    """
    command = compiler()
    if command is None:
        return "no C compiler was found (set CC, or install cc, gcc or clang)"
    x86 = X86 if platform.machine().lower() in ("x86_64", "amd64") else {}
    flags_of = {"baseline": [], **{name: flags for name, flags in x86.items() if name in isas}}
    checks, optimize = [], ["-O3"]
    if sanitize:  # several threads share tensors of a few hundred elements too
        checks = [f"-fsanitize={sanitize}", "-fno-sanitize-recover", "-fno-omit-frame-pointer", "-g"]
        optimize = ["-O1", "-DGRAIN=512"]
    missing = [f"-DHU_WITHOUT_{name}" for name in X86 if name not in flags_of]
    with tempfile.TemporaryDirectory() as folder:
        jobs = {"driver": ("driver.c", [f'-DHU_SOURCES="{fingerprint(PACKAGE / "csrc")}"', *missing])}
        for name, flags in flags_of.items():
            jobs[f"step_{name}"] = ("step.c", [f"-DHU_ISA={name}", *flags])
            for part in range(PARTS):
                jobs[f"programs_{name}_{part}"] = ("programs.c", [f"-DHU_ISA={name}", f"-DHU_PART={part}", *flags])
        common, commands = [*command, *FLAGS, *optimize, *checks, *EXACT], {}
        for name, (source, flags) in jobs.items():
            made = str(Path(folder) / f"{name}.o")
            commands[made] = [*common, *flags, "-c", str(PACKAGE / "csrc" / source), "-o", made]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(lambda c: subprocess.run(c, capture_output=True, text=True), commands.values()))
        if any(one.returncode for one in compiled):
            return f"{command[0]} failed: {''.join(one.stderr for one in compiled).strip()}"
        linked = target.with_suffix(".new")
        link = [*command, *checks, "-shared", "-pthread", *commands, "-o", str(linked), "-lm"]
        done = subprocess.run(link, capture_output=True, text=True)
        if done.returncode:
            return f"{command[0]} failed to link: {done.stderr.strip()}"
        linked.replace(target)
    return None


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc]
    """Hatchling's hook: build the library and put it into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Run before a wheel (or an editable install) is built."""
        wish = os.environ.get("HALFULP_BUILD", "")
        target = PACKAGE / LIBRARY
        reason = "HALFULP_BUILD=skip" if wish == "skip" else build(target)
        if reason is not None:
            target.unlink(missing_ok=True)
            if wish == "require":
                raise RuntimeError(f"the CPU kernels were not built: {reason}")
            self.app.display_warning(f"halfulp is built without its CPU kernels: {reason}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(str(target.relative_to(ROOT)))


if __name__ == "__main__":
    problem = build(PACKAGE / LIBRARY, os.environ.get("HALFULP_SANITIZE", ""))
    if problem is not None:
        sys.exit(problem)
    print(PACKAGE / LIBRARY)
