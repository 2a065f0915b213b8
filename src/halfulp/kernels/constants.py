"""Constants that the C and Triton kernels share with Python.

``python -m halfulp.kernels.generate`` writes ``csrc/constants.h`` from here.
"""

from __future__ import annotations

from halfulp.numbers.rng import GOLDEN, HIGH_WORD, MULTIPLIERS

__all__ = [
    "ABI", "CAP", "FINE", "FLAGS", "GROUP", "KINDS", "MACHINE", "MASTERS", "MAX_REGISTERS", "MAX_SLOTS", "MAX_SUMS",
    "MAX_UNIFORMS", "MAX_VECTORS", "PARTS", "PER", "SCALES", "STRETCHES", "TERMS", "TREE", "UNIT", "header",
]  # fmt: skip

ABI = 5
"""The version of the structs and functions, which the library reports."""
CAP = 1024
"""The number of elements in one pass, and in one segment of a sum (:func:`halfulp.rules.base.total`). Larger tiles take
two passes, in which small blocks must fit this."""
GROUP = 512
"""The number of elements that a pass processes at once, if the tile allows."""
UNIT = 64
"""Loops run over multiples of this number of elements."""
MAX_SLOTS, MAX_SUMS, MAX_REGISTERS, MAX_UNIFORMS = 8, 8, 32, 64
"""Limits of a program. Registers and uniform values are those of the vector machine."""
MAX_VECTORS = 2
"""The maximum number of values with sums of columns in a program, and of column vectors that it reads."""
TREE = 6
"""The number of levels of column sums, adding rows in pairs, that are computed in one go."""
STRETCHES = 16
"""The maximum number of evenly spaced stretches of a codebook on one side of zero."""
PARTS = 4
"""The number of files that generated code is compiled as, so that several compilers run at once."""
KINDS = {"float32": 0, "bfloat16": 1, "float16": 2, "float": 3, "int": 4, "book": 5}
"""The kinds of encoding and decoding."""
FINE = 6
"""A float of 8 bits with fewer than 24 fraction bits (:func:`halfulp.numbers.rounding.grid_constants`)."""
SCALES = {"none": 0, "pow2": 1, "fp32": 2}
PER = {"block": 0, "row": 1, "tensor": 2}
MASTERS = {"none": 0, "remainder8": 8, "remainder16": 16, "fp32": 32}
"""The kinds of master weights of 16-bit parameters, by their bits (:mod:`halfulp.numbers.remainder`)."""
FLAGS = {"reads_param": 1, "writes_param": 2}
TERMS = {"largest": 1, "by_row": 2, "by_column": 4, "square": 8, "product": 16}
"""Flags of a measured value: its largest magnitude, sums of rows, sums of columns, and of squares or products."""
MACHINE = {
    name: number
    for number, name in enumerate((
        "add", "sub", "mul", "div", "neg", "abs", "sqrt", "sign", "max", "min", "lt", "le", "eq", "ne", "and", "or",
        "not", "select", "rounded", "to_float", "add_int", "sub_int", "shift_left", "shift_right", "copy", "save",
        "check", "save_param", "term", "product", "largest_term",
    ))
}  # fmt: skip
"""The instructions of the vector machine, starting with the operations of a program."""


def header() -> str:
    """Return the text of ``csrc/constants.h``."""
    single = {
        "ABI": ABI, "CAP": CAP, "GROUP": GROUP, "UNIT": UNIT, "MAX_SLOTS": MAX_SLOTS, "MAX_SUMS": MAX_SUMS,
        "MAX_REGISTERS": MAX_REGISTERS, "MAX_UNIFORMS": MAX_UNIFORMS, "STRETCHES": STRETCHES, "PARTS": PARTS,
        "MAX_VECTORS": MAX_VECTORS, "TREE": TREE,
    }  # fmt: skip
    hashes = {"GOLDEN": GOLDEN, "HIGH_WORD": HIGH_WORD, "MUL0": MULTIPLIERS[0]}
    groups = [
        {**KINDS, "fine": FINE}, {f"scale_{k}": v for k, v in SCALES.items()}, {f"per_{k}": v for k, v in PER.items()},
        {f"master_{k}": v for k, v in MASTERS.items()}, FLAGS, {f"of_{k}": v for k, v in TERMS.items()}, MACHINE,
    ]  # fmt: skip
    lines = ["/* Written by kernels/generate.py from kernels/constants.py. */", "#ifndef CONSTANTS_H"]
    lines += ["#define CONSTANTS_H", ""]
    lines += [f"#define HU_{name} {value}" for name, value in single.items()]
    lines += [f"#define {name} {value:#x}u" for name, value in hashes.items()]
    for group in groups:
        names = [f"HU_{name.upper()} = {value}" for name, value in group.items()]
        lines += ["enum {", *(f"    {', '.join(names[i : i + 6])}," for i in range(0, len(names), 6)), "};"]
    return "\n".join([*lines, "", "#endif", ""])
