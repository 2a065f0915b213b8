"""The check for GPUs runs end to end in Triton's interpreter, so that it cannot rot."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), "--dry-run", str(folder)],
        env={**os.environ, "PYTHON": sys.executable, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_it_runs(tmp_path: Path) -> None:
    done = run(tmp_path)
    logs = "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + logs
    results = json.loads((tmp_path / "results.json").read_text())
    assert {r["section"]: r["result"] for r in results} == {"bits": "passed", "step_float32": "passed"}
    assert (tmp_path / "step_float32.csv").read_text().startswith("workload,optimizer,")


def test_a_section_that_fails_is_told_and_the_others_run(tmp_path: Path) -> None:
    done = run(tmp_path, PYTHON="false")
    assert done.returncode == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert [r["result"] for r in results] == ["failed", "failed"]
    assert "bits             failed" in done.stdout
