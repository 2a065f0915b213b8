"""Compile Triton kernels for GPUs that need not be there, and say what their code does.

Run as a module, in a process without ``TRITON_INTERPRET``, from the repository's root::

    PYTHONPATH=tests python -m support.triton_code 80 90                   sample cases, as JSON
    PYTHONPATH=tests python -m support.triton_code --every 80 90 100       every program of every optimizer too
    PYTHONPATH=tests python -m support.triton_code --table 90              optimizers in 8 bits, as a table

The first architecture gets every case, on tensors with aligned rows; the others get four, on any tensors, or with
``--every`` all as well.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from halfulp.kernels.binding import Step
from halfulp.kernels.triton import branches_of, member_of
from halfulp.kernels.triton_launch import Kind
from halfulp.kernels.triton_plan import StoredAs
from halfulp.kernels.triton_source import kernel_of
from halfulp.numbers.formats import Format
from halfulp.numbers.scaling import Scaling
from halfulp.rules.program import Program
from support.kernel_cases import Case, make_step
from support.rules import ELEMENTWISE

BASE = Case()
SAMPLE = [
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
    replace(BASE, rule="ema", formats=("8bit",)),
]
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SIZES = {"b8": 1, "b16": 2, "b32": 4, "b64": 8, "b128": 16}


def kind_of(step: Step, program: Program, aligned: bool) -> Kind:
    """What a program's kernel is compiled for, with or without the promise that rows and tensors are aligned."""
    member = member_of(program, step, aligned)
    assert not isinstance(member, str), member
    return replace(member.kind, plan=replace(member.kind.plan, aligned=aligned))


def compile_kind(kind: Kind, capability: int) -> dict[str, Any]:
    """What the code of a kernel does: instructions of PTX by name, registers and more of the machine code."""
    levels = {f"levels{k}": "*fp32" for k in range(len(kind.formats))}
    numbers = "*fp64" if kind.program.sums else "*i32"
    signature = {"lines": "*i64", "numbers": numbers, "scalars": "*fp32", **levels, "tensors": "i32"}
    source = ASTSource(
        kernel_of(kind.program), {**signature, **dict.fromkeys(kind.constants, "constexpr")}, kind.constants
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=kind.options)
    ptx = compiled.asm["ptx"]
    elements = kind.plan.tiles * kind.plan.padded / (32 * kind.options["num_warps"])
    return {
        "capability": capability,
        "aligned": kind.plan.aligned,
        "instructions": Counter(re.findall(r"^\s+(?:@!?%\S+ )?([a-z][\w.:]*)", ptx, re.M)),
        "loaded": moved(ptx, "ld") / elements,
        "stored": moved(ptx, "st") / elements,
        **machine_code(compiled.asm["cubin"], elements),
    }


def moved(ptx: str, way: str) -> int:
    """Bytes that a thread asks of tensors: its masked loads or stores; those of tables have no mask."""
    found = re.findall(rf"^\s+@!?%\S+ {way}\.global(?:\.v(\d))?\.(b\d+)", ptx, re.M)
    return sum(int(count or 1) * SIZES[size] for count, size in found)


def machine_code(cubin: bytes, elements: float) -> dict[str, float]:
    """Registers, bytes of spills, and instructions an element, of what ``ptxas`` made."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dump(option: str) -> str:
            return subprocess.run(
                [TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True
            ).stdout

        usage, code = dump("--dump-resource-usage"), dump("-sass")
    count = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+[@A-Z]", code, re.M))
    registers, local = (int(n) for n in re.search(r"REG:(\d+).*LOCAL:(\d+)", usage).groups())  # type: ignore[union-attr]
    return {"registers": registers, "spilled": local, "machine instructions": count / elements, "cubin": len(cubin)}


def of_case(case: Case, aligned: bool) -> Kind:
    """The kind of a case's launch."""
    step = make_step(case)
    program = branches_of(step.binding.rule, step.binding, measuring=False).choose(step.scalars)
    return kind_of(step, program, aligned)


def of_variants() -> Iterator[tuple[str, Kind]]:
    """Every program of every rule that is elementwise, once, with states in 8 bits and aligned rows; and its name."""
    seen = set()
    for variant in ELEMENTWISE:
        step = variant.step((4, 1024))
        for program in branches_of(variant.rule, step.binding, measuring=False).programs:
            if program.code not in seen:
                seen.add(program.code)
                yield variant.name, kind_of(step, program, True)


def bound(kind: Kind) -> float:
    """Bytes a parameter that a step has to move: parameter and states in and out, the gradient in."""
    states = sum(f.bits / 8 + ((1 if s.pow2 else 4) / s.block if f.scaled else 0) for f, s in _stored(kind))
    return 4 + 4 * (kind.program.param is not None) + 4 * kind.program.reads("param") + 2 * states


def _stored(kind: Kind) -> Iterator[tuple[Format, StoredAs]]:
    return zip(kind.formats, kind.stored, strict=False)


def table(capability: int) -> str:
    """The optimizers of the library in 8 bits, in Markdown: the program that each has without further arguments."""
    lines = [
        "| rule | states | registers | spilled B | instructions an element | bytes loaded | stored | bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    named: dict[str, Kind] = {}
    for variant in ELEMENTWISE:
        step = variant.step((4, 1024))
        branches = branches_of(variant.rule, step.binding, measuring=False)
        named.setdefault(variant.name, kind_of(step, branches.choose(step.scalars), True))
    for name, kind in sorted(named.items()):
        code = compile_kind(kind, capability)
        lines.append(
            f"| {name} | {len(kind.formats)} | {code['registers']} | {code['spilled']} | "
            f"{code['machine instructions']:.0f} | {code['loaded']:.2f} | {code['stored']:.2f} | {bound(kind):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capabilities", nargs="+", type=int, help="architectures: 80, 90, 100 ...")
    parser.add_argument("--every", action="store_true", help="every program of every optimizer, too")
    parser.add_argument("--table", action="store_true", help="a table instead of JSON")
    args = parser.parse_args()
    if args.table:
        print("\n\n".join(table(capability) for capability in args.capabilities))
        return
    first, *others = args.capabilities
    kinds = [(case.id, of_case(case, True), first) for case in SAMPLE]
    kinds += [(case.id, of_case(case, False), capability) for capability in others for case in SAMPLE[:4]]
    if args.every:
        kinds += [(name, kind, capability) for capability in args.capabilities for name, kind in of_variants()]
    print(json.dumps([{"case": name, **compile_kind(kind, capability)} for name, kind, capability in kinds]))


if __name__ == "__main__":
    main()
