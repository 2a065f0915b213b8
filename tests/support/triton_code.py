"""Compile Triton kernels for GPUs that need not be present, and describe their code.

Run as a module from the repository's root, in a process without ``TRITON_INTERPRET``::

    PYTHONPATH=tests python -m support.triton_code sm_80 sm_90 gfx942          sample cases, as JSON
    PYTHONPATH=tests python -m support.triton_code --every sm_90 gfx942        every program of every optimizer too
    PYTHONPATH=tests python -m support.triton_code --table sm_90               optimizers in 8 bits, as a table
    PYTHONPATH=tests python -m support.triton_code --csv sm_90 gfx942          AdamW in every format, for gpu_model.py

The first architecture gets every case, on tensors with aligned rows. The others get four cases, on any tensors, or all
with ``--every``.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
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
from halfulp.kernels.triton import branches_of, found_member, member_of
from halfulp.kernels.triton_launch import Kind
from halfulp.kernels.triton_plan import StoredAs
from halfulp.kernels.triton_source import kernel_of
from halfulp.kernels.triton_stages import StagedMember
from halfulp.kernels.triton_tiles import fold, fold_columns
from halfulp.numbers.formats import FRIENDLY, Format, resolve_name
from halfulp.numbers.scaling import Scaling
from halfulp.rules.program import Program
from support.kernel_cases import Case, make_step
from support.program_cases import PROGRAMS, make_program_step
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
    """Return the kind of a program's kernel, with or without aligned rows and tensors."""
    member = member_of(program, step, aligned)
    assert not isinstance(member, str), member
    return replace(member.kind, plan=replace(member.kind.plan, aligned=aligned))


def compile_kind(kind: Kind, target: str) -> dict[str, Any]:
    """Return what the code of a kernel does: its instructions by name, registers and other machine code figures.

    Parameters
    ----------
    kind
        The kind of the kernel.
    target
        ``sm_90`` and the like for NVIDIA, with PTX instructions, or ``gfx942`` and the like for AMD.
    """
    levels = {f"levels{k}": "*fp32" for k in range(len(kind.formats))}
    numbers = "*fp64" if kind.program.sums else "*i32"
    signature = {"lines": "*i64", "numbers": numbers, "scalars": "*fp32", "given": "*fp32", **levels, "tensors": "i32"}
    source = ASTSource(
        kernel_of(kind.program), {**signature, **dict.fromkeys(kind.constants, "constexpr")}, kind.constants
    )
    found = compile_source(source, target, kind.options, kind.plan.tiles * kind.plan.padded)
    return {**found, "aligned": kind.plan.aligned}


def compile_fold(kernel: Any, constants: dict[str, Any], target: str) -> dict[str, Any]:
    """Return what the code of a kernel that folds sums does. See :func:`compile_kind`."""
    signature = {"lines": "*i64", "numbers": "*fp64", "folded": "*fp64", "tensors": "i32"}
    source = ASTSource(kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)
    return {**compile_source(source, target, lambda lanes: {"enable_fp_fusion": False}, 1024), "aligned": False}


def compile_source(source: ASTSource, target: str, options_of: Any, elements_a_program: int) -> dict[str, Any]:
    """Compile a kernel, and return what its code does."""
    amd = target.startswith("gfx")
    gpu = GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    options = options_of(gpu.warp_size)
    compiled = triton.compile(source, target=gpu, options=options)
    threads = gpu.warp_size * options.get("num_warps", 4)
    elements = elements_a_program / threads
    common = {"target": target, "threads": threads, "elements": elements}
    if amd:
        return {**common, **amd_code(compiled.asm["amdgcn"], elements), "binary": len(compiled.asm["hsaco"])}
    ptx = compiled.asm["ptx"]
    return {
        **common,
        "instructions": Counter(re.findall(r"^\s+(?:@!?%\S+ )?([a-z][\w.:]*)", ptx, re.M)),
        "loaded": moved(ptx, "ld") / elements,
        "stored": moved(ptx, "st") / elements,
        **machine_code(compiled.asm["cubin"], elements),
    }


def amd_code(text: str, elements: float) -> dict[str, Any]:
    """Return what an AMD kernel's machine code does, with instruction names without encodings."""
    found = re.findall(r"^\t((?:v|s|ds|global|flat|buffer|scratch)_\w+)", text, re.M)
    names = Counter(re.sub(r"_(?:e32|e64|dpp|sdwa|e64_dpp)$", "", name) for name in found)

    def field(name: str) -> int:
        return int(re.search(rf"{name}:?\s+(\d+)", text).group(1))  # type: ignore[union-attr]

    spilled = field(r"\.vgpr_spill_count") + field(r"\.sgpr_spill_count")
    return {
        "instructions": names,
        "denormals kept": field(r"\.amdhsa_float_denorm_mode_32") == field(r"\.amdhsa_float_denorm_mode_16_64") == 3,
        "to nearest even": field(r"\.amdhsa_float_round_mode_32") == field(r"\.amdhsa_float_round_mode_16_64") == 0,
        "registers": field(r"\.vgpr_count"),
        "spilled": 4 * spilled + field(r"\.private_segment_fixed_size"),
        "machine instructions": sum(names.values()) / elements,
    }


def moved(ptx: str, way: str) -> int:
    """Return the bytes that a thread loads from or stores to tensors. These accesses are masked, unlike tables'."""
    found = re.findall(rf"^\s+@!?%\S+ {way}\.global(?:\.v(\d))?\.(b\d+)", ptx, re.M)
    return sum(int(count or 1) * SIZES[size] for count, size in found)


def machine_code(cubin: bytes, elements: float) -> dict[str, float]:
    """Return registers, bytes of spills and instructions per element of the output of ``ptxas``."""
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
    return {"registers": registers, "spilled": local, "machine instructions": count / elements, "binary": len(cubin)}


def of_case(case: Case, aligned: bool) -> Kind:
    """Return the kind of a case's launch."""
    step = make_step(case)
    program = branches_of(step.binding.rule, step.binding, measuring=False).choose(step.scalars)
    return kind_of(step, program, aligned)


def of_variants() -> Iterator[tuple[str, Kind]]:
    """Yield every program of every elementwise rule once, with its name, with 8-bit states and aligned rows."""
    seen = set()
    for variant in ELEMENTWISE:
        step = variant.step((4, 1024))
        for program in branches_of(variant.rule, step.binding, measuring=False).programs:
            if program.code not in seen:
                seen.add(program.code)
                yield variant.name, kind_of(step, program, True)


def of_courses(every: bool) -> Iterator[tuple[str, Kind]]:
    """Yield the kernels of rules with sums or numbers in their update, or those of Adafactor with momentum."""
    seen = set()
    for variant in PROGRAMS:
        apart = variant.numbers or not variant.rule.elementwise
        if not apart or not (every or (variant.name == "Adafactor" and variant.hyper["momentum"])):
            continue
        step = make_program_step(variant, "8bit", "stochastic", (64, 1024))
        for program in branches_of(variant.rule, step.binding, measuring=False).programs:
            member = found_member(program, step, True)
            assert isinstance(member, StagedMember), member
            for kind in (*member.kind.passes, *(one.kind for one in (*member.loads, *member.stores))):
                if kind not in seen:
                    seen.add(kind)
                    yield f"{variant.name}: {kind.program.digest}", kind
        if not every:
            return


FOLDS: list[tuple[str, Any, dict[str, Any]]] = [
    ("fold", fold, {"WIDTH": 1024, "LARGEST": False}),
    ("fold of short rows", fold, {"WIDTH": 4, "LARGEST": False}),
    ("fold of the largest", fold, {"WIDTH": 1024, "LARGEST": True}),
    ("fold of columns", fold_columns, {"HEIGHT": 16, "WIDTH": 128}),
]


def bound(kind: Kind) -> float:
    """Return the bytes per parameter that a step must move: parameter and states in and out, the gradient in."""
    states = sum(f.bits / 8 + ((1 if s.pow2 else 4) / s.block if f.scaled else 0) for f, s in _stored(kind))
    gradient, weight = (4 if stored.float32 else 2 for stored in kind.stored[-2:])
    ways = (kind.program.param is not None) + kind.program.reads("param")
    return gradient + ways * (weight + kind.plan.master / 8) + 2 * states


def _stored(kind: Kind) -> Iterator[tuple[Format, StoredAs]]:
    return zip(kind.formats, kind.stored, strict=False)


def storages() -> Iterator[tuple[str, Kind]]:
    """Yield AdamW in every format by short name with fp32 parameters, and in 8 bits with bf16 parameters."""
    for name in FRIENDLY:
        formats = tuple(resolve_name(name, signed=signed) for signed in (True, False))
        yield name, of_case(replace(BASE, formats=formats, shape=(4, 1024)), True)
    case = replace(BASE, formats=("8bit", "8bit"), param_dtype=torch.bfloat16, shape=(4, 1024))
    yield "8bit stochastic", of_case(replace(case, param_rounding="stochastic"), True)
    for bits in (8, 16):
        kind = of_case(case, True)
        yield f"8bit remainder{bits}", replace(kind, plan=replace(kind.plan, master=bits))


def write_csv(targets: list[str]) -> None:
    """Write what AdamW's kernels require of a GPU as CSV, for ``benchmarks/gpu_model.py``."""
    out = csv.writer(sys.stdout)
    out.writerow(["target", "storage", "threads", "elements", "registers", "spilled", "instructions", "bytes"])
    for target in targets:
        for name, kind in storages():
            code = compile_kind(kind, target)
            instructions = f"{code['machine instructions']:.2f}"
            shape = [code["threads"], f"{code['elements']:.0f}", code["registers"], code["spilled"]]
            out.writerow([target, name, *shape, instructions, f"{bound(kind):.4f}"])


def table(target: str) -> str:
    """Return a Markdown table of the library's optimizers in 8 bits, with their programs for default arguments."""
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
        code = compile_kind(kind, target)
        requested = " | ".join(f"{code[way]:.2f}" if way in code else "" for way in ("loaded", "stored"))
        lines.append(
            f"| {name} | {len(kind.formats)} | {code['registers']} | {code['spilled']} | "
            f"{code['machine instructions']:.0f} | {requested} | {bound(kind):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", help="architectures: sm_80, sm_90, sm_100, gfx942 ...")
    parser.add_argument("--every", action="store_true", help="every program of every optimizer, too")
    parser.add_argument("--table", action="store_true", help="a table instead of JSON")
    parser.add_argument("--csv", action="store_true", help="AdamW in every format, as CSV")
    args = parser.parse_args()
    if args.table:
        print("\n\n".join(table(target) for target in args.targets))
        return
    if args.csv:
        write_csv(args.targets)
        return
    first, *others = args.targets
    kinds = [(case.id, of_case(case, True), first) for case in SAMPLE]
    kinds += [(case.id, of_case(case, False), target) for target in others for case in SAMPLE[:4]]
    if args.every:
        kinds += [(name, kind, target) for target in args.targets for name, kind in of_variants()]
    of_nvidia = [target for target in args.targets if target.startswith("sm_")] if args.every else [first]
    kinds += [(name, kind, target) for target in of_nvidia for name, kind in of_courses(args.every)]
    found = [{"case": name, **compile_kind(kind, target)} for name, kind, target in kinds]
    found += [
        {"case": name, **compile_fold(kernel, constants, target)}
        for target in of_nvidia for name, kernel, constants in FOLDS
    ]  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
