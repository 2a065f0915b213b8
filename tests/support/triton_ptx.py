"""Compile the Triton step for a GPU that need not be there, and print what its PTX does, as JSON.

Run as a script, in a process without ``TRITON_INTERPRET``: ``python tests/support/triton_ptx.py 80 90``. For every
case and every architecture: the instructions by name, and the size of the machine code that ``ptxas`` made of them. The
first architecture gets every case, on tensors with aligned rows; the others get four, on any tensors.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from halfulp.kernels import triton as backend
from halfulp.kernels.triton_kernel import step_kernel
from halfulp.kernels.triton_plan import plan_of, tiling
from halfulp.numbers.scaling import Scaling
from support.kernel_cases import Case, make_step

BASE = Case()
COMPILED = [
    BASE,
    replace(BASE, formats=("fp4", "4bit"), scaling=Scaling("fp32"), rounding="nearest"),
    replace(BASE, formats=("int8", "int8")),
    replace(BASE, formats=("int4", "fp16"), param_dtype=torch.bfloat16, param_rounding="stochastic"),
    replace(BASE, formats=("bf16", "fp32"), param_dtype=torch.float16, maximize=True),
    replace(BASE, scaling=(Scaling("pow2", "block", 64), Scaling("fp32", "block", 96))),
    replace(BASE, scaling=Scaling("fp32", "row"), hyper=(("decoupled_weight_decay", False),)),
    replace(BASE, rule="lion", formats=("fp8",)),
    replace(BASE, rule="sgd", formats=("8bit",), hyper=(("nesterov", True), ("weight_decay", 0.1))),
    replace(BASE, rule="sgd", formats=(), hyper=(("momentum", 0.0),)),
]
SIGNATURE = {"table": "*i64", "skipped": "*i64", "levels0": "*fp32", "levels1": "*fp32", "tensors": "i32"}


def compile_case(case: Case, capability: int, aligned: bool) -> dict[str, Any]:
    """Instructions of a case's kernel, counted."""
    work = make_step(case)
    cut = tiling(work.binding.param.shape, tuple(s.quantizer for s in work.binding.states))
    assert not isinstance(cut, str), cut
    plan, stored = plan_of(work, cut, aligned)
    constants = backend.constants(plan, stored)
    source = ASTSource(step_kernel, {**SIGNATURE, **dict.fromkeys(constants, "constexpr")}, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=backend.options(plan))
    ptx = compiled.asm["ptx"]
    return {
        "case": case.id,
        "capability": capability,
        "aligned": aligned,
        "rule": case.rule,
        "instructions": Counter(re.findall(r"^\s+(?:@!?%\S+ )?([a-z][\w.:]*)", ptx, re.M)),
        "cubin": len(compiled.asm["cubin"]),
    }


if __name__ == "__main__":
    first, *others = [int(capability) for capability in sys.argv[1:]]
    found = [compile_case(c, first, True) for c in COMPILED]
    found += [compile_case(c, capability, False) for capability in others for c in COMPILED[:4]]
    print(json.dumps(found))
