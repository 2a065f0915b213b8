"""The environment of a comparison, for reproducing it or explaining a difference."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

__all__ = ["cores", "describe", "processor"]

PACKAGES = ("halfulp", "torch", "transformers", "tokenizers", "numpy", "scipy", "safetensors")


def cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def describe(corpus: dict[str, Any], tokens: dict[str, Any]) -> dict[str, Any]:
    """Return the environment of a run, for ``environment.json``."""
    import torch

    return {
        "command": shlex.join(["halfulp", *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "text": corpus,
        "tokens": tokens,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of the processor, as reported by the system."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
