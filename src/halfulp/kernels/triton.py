"""The step on GPUs: Triton kernels with the bits of the reference.

Tensors that are stored alike (same formats, rounding, dtypes, branches of the rule) go into one launch, however many
they are: their addresses, sizes, random keys and scalars stand in one table that is uploaded once a step. A program
finds its tensor in it by bisection and takes a few tiles (:func:`halfulp.kernels.binding.step_tile`) of it. Nothing is
autotuned: how many elements a program takes follows from the block sizes alone, so that the first step costs one
compilation for each kind of launch and later ones nothing.

Tensors on the CPU run in Triton's interpreter, for tests: ``backend="triton"`` under ``TRITON_INTERPRET=1``. See
``docs/kernels-gpu.md`` for what was verified how.
"""

from __future__ import annotations

import importlib.util
import os
import struct
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from halfulp.kernels.binding import Binding, Step, plain
from halfulp.kernels.triton_plan import Plan, Stored, Tiling, codebook, plan_of, tiling
from halfulp.numbers.formats import Format
from halfulp.rules.base import Rule

__all__ = ["FIELDS", "SCALARS_OF", "constants", "options", "status", "step", "supports"]

FIELDS = 32
"""int64 numbers a tensor has in the table; the order is that of ``triton_kernel.py``."""
SCALARS_OF = {
    "adam": ("keep", "weight1", "beta2", "weight2", "inv_sqrt_correction2", "eps", "bound", "step_size", "l2"),
    "lion": ("keep", "weight1", "weight2", "lr"),
    "sgd": ("lr", "momentum", "gain", "nesterov", "l2"),
}
"""Scalars of each rule in the order in which its kernel reads them."""
OLDEST = (3, 6)
"""Triton 3.5 compiles ``div_rn`` and ``sqrt_rn`` into instructions that flush subnormal numbers to zero."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_STATES, _KEYS, _SCALARS = 7, 11, 20


@dataclass(frozen=True)
class _Prepared:
    """What does not change from step to step: found once for a binding, and again if `seen` changes."""

    seen: tuple[Any, ...]
    launch: tuple[torch.device, Plan, tuple[Stored, ...]]
    cut: Tiling
    line: list[int]


def supports(rule: Rule, step: Step) -> str | None:
    """Reason why a step cannot be done here; ``None`` if it can."""
    found = _prepare(rule, step)
    return found if isinstance(found, str) else None


def _prepare(rule: Rule, step: Step) -> _Prepared | str:
    """The constants of a step, kept with its binding; or the reason why it cannot be done."""
    reason = _no_device(step.binding.device.type)
    if reason is not None:
        return reason
    if rule.name not in SCALARS_OF or len(step.inputs) != 1:
        return f"no fused kernel for the rule {rule.name!r}"
    binding, grad = step.binding, step.inputs[0]
    if len(binding.states) > 2:
        return f"the fused kernel of the rule {rule.name!r} has two states, not {len(binding.states)}"
    flags = (step.scalars.get("l2", 0.0) != 0.0, step.scalars.get("nesterov", 0.0) != 0.0, step.maximize)
    wide = grad.data_ptr() % 16 == 0 or plain(grad) is not grad  # a copy starts at an aligned address
    seen = (rule.name, grad.dtype, step.param_rounding, flags, wide)
    known = binding.plan
    if type(known) is _Prepared and known.seen == seen:
        return known
    cut = _tiling(step)
    if isinstance(cut, str):
        return cut
    aligned = wide and cut.cols % 32 == 0 and cut.tile % 32 == 0 and all(a % 16 == 0 for a in binding.seen[0])
    plan, stored = plan_of(step, cut, aligned)
    binding.plan = _Prepared(seen, _intern((binding.device, plan, stored)), cut, _line(binding, cut))
    return binding.plan


def _tiling(step: Step) -> Tiling | str:
    """How a parameter is cut into tiles, or the reason why it is not for this backend."""
    binding, grad = step.binding, step.inputs[0]
    assert binding.param is not None
    if binding.param.dtype not in _DTYPES or grad.dtype not in _DTYPES:
        return f"parameter in {binding.param.dtype} with a gradient in {grad.dtype}"
    if binding.row_stride is not None:
        return "parameter sharded along its columns"
    if not all(plain(x) is x for x in binding.tensors):
        return "parameter or state that is not contiguous"
    if any(x.device != binding.device for x in (*binding.tensors, grad)):
        return "parameter, gradient and states on different devices"
    if any(s.shape != binding.shape for s in binding.states):
        return "state of another shape than its parameter"
    return tiling(binding.shape, binding.quantizers)


@cache
def _intern(launch: tuple[Any, ...]) -> tuple[Any, ...]:
    """One object for equal constants, so that they need not be hashed in every step."""
    return launch


def status() -> str:
    """Whether this backend can run here; or why not."""
    return _no_device("cuda" if torch.cuda.is_available() else "cpu") or "available"


@cache
def _no_device(kind: str) -> str | None:
    """Why tensors of a kind of device cannot be used."""
    if kind not in ("cuda", "cpu"):
        return f"tensor on {kind!r}; Triton kernels run on 'cuda'"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'halfulp[triton]'"
    if kind == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "tensor on 'cpu': only Triton's interpreter runs there, set TRITON_INTERPRET=1 before the first import"
    if kind == "cuda" and torch.version.hip is not None:
        return "ROCm: the arithmetic of these kernels was only checked in the code for NVIDIA"
    import triton

    if tuple(int(n) for n in triton.__version__.split(".")[:2]) < OLDEST:
        return f"triton {triton.__version__} flushes subnormal numbers in divisions; version 3.6 or newer does not"
    return None


def step(rule: Rule, steps: list[Step]) -> None:
    """Do the step of every binding: one launch for each set of tensors that are stored alike.

    The counts of skipped elements are read once at the end, which waits for the launches.
    """
    launches: dict[int, list[tuple[Step, _Prepared, Tensor]]] = {}
    for one in steps:
        one.skipped = 0
        if one.binding.shape.numel() == 0:
            continue
        prepared = _prepare(rule, one)
        if isinstance(prepared, str):
            raise RuntimeError(f"the Triton backend cannot do this step: {prepared}")
        launches.setdefault(id(prepared.launch), []).append((one, prepared, plain(one.inputs[0])))
    counts = [_launch(members) for members in launches.values()]
    for members, count in zip(launches.values(), counts, strict=True):
        for (one, _, _), skipped in zip(members, count.tolist(), strict=True):
            one.skipped = skipped


def _launch(members: list[tuple[Step, _Prepared, Tensor]]) -> Tensor:
    """Start one kernel over some tensors; returns how many elements of each were skipped (on their device)."""
    from halfulp.kernels import triton_kernel

    device, plan, stored = members[0][1].launch
    names, patterns = SCALARS_OF[plan.rule], dict[int, tuple[int, ...]]()
    lines, program = [], 0
    for one, prepared, grad in members:
        line = prepared.line.copy()
        line[0], line[4], line[6] = program, one.binding.first_element, grad.data_ptr()
        line[_KEYS : _KEYS + 3 * plan.slots] = [word for key in one.keys[:-1] for word in key]
        line[_KEYS + 6 : _KEYS + 9] = one.keys[-1]
        scalars = patterns.get(id(one.scalars))
        if scalars is None:
            packed = struct.pack(f"<{len(names)}f", *(one.scalars[n] for n in names))
            scalars = patterns[id(one.scalars)] = struct.unpack(f"<{len(names)}i", packed)
        line[_SCALARS : _SCALARS + len(names)] = scalars
        lines.append(line)
        program += prepared.cut.programs
    table = torch.tensor(lines, dtype=torch.int64)
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    skipped = torch.zeros(len(members), dtype=torch.int64, device=device)
    levels = [_levels(s.quantizer.format, device) for s in members[0][0].binding.states]
    levels += [_none(device)] * (2 - len(levels))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        triton_kernel.step_kernel[(program,)](
            table, skipped, *levels, len(members), **constants(plan, stored), **options(plan)
        )
    return skipped


def constants(plan: Plan, stored: tuple[Stored, ...]) -> dict[str, Plan | Stored]:
    """Constants that the kernel is compiled for, by argument; a slot that a rule does not have is never read."""
    slots = (*stored[:-1], *(stored[-1],) * (3 - len(stored)))
    return {"PLAN": plan, "SLOT0": slots[0], "SLOT1": slots[1], "STORED": stored[-1]}


def options(plan: Plan) -> dict[str, int | bool]:
    """Compiler options: no fused multiply-add, a hash may overflow (also under ``TRITON_DEBUG``), 8 elements a thread.

    The largest tiles have 16: a program has at most 16 warps here.
    """
    warps = min(16, max(4, plan.padded * plan.tiles // 256))
    return {"num_warps": warps, "enable_fp_fusion": False, "sanitize_overflow": False}


def _line(binding: Binding, cut: Tiling) -> list[int]:
    """What stays of a tensor's line in the table: sizes and addresses, but that of the gradient."""
    assert binding.param is not None
    line = [0] * FIELDS
    line[1:4] = (cut.rows, cut.cols, cut.tiles_a_row)
    line[5] = binding.param.data_ptr()
    for i, state in enumerate(binding.states):
        line[_STATES + 2 * i] = state.codes.data_ptr()
        line[_STATES + 1 + 2 * i] = 0 if state.scale is None else state.scale.data_ptr()
    return line


@cache
def _levels(fmt: Format, device: torch.device) -> Tensor:
    return codebook(fmt, device) if fmt.kind == "codebook" else _none(device)


@cache
def _none(device: torch.device) -> Tensor:
    """In place of a codebook that is never read."""
    return torch.zeros(1, dtype=torch.float32, device=device)
