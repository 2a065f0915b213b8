"""Numbers that kernels in C and in Triton share with Python, said once.

``csrc/constants.h`` is written from here by ``python -m halfulp.kernels.generate``.
"""

from __future__ import annotations

from halfulp.numbers.rng import GOLDEN, HIGH_WORD, MULTIPLIERS

__all__ = [
    "ABI", "CAP", "FINE", "FLAGS", "GROUP", "KINDS", "MACHINE", "MASTERS", "MAX_REGISTERS", "MAX_SLOTS", "MAX_SUMS",
    "MAX_UNIFORMS", "MAX_VECTORS", "PARTS", "PER", "SCALES", "STRETCHES", "TREE", "UNIT", "header",
]  # fmt: skip

ABI = 4
"""Version of the structs and functions, which the library reports."""
CAP = 1024
"""Elements that one pass holds; larger tiles take two passes, in which small blocks must fit this. Sums, too, begin
with that many (:func:`halfulp.rules.base.total`)."""
GROUP = 512
"""Elements that a pass takes at once, where the tile allows."""
UNIT = 64
"""Loops run over multiples of this many elements."""
MAX_SLOTS, MAX_SUMS, MAX_REGISTERS, MAX_UNIFORMS = 8, 4, 32, 64
"""Limits of a program, whose registers and uniform values are those of the vector machine."""
MAX_VECTORS = 2
"""Values of a program for which there are sums of rows or columns; and vectors of columns that it takes."""
TREE = 6
"""Levels of sums of columns, added up in pairs of rows, that are done in one go."""
STRETCHES = 16
"""Most stretches of a codebook of evenly spaced codes, on one side of zero."""
PARTS = 4
"""Files that generated code is compiled as, so that several compilers run at once."""
KINDS = {"float32": 0, "bfloat16": 1, "float16": 2, "float": 3, "int": 4, "book": 5}
"""How codes are made and read."""
FINE = 6
"""A float of 8 bits whose fraction (:func:`halfulp.numbers.rounding.grid_constants`) is not 24 bits."""
SCALES = {"none": 0, "pow2": 1, "fp32": 2}
PER = {"block": 0, "row": 1, "tensor": 2}
MASTERS = {"none": 0, "remainder8": 8, "remainder16": 16, "fp32": 32}
"""What is kept beside a 16-bit parameter, by its bits (:mod:`halfulp.numbers.remainder`)."""
FLAGS = {"reads_param": 1, "writes_param": 2}
MACHINE = {
    name: number
    for number, name in enumerate((
        "add", "sub", "mul", "div", "neg", "abs", "sqrt", "sign", "max", "min", "lt", "le", "eq", "ne", "and", "or",
        "not", "select", "rounded", "to_float", "add_int", "sub_int", "shift_left", "shift_right", "copy", "save",
        "check", "save_param", "term", "plain_term",
    ))
}  # fmt: skip
"""Instructions of the vector machine; the first are the operations of a program."""


def header() -> str:
    """``csrc/constants.h``."""
    single = {
        "ABI": ABI, "CAP": CAP, "GROUP": GROUP, "UNIT": UNIT, "MAX_SLOTS": MAX_SLOTS, "MAX_SUMS": MAX_SUMS,
        "MAX_REGISTERS": MAX_REGISTERS, "MAX_UNIFORMS": MAX_UNIFORMS, "STRETCHES": STRETCHES, "PARTS": PARTS,
        "MAX_VECTORS": MAX_VECTORS, "TREE": TREE,
    }  # fmt: skip
    hashes = {"GOLDEN": GOLDEN, "HIGH_WORD": HIGH_WORD, "MUL0": MULTIPLIERS[0]}
    groups = [
        {**KINDS, "fine": FINE}, {f"scale_{k}": v for k, v in SCALES.items()}, {f"per_{k}": v for k, v in PER.items()},
        {f"master_{k}": v for k, v in MASTERS.items()}, FLAGS, MACHINE,
    ]  # fmt: skip
    lines = ["/* Written by kernels/generate.py from kernels/constants.py. */", "#ifndef CONSTANTS_H"]
    lines += ["#define CONSTANTS_H", ""]
    lines += [f"#define HU_{name} {value}" for name, value in single.items()]
    lines += [f"#define {name} {value:#x}u" for name, value in hashes.items()]
    for group in groups:
        names = [f"HU_{name.upper()} = {value}" for name, value in group.items()]
        lines += ["enum {", *(f"    {', '.join(names[i : i + 6])}," for i in range(0, len(names), 6)), "};"]
    return "\n".join([*lines, "", "#endif", ""])
