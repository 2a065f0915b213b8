"""Sums over tensors in C, in the fixed order of :func:`halfulp.rules.base.total`: `measure` of a rule as a program."""

from __future__ import annotations

import numpy as np
import torch

from halfulp.kernels import native
from halfulp.kernels.binding import Step, plain
from halfulp.kernels.compiled import Compiled, programs_of
from halfulp.kernels.constants import CAP
from halfulp.kernels.descriptors import DTYPES, WORK, describe_slots, fill_master
from halfulp.numbers.log import log_once
from halfulp.numbers.scaling import rows_and_cols
from halfulp.rules.base import Rule
from halfulp.rules.tracing import ProgramError

__all__ = ["measure"]


def measure(rule: Rule, steps: list[Step]) -> list[dict[str, float] | None]:
    """What a rule measures of each binding; ``None`` where C cannot."""
    chosen = [_compiled(rule, one) for one in steps]
    able = [(one, compiled) for one, compiled in zip(steps, chosen, strict=True) if compiled is not None]
    found = iter(_sums(able) if able else [])
    return [None if compiled is None else next(found) for compiled in chosen]


def _compiled(rule: Rule, step: Step) -> Compiled | None:
    """The measuring program of a step, where its binding can be given to C and the rule's `measure` is a program."""
    binding = step.binding
    if native.why_not() or not all(x.is_cpu and plain(x) is x for x in (*binding.tensors, *step.inputs)):
        return None
    try:
        programs = programs_of(rule, True, tuple(s.slot for s in binding.states), len(binding.shape))
        compiled = programs.choose(step.scalars)
    except ProgramError as error:
        log_once(f"sums by 'cpu' not used: {error}")
        return None
    stored = {s.slot.name: s for s in binding.states}
    same = all(stored[name].shape == binding.shape for name in compiled.program.states)
    return compiled if same else None


def _sums(able: list[tuple[Step, Compiled]]) -> list[dict[str, float]]:
    rows = np.zeros(len(able), WORK)
    kept: list[object] = []
    results = []
    for row, (step, compiled) in zip(rows, able, strict=True):
        binding, program = step.binding, compiled.program
        states = [s for name in program.states for s in binding.states if s.slot.name == name]
        slots = describe_slots(tuple(s.quantizer for s in states), binding.shape)
        for slot, state in zip(slots, states, strict=True):
            slot["codes"] = state.codes.data_ptr()
            slot["scale"] = 0 if state.scale is None else state.scale.data_ptr()
        uniforms = np.array(compiled.uniforms(step.scalars, compiled.numbers(binding.states))[0], np.float32)
        row["rows"], row["cols"] = rows_and_cols(binding.shape)
        units = int(row["rows"]) * -(-int(row["cols"]) // CAP)
        sums = np.zeros((len(program.sums), max(units, 1)))
        if binding.param is not None:
            row["param"], row["param_kind"] = binding.param.data_ptr(), DTYPES[binding.param.dtype]
            fill_master(row, binding)
        row["grad"], row["grad_kind"] = step.inputs[0].data_ptr(), DTYPES[step.inputs[0].dtype]
        row["maximize"], row["scalars"], row["slots"] = step.maximize, uniforms.ctypes.data, len(states)
        row["program"], row["code"], row["flags"] = compiled.number, compiled.address, compiled.flags
        row["slot"], row["sums"], row["terms"] = slots.ctypes.data, sums.ctypes.data, len(program.sums)
        row["largest"] = sum(1 << k for k, one in enumerate(program.sums) if one.kind == "largest")
        kept += [slots, uniforms]
        results.append((program.sums, sums))
    native.library().hu_measure(rows.ctypes.data, len(able), torch.get_num_threads())
    del kept  # alive until here
    return [{one.name: float(sums[k, 0]) + 0.0 for k, one in enumerate(names)} for names, sums in results]
