"""Other processes for tests: a piece of code, and modules under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def environment(**more: str) -> dict[str, str]:
    """Return an environment for another process, with the same imports and one thread."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "OMP_NUM_THREADS": "1", **more}


def python(code: str, timeout: float = 600, **env: str) -> str:
    """Return the output of a piece of code, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**env), capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def torchrun(
    module: str, ranks: int, *arguments: str | Path, cwd: Path | None = None, succeeds: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a module of ``support.distributed`` on `ranks` processes, without a network and without a GPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, "-m", f"support.distributed.{module}", *map(str, arguments)],
        capture_output=True, text=True, timeout=600, cwd=cwd, check=False,
        env=environment(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES=""),
    )  # fmt: skip
    assert (done.returncode == 0) == succeeds, done.stderr[-4000:]
    return done
