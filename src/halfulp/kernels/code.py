"""Code for CPUs from programs: C, compiled with the library, and instructions of the vector machine.

Both follow a :class:`~halfulp.rules.program.Program` operation by operation. The loops around them are in
``csrc/loop.h`` and ``csrc/machine.h``. Uniform values are computed beforehand (:func:`uniform_values`) and passed as
fp32 numbers, masks as 0 or 1 and ints as their bit patterns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from halfulp.kernels.constants import FLAGS, MACHINE, MAX_REGISTERS, MAX_SLOTS, MAX_SUMS, MAX_UNIFORMS, MAX_VECTORS
from halfulp.rules.program import TYPES, Floats, Program, evaluate
from halfulp.rules.tracing import ProgramError

__all__ = ["c_function", "flags", "machine_code", "uniform_values"]

INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
CALLS = {
    "sqrt": "sqrtv", "max": "maxf", "min": "minf", "lt": "ltf", "le": "lef", "eq": "eqf", "ne": "nef", "and": "andm",
    "or": "orm", "not": "notm", "select": "self", "bits": "asi", "from_bits": "asf", "rounded": "cvt_rn",
    "to_float": "itof",
}  # fmt: skip
C_TYPES = {"float": "vf", "mask": "vm", "int": "vi"}


def flags(program: Program) -> int:
    """Return ``HU_READS_PARAM`` and ``HU_WRITES_PARAM``. A written parameter is also read, to be restored."""
    writes = program.param is not None
    reads = writes or program.reads("param")
    return reads * FLAGS["reads_param"] | writes * FLAGS["writes_param"]


def uniform_values(program: Program, scalars: Floats, numbers: Sequence[Floats]) -> tuple[Floats, list[Floats]]:
    """Return the computed uniform values of a program's code, a line for each, and the new numbers.

    Parameters
    ----------
    program
        The program.
    scalars
        The program's scalars, a line for each, with one column for all tensors or one for each.
    numbers
        The states of one element in the program's order, each of all tensors.
    """
    values = evaluate(program, {"scalar": scalars, "number": numbers}, only_uniform=True)
    found = np.empty((len(program.uniforms), max(scalars.shape[1], *map(len, numbers), 1)), np.float32)
    for line, i in zip(found, program.uniforms, strict=True):
        line[:] = _as_floats(values[i])
    return found, [_as_floats(values[i]) for i in program.new_numbers]


def _as_floats(value: Any) -> Floats:
    value = np.asarray(value)
    return value.view(np.float32) if value.dtype == np.int32 else value.astype(np.float32)


# ------------------------------------------------------------------------------------------------ C


def _number(x: float) -> str:
    """Return a constant in C, exact to the last bit."""
    if math.isinf(x):
        return "INFINITY" if x > 0 else "-INFINITY"
    return f"{float(x).hex()}f"


def c_function(program: Program) -> str:
    """Return a C function for one piece, named by the program's digest."""
    names: dict[int, str] = {}
    setup, body, results = [], [], []
    for number, index in enumerate(program.uniforms, len(program.rows)):
        names[index] = f"c{number}"
        value = f"setf(w->c[{number}])"
        kind = TYPES[program.ops[index].name]
        value = {"float": value, "mask": f"nef({value}, setf(0.0f))", "int": f"asi({value})"}[kind]
        setup.append(f"const {C_TYPES[kind]} c{number} = {value};")
    reads_param, writes_param = program.reads("param"), program.param is not None
    reads = ["READ_GRAD"] if program.reads("grad") else []
    if reads_param or writes_param:
        reads.append(f"READ_PARAM({int(writes_param)})")
        body.append("const vf p = READ(param);")
    if writes_param:
        body.append("stf(old_param + i, p);")
    for index, op in enumerate(program.ops):
        if index in names:
            continue
        if op.name == "constant":
            names[index] = f"setf({_number(op.of)})"  # type: ignore[arg-type]
        elif op.name == "param":
            names[index] = "p"
        elif op.name == "row":
            names[index] = f"row{op.of}"
            setup.append(f"const vf row{op.of} = setf(w->c[{op.of}]);")
        elif not program.uniform[index]:
            names[index] = f"v{index}"
            kind = C_TYPES[TYPES[op.name]]
            body.append(f"const {kind} v{index} = {_c_value(op.name, [names.get(i, '') for i in op.args], op.of)};")
    if program.checks_grad and not program.sums:
        grad = next(k for k, op in enumerate(program.ops) if op.name == "grad")
        body.append(f"CHECK({names[grad]});")
    for k, index in enumerate(program.new_states):
        if program.ops[index] != ("state", (), k):
            body.append(f"SAVE({k}, {names[index]});")
        body.append(f"LARGEST({k}, {names[index]});")
    if program.param is not None:
        body.append(f"stf(new_param + i, {names[program.param]});")
    for k, (a, b, kind) in enumerate(program.terms):
        if kind == "largest":
            setup.append(f"vi top{k} = seti(0);")
            results.append(f"LARGEST_OF({k});")
            body.append(f"LARGEST_TERM({k}, {names[a]});")
        else:
            body.append(f"TERM({k}, {names[a]});" if b in (a, None) else f"PRODUCT({k}, {names[a]}, {names[b]});")
    loop = "MEASURE_EACH_VECTOR" if program.sums else "FOR_EACH_VECTOR"
    start = f"START({len(program.states)})" if not program.sums else f"MEASURE({len(program.states)})"
    lines = [f"static void p{program.digest}(const hu_piece *w) {{", f"    {start}", *(f"    {x}" for x in setup)]
    lines += [f"    {loop}({' '.join(reads)},", *(f"        {x}" for x in body), "    )"]
    return "\n".join([*lines, *(f"    {x}" for x in results), "}"])


def _c_value(name: str, args: list[str], of: float | int | None) -> str:
    if name == "grad":
        return "READ(grad)"
    if name == "state":
        return f"ldf(state[{of}] + i)"
    if name == "column":
        return f"ldf(w->column[{of}] + i)"
    if name in INFIX:
        return f"{args[0]} {INFIX[name]} {args[1]}"
    if name in CALLS:
        return f"{CALLS[name]}({', '.join(args)})"
    a = args[0]
    return {
        "neg": f"-{a}", "abs": f"asf(absi({a}))", "sign": f"signf({a})", "add_int": f"(vi)((vu){a} + {of}u)",
        "sub_int": f"(vi)((vu){a} - (vu){args[-1]})", "shift_left": f"(vi)((vu){a} << {of})",
        "shift_right": f"{a} >> {of}",
    }[name]  # fmt: skip


# ------------------------------------------------------------------------------------------------ the machine

INPUTS = {"grad": 0, "param": 1, "state": 2, "column": 2 + MAX_SLOTS, "row": 0}
"""The operand numbers of inputs. A row's value is one of the uniform values of a piece."""


@lru_cache(maxsize=256)
def machine_code(program: Program) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return the instructions of a program, and the constants that follow its uniform values.

    Raises
    ------
    ProgramError
        If the program exceeds the machine's limits of states, sums, uniform values, or values in use at once.
    """
    constants = [k for k, op in enumerate(program.ops) if op.name == "constant" and _is_taken(program, k)]
    patterns_of = {int(op.of) for op in program.ops if op.name == "add_int" and op.of is not None}
    if any(TYPES[program.ops[k].name] == "mask" for k in program.uniforms):
        patterns_of.add(0)  # a mask is compared with it
    shifts = sorted(patterns_of)
    uniforms = [*program.uniforms, *constants]
    code, registers = _Machine(program, uniforms, shifts).instructions()
    rooms = (
        ("states", len(program.states), MAX_SLOTS), ("sums", len(program.terms), MAX_SUMS),
        ("uniform values", len(program.rows) + len(uniforms) + len(shifts), MAX_UNIFORMS),
        ("values needed at once", registers, MAX_REGISTERS), ("vectors of columns", len(program.columns), MAX_VECTORS),
        ("sums of columns", sum(kind == "columns" for _, _, kind in program.terms), MAX_VECTORS),
    )  # fmt: skip
    for what, count, most in rooms:
        if count > most:
            raise ProgramError(f"the program has {count} {what}, and there is room for {most}")
    values = [np.float32(program.ops[k].of) for k in constants]
    patterns = np.array(shifts, np.int64).astype(np.uint32).view(np.float32)
    head = [len(code), registers, len(program.rows) + len(uniforms) + len(shifts)]
    return np.array([*head, *(x for line in code for x in line)], np.int32), np.array([*values, *patterns], np.float32)


def _is_taken(program: Program, index: int) -> bool:
    """Whether an output or a non-uniform operation uses a value."""
    outputs = (program.param, *program.new_states, *(i for s in program.sums for i in (s.a, s.b)))
    takers = (k for k, op in enumerate(program.ops) if index in op.args)
    return index in outputs or any(not program.uniform[k] for k in takers)


class _Machine:
    """Register allocation: a value has a register while it is needed. Operands are numbered at the end."""

    def __init__(self, program: Program, uniforms: list[int], shifts: list[int]) -> None:
        self.program, self.uniforms, self.shifts = program, uniforms, shifts
        self.masks = [k for k in uniforms if TYPES[program.ops[k].name] == "mask"]
        self.last: dict[int, int] = {}
        self.alias: dict[int, int] = {}
        for k, op in enumerate(program.ops):
            if op.name in ("bits", "from_bits") and not program.uniform[k]:  # these have the same bit pattern
                self.alias[k] = self.alias.get(op.args[0], op.args[0])
        for k, op in enumerate(program.ops):
            if not program.uniform[k] and k not in self.alias:
                for i in op.args:
                    self.last[self._value(i)] = k
        for output in (program.param, *program.new_states, *(i for s in program.sums for i in (s.a, s.b))):
            if output is not None:
                self.last[self._value(output)] = len(program.ops)

    def _value(self, index: int) -> int:
        return self.alias.get(index, index)

    def instructions(self) -> tuple[list[tuple[int, int, int, int, int]], int]:
        """Return the instructions and the number of registers they use."""
        program, lines = self.program, list[tuple[str, list[Any], int]]()
        place: dict[int, int] = {}
        free: list[int] = []
        count = 0
        for k in self.masks:  # stored as a number, kept in a register
            zero = ("uniform", len(self.uniforms) + self.shifts.index(0))
            lines.append(("ne", [("uniform", self.uniforms.index(k)), zero], count))
            place[k] = count
            count += 1
        for k, op in enumerate(program.ops):
            if program.uniform[k] or k in self.alias or op.name in INPUTS:
                continue
            args = [self._value(i) for i in op.args]
            operands: list[Any] = [self._operand(i, place) for i in args]
            free += [place[i] for i in sorted(set(args)) if i in place and self.last.get(i) == k]
            if not free:
                free.append(count)
                count += 1
            place[k] = free.pop()
            if op.name == "add_int":
                operands.append(("uniform", len(self.uniforms) + self.shifts.index(int(op.of or 0))))
            elif op.name in ("shift_left", "shift_right"):
                operands.append(("plain", int(op.of or 0)))
            lines.append((op.name, operands, place[k]))
        saves = []
        for k, index in enumerate(program.new_states):
            source = program.ops[self._value(index)]
            operand = self._operand(self._value(index), place)
            if source.name in ("state", "param") and source != ("state", (), k):  # it may be overwritten by then
                lines.append(("copy", [operand], count))
                operand = ("register", count)
                count += 1
            saves.append(("save", [operand], k))
        if program.checks_grad and not program.sums:
            lines.append(("check", [("input", 0)], 0))
        if program.param is not None:
            lines.append(("save_param", [self._operand(self._value(program.param), place)], 0))
        lines += saves
        for k, (a, b, kind) in enumerate(program.terms):
            pair = [self._operand(self._value(i), place) for i in dict.fromkeys((a, b)) if i is not None]
            lines.append(("largest_term" if kind == "largest" else "product" if len(pair) == 2 else "term", pair, k))
        rows = count + len(program.rows)
        uniforms = rows + len(self.uniforms) + len(self.shifts)
        first = {"register": 0, "row": count, "uniform": rows, "input": uniforms, "plain": 0}
        code = []
        for name, operands, of in lines:
            numbers = [first[kind] + number for kind, number in operands]
            code.append((MACHINE[name], *[*numbers, 0, 0, 0][:3], of))
        return code, count

    def _operand(self, index: int, place: dict[int, int]) -> tuple[str, int]:
        op = self.program.ops[index]
        if index in self.uniforms and index not in self.masks:
            return "uniform", self.uniforms.index(index)
        if op.name == "row":
            return "row", int(op.of or 0)
        if op.name in INPUTS:
            return "input", INPUTS[op.name] + int(op.of or 0)
        return "register", place[index]
