"""Source code of Triton kernels, generated from programs.

:func:`kernel_of` makes the kernel of a :class:`~halfulp.rules.program.Program` when it is first needed. The source
depends only on the program: one line per operation, between the loads and stores that every kernel has. ``triton.jit``
reads sources from :mod:`linecache`, so the source is registered there, under a name that ends in the program's digest.
Equal programs therefore share one kernel, in a process and in Triton's cache on disk.
"""

from __future__ import annotations

import linecache
import math
import struct
from functools import cache
from typing import Any

from halfulp.kernels.triton_plan import Line
from halfulp.rules.program import Op, Program

__all__ = ["kernel_of", "source_of"]

EXPRESSIONS = {
    "param": "param", "grad": "grad", "state": "old{of}",
    "number": "number{of}", "row": "row{of}", "column": "column{of}",
    "scalar": "scalar(scalars, line, {of}, SCALARS)", "constant": "{of}",
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "tl.div_rn({0}, {1})",
    "neg": "negate({0})", "abs": "without_sign({0})", "sqrt": "tl.sqrt_rn({0})", "sign": "sign({0})",
    "max": "tl.where({0} > {1}, {0}, {1})", "min": "tl.where({0} < {1}, {0}, {1})",
    "lt": "{0} < {1}", "le": "{0} <= {1}", "eq": "{0} == {1}", "ne": "{0} != {1}",
    "and": "{0} & {1}", "or": "{0} | {1}", "not": "~{0}", "select": "tl.where({0}, {1}, {2})",
    "bits": "bits_of({0})", "from_bits": "float_of({0})", "rounded": "round_signed({0})",
    "to_float": "{0}.to(tl.float32)", "add_int": "{0} + {of}", "sub_int": "{0} - {1}",
    "shift_left": "{0} << {of}", "shift_right": "{0} >> {of}",
}  # fmt: skip
"""Each operation in Triton, rounded as the program requires. See ``docs/results/gpu.md``."""

TEMPLATE = """\
import triton
import triton.language as tl

from halfulp.kernels.triton_ops import (
    bits_of, float_of, mix_element, negate, round_signed, sign, without_sign, words_of_lane,
)
from halfulp.kernels.triton_tiles import (
    column_values, count_skipped, filled, largest_of, load_float, load_param, load_state, row_values, scalar,
    store_column_sums, store_largest, store_param, store_state, store_sum, this_tensor, tile_of,
)

FIELDS = tl.constexpr({fields})
SCALARS = tl.constexpr({scalars})


@triton.jit(do_not_specialize=["tensors"])
def kernel({arguments}):
    program = tl.program_id(0)
    this = this_tensor(lines, program, tensors, FIELDS)
    line = lines + this.to(tl.int64) * FIELDS
    row, start, rows, cols, flat, element, inside = tile_of(line, program, PLAN)
{load}

{rule}

{store}
"""


def source_of(program: Program) -> str:
    """Return the source of a program's kernel.

    `given` has a flag for each tensor, which says whether it is updated, and the program's numbers, rows and columns.
    """
    place, slots = Line(len(program.states)), range(len(program.states))
    constants = ["PLAN", *(f"SLOT{k}" for k in slots), "GRAD", "STORED"]
    arguments = ["lines", "numbers", "scalars", "given", *(f"levels{k}" for k in slots), "tensors"]
    return TEMPLATE.format(
        fields=place.length,
        scalars=max(1, len(program.scalars)),
        arguments=", ".join([*arguments, *(f"{name}: tl.constexpr" for name in constants)]),
        load=_indented(_load(program, place)),
        rule=_indented([f"v{k} = {_expression(op)}" for k, op in enumerate(program.ops)]),
        store=_indented(_sums(program) if program.sums else _store(program, place)),
    )


TILE = "row, start, rows, cols, flat, inside"


def _load(program: Program, place: Line) -> list[str]:
    """Return the lines that load what the operations read."""
    lines = []
    if program.reads("param"):
        lines.append("param = load_param(line, flat, inside, STORED, PLAN)")
    lines.append(f"grad = load_float(line, {place.GRAD}, flat, inside, GRAD, PLAN)")
    lines += ["if PLAN.maximize:", "    grad = negate(grad)"]
    read = {op.of for op in program.ops if op.name == "state"}
    for k in range(len(program.states)):
        if k in read:
            lines.append(f"old{k} = load_state(line, {place.state(k)}, levels{k}, {TILE}, SLOT{k}, PLAN)")
    lines += [f"number{k} = tl.load(given + {k + 1} * tensors + this)" for k in range(len(program.numbers))]
    lines += [f"row{k} = row_values(given, line, {k}, row, rows)" for k in range(len(program.rows))]
    lines += [f"column{k} = column_values(given, line, {k}, start, inside, PLAN)" for k in range(len(program.columns))]
    return lines


def _is_full(program: Program) -> list[bool]:
    """Return whether each value surely has one number for each element, not one for the tensor or for each row."""
    full: list[bool] = []
    for name, args, _ in program.ops:
        full.append(name in ("param", "grad", "state", "column") or any(full[i] for i in args))
    return full


def _store(program: Program, place: Line) -> list[str]:
    """Return the lines that store the new states and the parameter. `numbers` are the keys of each tensor."""
    full = _is_full(program)
    outputs = {*program.new_states, *([] if program.param is None else [program.param])}
    lines = [f"v{i} = filled(v{i}, PLAN)" for i in sorted(outputs) if not full[i]]
    lines += [f"largest{k} = largest_of(v{i}, inside, SLOT{k}, PLAN)" for k, i in enumerate(program.new_states)]
    found = [f"largest{k}" for k in range(len(program.new_states))]
    if program.checks_grad:
        lines.append("largest = largest_of(grad, inside, GRAD, PLAN)")
        found.append("largest")
    lines.append(f"worst = tl.max({found[0]}, 1)" if found else "worst = row * 0")
    lines += [f"worst = tl.maximum(worst, tl.max({other}, 1))" for other in found[1:]]
    lines.append("good = count_skipped(worst, given + this, line, row, start, rows, cols, PLAN)")
    lines += ["mixed = element", "if PLAN.stochastic:"]
    lines.append("    mixed = mix_element(element, numbers + 2 * this, PLAN.far)")
    for k, i in enumerate(program.new_states):
        words = f"words_of_lane(mixed, line + {place.state(k) + 2}, SLOT{k})"
        lines.append(
            f"store_state(v{i}, largest{k}, good, {words}, line, {place.state(k)}, levels{k}, {TILE}, SLOT{k}, PLAN)"
        )
    if program.param is not None:
        words = f"words_of_lane(mixed, line + {place.PARAM_LANE}, STORED)"
        lines.append(f"store_param(v{program.param}, inside & good, {words}, line, flat, STORED, PLAN)")
    return lines


def _sums(program: Program) -> list[str]:
    """Return the lines that store the sums over each segment, and those of columns over the rows of a program.

    `numbers` are the sums, in float64, one line per sum. Those of columns come after the others.
    """
    lines, columns = [], [one for one in program.sums if one.kind == "columns"]
    segments = [one for one in program.sums if one.kind != "columns"]
    for k, one in enumerate(segments):
        if one.kind == "largest":
            lines.append(f"store_largest(v{one.a}, numbers, line, {k}, {TILE}, PLAN)")
        else:
            other = "None" if one.b is None else f"v{one.b}"
            lines.append(f"store_sum(v{one.a}, {other}, numbers, line, {k}, {TILE}, PLAN)")
    if columns:
        lines.append(f"column_sums = numbers + {len(segments)} * tl.load(line + {Line.SUMS})")
    lines += [f"store_column_sums(v{one.a}, column_sums, line, {k}, {TILE}, PLAN)" for k, one in enumerate(columns)]
    return lines


def _indented(lines: list[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def _expression(op: Op) -> str:
    of: Any = op.of
    if op.name == "constant":
        of = _constant(float(of))
    elif op.name == "add_int":
        of = (int(of) + (1 << 31)) % (1 << 32) - (1 << 31)
    return EXPRESSIONS[op.name].format(*(f"v{i}" for i in op.args), of=of)


def _constant(value: float) -> str:
    """Return an fp32 constant, as its pattern if Triton would read a literal as float64 or lose a sign."""
    if math.isfinite(value) and abs(value) >= 2.0**-126:
        return f"tl.full((), {value!r}, tl.float32)"
    (bits,) = struct.unpack("<i", struct.pack("<f", value))
    return f"float_of(tl.full((), {bits}, tl.int32))"


@cache
def kernel_of(program: Program) -> Any:
    """Return the kernel of a program, ready to launch."""
    return _compiled(program.code, source_of(program), program.digest)


@cache
def _compiled(code: str, source: str, digest: str) -> Any:
    name = f"<halfulp step {digest}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": "halfulp.kernels.triton_generated", "__file__": name}
    exec(compile(source, name, "exec"), namespace)
    return namespace["kernel"]
