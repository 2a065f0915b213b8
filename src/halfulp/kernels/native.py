"""The compiled library: loading it, choosing its instruction set, and sharing torch's threads.

The library is built with the package (``hatch_build.py``) and loaded by :mod:`ctypes`. No compiler runs here. If it is
missing, :func:`why_not` says so. ``HALFULP_ISA`` (``avx512vbmi``, ``avx512``, ``avx2``, ``baseline``) overrides the
choice of the fastest instruction set.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from functools import cache
from pathlib import Path

from halfulp.kernels.constants import ABI
from halfulp.kernels.descriptors import FORMAT, SLOT, WORK

__all__ = ["chosen", "isas", "library", "openmp_of_torch", "why_not"]

PATH = Path(__file__).with_name("_cpu.so")


@cache
def _load() -> ctypes.CDLL | str:
    """Return the library, or the reason why there is none."""
    if not PATH.exists():
        return (
            "there are no compiled kernels, and steps in torch operations are slow: install a C compiler and halfulp "
            "again; in a checkout, python hatch_build.py"
        )
    try:
        lib = ctypes.CDLL(str(PATH))
    except OSError as error:
        return f"{PATH.name} cannot be loaded: {error}"
    lib.hu_isa_name.restype = ctypes.c_char_p
    lib.hu_step.argtypes, lib.hu_step.restype = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int), ctypes.c_int64
    lib.hu_decode.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int)
    lib.hu_encode.argtypes = (
        ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int,
    )  # fmt: skip
    lib.hu_measure.argtypes, lib.hu_measure.restype = lib.hu_step.argtypes, None
    lib.hu_find.argtypes = (ctypes.c_uint64,)
    lib.hu_set_parallel.argtypes = (ctypes.c_void_p,)
    sizes = (ctypes.c_int64 * 3)()
    if lib.hu_abi(sizes) != ABI or list(sizes) != [struct.itemsize for struct in (FORMAT, SLOT, WORK)]:
        return f"{PATH.name} belongs to another version of halfulp: build it again"
    if _stale(lib):
        return f"{PATH.name} was built from other sources than are beside it: run python hatch_build.py"
    wanted = os.environ.get("HALFULP_ISA")
    if lib.hu_choose(wanted.encode() if wanted else None):
        return f"HALFULP_ISA={wanted} is not available; this machine has {', '.join(_names(lib))}"
    lib.hu_set_parallel(None if _forked() else openmp_of_torch())
    if hasattr(os, "register_at_fork"):  # an OpenMP runtime does not survive a fork, so the child uses plain threads
        os.register_at_fork(after_in_child=lambda: lib.hu_set_parallel(None))
    return lib


def _forked() -> bool:
    """Whether this process was forked without an exec since, so that torch's threads may have been the parent's."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return bool(int(fields[6]) & 0x40)  # PF_FORKNOEXEC, cleared by an exec


def _stale(lib: ctypes.CDLL) -> bool:
    """Whether the library was built from other C sources than those present, so that its bits may differ."""
    sources = sorted(PATH.with_name("csrc").glob("*.[ch]"))
    if not sources:
        return False
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    try:
        lib.hu_sources.restype = ctypes.c_char_p
        return bool(lib.hu_sources().decode() != digest)
    except AttributeError:  # an older library
        return True


def library() -> ctypes.CDLL:
    """Return the library. Raise ``RuntimeError`` if there is none."""
    lib = _load()
    if isinstance(lib, str):
        raise RuntimeError(lib)
    return lib


def why_not() -> str | None:
    """Return the reason why there is no library, or ``None`` if there is one."""
    lib = _load()
    return lib if isinstance(lib, str) else None


def _names(lib: ctypes.CDLL) -> list[str]:
    names, i = [], 0
    while (name := lib.hu_isa_name(i)) is not None:
        names.append(name.decode())
        i += 1
    return names


def isas() -> list[str]:
    """Return the instruction sets that this build and machine support, fastest first."""
    return _names(library())


def chosen() -> str:
    """Return the instruction set in use."""
    return os.environ.get("HALFULP_ISA") or isas()[0]


def openmp_of_torch() -> int | None:
    """Return the address of ``GOMP_parallel`` in the OpenMP runtime that torch has loaded, or ``None``.

    A second runtime would run its threads beside torch's, whose workers spin for a while after each operation. With as
    many threads as cores, each step would wait for them.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    paths = dict.fromkeys(line.split()[-1] for line in maps.splitlines() if "/lib" in line and "omp" in line)
    for path in sorted(paths, key=lambda p: "/torch/" not in p):
        try:
            found = ctypes.CDLL(path, mode=getattr(os, "RTLD_NOLOAD", 0) | os.RTLD_NOW).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(found, ctypes.c_void_p).value
    return None
