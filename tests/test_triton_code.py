"""What Triton makes of generated kernels for GPUs that need not be there (``tests/support/triton_code.py``)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.processes import environment

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
EVERY = ["--every", "90", "80", "100"] if "HALFULP_EVERY_CASE" in os.environ else ["90", "80"]
EXACT = {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.rn.f32", "sqrt.rn.f32"}
PACKED = {"add.rn.f32x2", "sub.rn.f32x2", "mul.rn.f32x2"}
"""Of sm_100: two roundings in one instruction."""


def test_code(tmp_path: Path) -> None:
    """Compiled down to machine code for several architectures, it rounds every operation.

    No contraction, no approximation, no flushing of subnormals: what the bits of the reference ask for.
    """
    clean = {k: v for k, v in environment().items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "support.triton_code", *EVERY],
        env={**clean, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    compiled: list[dict[str, Any]] = json.loads(done.stdout)
    assert {str(c["capability"]) for c in compiled} == {a for a in EVERY if a.isdigit()}
    for code in compiled:
        used, name = code["instructions"], f"{code['case']} for sm_{code['capability']}"
        assert code["cubin"] > 1000, name
        floating = {i for i in used if i.endswith(("f32", "f64", "f16", "bf16", "f32x2"))}
        arithmetic = {i for i in floating if i.split(".")[0] in {"add", "sub", "mul", "div", "sqrt", "fma", "mad"}}
        assert arithmetic <= EXACT | (PACKED if code["capability"] == 100 else set()), name
        others = {i.split(".")[0] for i in floating - arithmetic}
        assert others <= {"setp", "selp", "mov", "cvt", "abs", "neg", "testp", "ld", "st"}, name  # none rounds
        assert not [i for i in used if "ftz" in i or "approx" in i or "full" in i], name
        assert code["spilled"] == 0, name
        wide = used.get("ld.global.v4.b32", 0) > 0
        assert wide == code["aligned"], f"{name}: loads are wide where rows are aligned, and only there"
