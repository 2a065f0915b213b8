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
from functools import cache
from typing import Any

import torch
from torch import Tensor

from halfulp.formats import Format
from halfulp.kernels.triton_plan import Plan, Stored, Tiling, codebook, plan_of, tiling
from halfulp.kernels.work import Work
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
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_STATES, _KEYS, _SCALARS = 7, 11, 17


def supports(rule: Rule, work: Work) -> str | None:
    """Reason why a piece of work cannot be done here; ``None`` if it can."""
    reason = _no_device(work.param.device.type)
    if reason is not None:
        return reason
    if rule.name not in SCALARS_OF:
        return f"no fused kernel for the rule {rule.name!r}"
    if work.param.dtype not in _DTYPES or work.grad.dtype not in _DTYPES:
        return f"parameter in {work.param.dtype} with a gradient in {work.grad.dtype}"
    tensors = [work.param, *(t for s in work.states for t in (s.codes, s.scale) if t is not None)]
    if not all(t.is_contiguous() and t.device == work.param.device for t in tensors):
        return "parameter or state that is not contiguous, or on another device"
    if any(s.shape != work.param.shape for s in work.states):
        return "state of another shape than its parameter"
    cut = tiling(work.param.shape, tuple(s.quantizer for s in work.states))
    return cut if isinstance(cut, str) else None


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
    return None


def step(rule: Rule, works: list[Work]) -> None:
    """Do the step of every parameter: one launch for each set of tensors that are stored alike.

    The counts of skipped elements are read once at the end, which waits for the launches.
    """
    launches: dict[tuple[Any, ...], list[tuple[Work, Tiling, Tensor]]] = {}
    for work in works:
        work.skipped = 0
        if work.param.numel() == 0:
            continue
        cut = tiling(work.param.shape, tuple(s.quantizer for s in work.states))
        if isinstance(cut, str):
            raise RuntimeError(f"not supported: {cut}")
        grad = work.grad.contiguous()
        plan, stored = plan_of(work, cut, _aligned(work, cut, grad))
        launches.setdefault((work.param.device, plan, stored), []).append((work, cut, grad))
    counts = [_launch(plan, stored, members) for (_, plan, stored), members in launches.items()]
    for members, count in zip(launches.values(), counts, strict=True):
        for (work, _, _), skipped in zip(members, count.tolist(), strict=True):
            work.skipped = skipped


def _aligned(work: Work, cut: Tiling, grad: Tensor) -> bool:
    """Whether every row of every tensor starts at a multiple of 16 bytes, so that loads can be wide."""
    if cut.cols % 32 or cut.tile % 32:
        return False
    tensors = [work.param, grad, *(t for s in work.states for t in (s.codes, s.scale) if t is not None)]
    return all(t.data_ptr() % 16 == 0 for t in tensors)


def _launch(plan: Plan, stored: tuple[Stored, ...], members: list[tuple[Work, Tiling, Tensor]]) -> Tensor:
    """Start one kernel over some tensors; returns how many elements of each were skipped (on their device)."""
    from halfulp.kernels import triton_kernel

    device = members[0][0].param.device
    rows, program = [], 0
    for work, cut, grad in members:
        rows.append(_line(program, work, cut, grad))
        program += cut.programs
    table = torch.tensor(rows, dtype=torch.int64)
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    skipped = torch.zeros(len(members), dtype=torch.int64, device=device)
    levels = [_levels(s.quantizer.format, device) for s in members[0][0].states]
    levels += [_none(device)] * (2 - len(levels))
    triton_kernel.step_kernel[(program,)](
        table, skipped, *levels, len(members), **constants(plan, stored), **options(plan)
    )
    return skipped


def constants(plan: Plan, stored: tuple[Stored, ...]) -> dict[str, Plan | Stored]:
    """Constants that the kernel is compiled for, by argument; a slot that a rule does not have is never read."""
    slots = (*stored[:-1], *(stored[-1],) * (3 - len(stored)))
    return {"PLAN": plan, "SLOT0": slots[0], "SLOT1": slots[1], "STORED": stored[-1]}


def options(plan: Plan) -> dict[str, int | bool]:
    """Compiler options: no fused multiply-add, and 8 to 16 elements a thread."""
    return {"num_warps": min(16, max(4, plan.padded * plan.tiles // 512)), "enable_fp_fusion": False}


def _line(program: int, work: Work, cut: Tiling, grad: Tensor) -> list[int]:
    """A tensor's line in the table."""
    line = [0] * FIELDS
    line[:5] = (program, cut.rows, cut.cols, cut.tiles_a_row, work.first_element)
    line[5:7] = (work.param.data_ptr(), grad.data_ptr())
    for i, state in enumerate(work.states):
        line[_STATES + 2 * i] = state.codes.data_ptr()
        line[_STATES + 1 + 2 * i] = 0 if state.scale is None else state.scale.data_ptr()
        line[_KEYS + 2 * i : _KEYS + 2 * i + 2] = work.keys[i]
    line[_KEYS + 4 : _KEYS + 6] = work.keys[-1]
    names = SCALARS_OF[work.rule.name]
    values = struct.unpack(f"<{len(names)}i", struct.pack(f"<{len(names)}f", *(work.scalars[n] for n in names)))
    line[_SCALARS : _SCALARS + len(names)] = values
    return line


@cache
def _levels(fmt: Format, device: torch.device) -> Tensor:
    return codebook(fmt, device) if fmt.kind == "codebook" else _none(device)


@cache
def _none(device: torch.device) -> Tensor:
    """In place of a codebook that is never read."""
    return torch.zeros(1, device=device)
