"""The GPU check runs end to end in Triton's interpreter, so that it keeps working."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.marks import NEEDS_TRITON

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
pytestmark = NEEDS_TRITON


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
    sections = ["bits", "step_float32", "step_bfloat16", "offload", "train"]
    assert {r["section"]: r["result"] for r in results} == dict.fromkeys(sections, "passed")
    assert (tmp_path / "step_float32.csv").read_text().startswith("workload,optimizer,")
    offloaded = {row["optimizer"]: row for row in json.loads((tmp_path / "offload.json").read_text())["rows"]}
    parameters = offloaded["offload"]["parameters"]
    assert offloaded["on the device"]["MB out"] == offloaded["on the device"]["MB in"] == 0
    assert offloaded["offload"]["MB out"] == pytest.approx(4e-6 * parameters)  # bf16 gradients and weights
    assert offloaded["offload"]["MB in"] == pytest.approx(2e-6 * parameters)
    runs = json.loads((tmp_path / "train.json").read_text())["runs"]
    assert len(runs) == 12
    assert all(5.8 < run["losses"][-1] < math.log(512) for run in runs)  # a little better than guessing


def test_a_section_that_fails_is_told_and_the_others_run(tmp_path: Path) -> None:
    done = run(tmp_path, PYTHON="false")
    assert done.returncode == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert [r["result"] for r in results] == ["failed"] * 5
    assert "bits             failed" in done.stdout


def test_the_predicted_times_are_those_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each is the longer of two times, from what the code asks for."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    model = importlib.import_module("gpu_model")
    codes, page = model.read_code(), (ROOT / "docs" / "results" / "gpu.md").read_text()
    said = {"8bit, bf16 weights, 16-bit remainder": "8bit remainder16"}
    rows = re.findall(r"^\| ([^|]+) \| (\d+ \| \d+ \| \d+ \| \d+ \| \d+) \|$", page, re.M)
    assert len(rows) == 6
    for name, times in rows:
        found = []
        for gpu in model.GPUS.values():
            code = codes[gpu.target, said.get(name, name)]
            seconds, bound = model.seconds(code, gpu, 1 << 24)
            moving = (1 << 24) * code.bytes / (0.85 * gpu.bandwidth)
            assert (seconds == pytest.approx(5e-6 + moving)) == (bound == "bytes")
            assert seconds >= 5e-6 + moving * (1 - 1e-9)
            found.append(f"{1e6 * seconds:.0f}")
        assert " | ".join(found) == times, name
