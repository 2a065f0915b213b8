"""The code that Triton generates for GPUs that need not be present (``tests/support/triton_code.py``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.marks import NEEDS_TRITON
from support.processes import environment

pytestmark = NEEDS_TRITON
EVERY = (
    ["--every", "sm_90", "sm_80", "sm_100", "gfx942"]
    if "HALFULP_EVERY_CASE" in os.environ
    else ["sm_90", "sm_80", "gfx942"]
)
EXACT = {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.rn.f32", "sqrt.rn.f32", "add.rn.f64", "mul.rn.f64"}
PACKED = {"add.rn.f32x2", "sub.rn.f32x2", "mul.rn.f32x2"}
"""Of sm_100: two roundings in one instruction."""
AMD = {
    "add_f32", "sub_f32", "mul_f32", "pk_add_f32", "pk_mul_f32", "cvt_i32_f32", "cvt_u32_f32", "cvt_f16_f32",
    "cvt_f32_f16", "pack_b32_f16",
    "div_scale_f32", "div_fmas_f32", "div_fixup_f32", "rcp_f32", "sqrt_f32", "fma_f32", "fmac_f32",
}  # fmt: skip
"""Vector instructions on floats that gfx942's code may have; those of the last line belong to division and root."""


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
    assert {c["target"] for c in compiled} == {a for a in EVERY if not a.startswith("-")}
    for code in compiled:
        used, name = code["instructions"], f"{code['case']} for {code['target']}"
        assert code["binary"] > 1000, name
        assert code["spilled"] == 0, name
        if code["target"].startswith("gfx"):
            check_amd(code, name)
            continue
        floating = {i for i in used if i.endswith(("f32", "f64", "f16", "bf16", "f32x2"))}
        arithmetic = {i for i in floating if i.split(".")[0] in {"add", "sub", "mul", "div", "sqrt", "fma", "mad"}}
        assert arithmetic <= EXACT | (PACKED if code["target"] == "sm_100" else set()), name
        others = {i.split(".")[0] for i in floating - arithmetic - {"max.f64"}}
        assert others <= {"setp", "selp", "mov", "cvt", "abs", "neg", "testp", "ld", "st"}, name  # none of them rounds
        assert not [i for i in used if "ftz" in i or "approx" in i or "full" in i], name
        wide = used.get("ld.global.v4.b32", 0) > 0
        assert wide == code["aligned"], f"{name}: loads are wide where rows are aligned, and only there"


def check_amd(code: dict[str, Any], name: str) -> None:
    """The wave keeps subnormals and rounds to nearest even; no operation is contracted or approximate.

    AMD has no instruction for an exact quotient or root. The compiler writes the published sequences: a quotient has
    five fused operations around ``v_rcp``, between ``v_div_scale`` and ``v_div_fixup``; a root has two after
    ``v_sqrt``. Another fused operation is a contraction. One more ``v_rcp`` a program is of the integer division that
    finds a tile's row.
    """
    used = {k.removeprefix("v_"): n for k, n in code["instructions"].items() if k.startswith("v_")}
    assert code["denormals kept"], name
    assert code["to nearest even"], name
    assert not [k for k in code["instructions"] if k.startswith(("s_setreg", "s_denorm_mode", "s_round_mode"))], name
    floating = {k for k in used if k.endswith(("f32", "f64", "f16", "bf16")) and not k.startswith(("cmp", "cmpx"))}
    assert floating <= AMD, f"{name}: {floating - AMD}"
    fused = used.get("fma_f32", 0) + used.get("fmac_f32", 0)
    assert fused == 5 * used.get("div_fixup_f32", 0) + 2 * used.get("sqrt_f32", 0), name
    assert used.get("div_scale_f32", 0) == 2 * used.get("div_fixup_f32", 0), name
    assert used.get("div_fmas_f32", 0) == used.get("div_fixup_f32", 0), name
    whole = used.get("cvt_u32_f32", 0)  # of integer division
    assert used.get("rcp_f32", 0) == used.get("div_fixup_f32", 0) + whole, name
