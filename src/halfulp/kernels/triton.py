"""The step on GPUs: Triton kernels with the bits of the reference.

Tensors that are stored alike (same formats, rounding, dtypes, branches of the rule) go into one launch, however many
they are: their addresses, sizes, random keys and scalars stand in one table that is uploaded once a step. A program
finds its tensor in it by bisection and takes a few tiles (:func:`halfulp.kernels.work.step_tile`) of it. Nothing is
autotuned: how many elements a program takes follows from the block sizes alone, so that the first step costs one
compilation for each kind of launch and later ones nothing.

Tensors on the CPU run in Triton's interpreter, for tests: ``backend="triton"`` under ``TRITON_INTERPRET=1``. See
``docs/kernels-gpu.md`` for what was verified how.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from halfulp.kernels.triton_plan import Plan, Stored, Tiling, codebook, plan_of, tiling
from halfulp.kernels.work import Work
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
    """What does not change from step to step: found once for a piece of work, and again if `seen` changes."""

    seen: tuple[Any, ...]
    launch: tuple[torch.device, Plan, tuple[Stored, ...]]
    cut: Tiling
    line: list[int]


_prepared: dict[int, tuple[weakref.ref[Work], _Prepared]] = {}


def supports(rule: Rule, work: Work) -> str | None:
    """Reason why a piece of work cannot be done here; ``None`` if it can."""
    found = _prepare(rule, work)
    return found if isinstance(found, str) else None


def _prepare(rule: Rule, work: Work) -> _Prepared | str:
    """The constants of a piece of work, kept as long as it lives; or the reason why it cannot be done."""
    tensors = [work.param, *(t for s in work.states for t in (s.codes, s.scale) if t is not None)]
    flags = (work.scalars.get("l2", 0.0) != 0.0, work.scalars.get("nesterov", 0.0) != 0.0, work.maximize)
    wide = work.grad.data_ptr() % 16 == 0 or not work.grad.is_contiguous()  # a copy starts at an aligned address
    seen = (
        rule.name, work.grad.dtype, work.param_rounding, flags, wide, work.param.stride(),
        *(t.data_ptr() for t in tensors), *work.quantizers,
    )  # fmt: skip
    known = _prepared.get(id(work))
    if known is not None and known[0]() is work and known[1].seen == seen:
        return known[1]
    cut = _tiling(rule, work, tensors)
    if isinstance(cut, str):
        return cut
    aligned = wide and cut.cols % 32 == 0 and cut.tile % 32 == 0 and all(t.data_ptr() % 16 == 0 for t in tensors)
    plan, stored = plan_of(work, cut, aligned)
    made = _Prepared(seen, _intern((work.param.device, plan, stored)), cut, _line(work, cut))
    number = id(work)
    _prepared[number] = (weakref.ref(work, lambda _: _prepared.pop(number, None)), made)
    return made


def _tiling(rule: Rule, work: Work, tensors: list[Tensor]) -> Tiling | str:
    """How a parameter is cut into tiles, or the reason why it is not for this backend."""
    reason = _no_device(work.param.device.type)
    if reason is not None:
        return reason
    if rule.name not in SCALARS_OF:
        return f"no fused kernel for the rule {rule.name!r}"
    if work.param.dtype not in _DTYPES or work.grad.dtype not in _DTYPES:
        return f"parameter in {work.param.dtype} with a gradient in {work.grad.dtype}"
    if work.row_stride is not None:
        return "parameter sharded along its columns"
    if not all(t.is_contiguous() for t in tensors):
        return "parameter or state that is not contiguous"
    if any(t.device != work.param.device for t in (*tensors, work.grad)):
        return "parameter, gradient and states on different devices"
    if any(s.shape != work.param.shape for s in work.states):
        return "state of another shape than its parameter"
    return tiling(work.param.shape, work.quantizers)


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


def step(rule: Rule, works: list[Work]) -> None:
    """Do the step of every parameter: one launch for each set of tensors that are stored alike.

    The counts of skipped elements are read once at the end, which waits for the launches.
    """
    launches: dict[int, list[tuple[Work, _Prepared, Tensor]]] = {}
    for work in works:
        work.skipped = 0
        if work.param.numel() == 0:
            continue
        prepared = _prepare(rule, work)
        if isinstance(prepared, str):
            raise RuntimeError(f"the Triton backend cannot do this step: {prepared}")
        launches.setdefault(id(prepared.launch), []).append((work, prepared, work.grad.contiguous()))
    counts = [_launch(members) for members in launches.values()]
    for members, count in zip(launches.values(), counts, strict=True):
        for (work, _, _), skipped in zip(members, count.tolist(), strict=True):
            work.skipped = skipped


def _launch(members: list[tuple[Work, _Prepared, Tensor]]) -> Tensor:
    """Start one kernel over some tensors; returns how many elements of each were skipped (on their device)."""
    from halfulp.kernels import triton_kernel

    device, plan, stored = members[0][1].launch
    names, patterns = SCALARS_OF[plan.rule], dict[int, tuple[int, ...]]()
    lines, program = [], 0
    for work, prepared, grad in members:
        line = prepared.line.copy()
        line[0], line[4], line[6] = program, work.first_element, grad.data_ptr()
        line[_KEYS : _KEYS + 3 * plan.slots] = [word for key in work.keys[:-1] for word in key]
        line[_KEYS + 6 : _KEYS + 9] = work.keys[-1]
        scalars = patterns.get(id(work.scalars))
        if scalars is None:
            packed = struct.pack(f"<{len(names)}f", *(work.scalars[n] for n in names))
            scalars = patterns[id(work.scalars)] = struct.unpack(f"<{len(names)}i", packed)
        line[_SCALARS : _SCALARS + len(names)] = scalars
        lines.append(line)
        program += prepared.cut.programs
    table = torch.tensor(lines, dtype=torch.int64)
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    skipped = torch.zeros(len(members), dtype=torch.int64, device=device)
    levels = [_levels(s.quantizer.format, device) for s in members[0][0].states]
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


def _line(work: Work, cut: Tiling) -> list[int]:
    """What stays of a tensor's line in the table: sizes and addresses, but that of the gradient."""
    line = [0] * FIELDS
    line[1:4] = (cut.rows, cut.cols, cut.tiles_a_row)
    line[5] = work.param.data_ptr()
    for i, state in enumerate(work.states):
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
