"""The step in C (``csrc/``): states are decoded, updated and encoded in one pass, bit for bit as the reference does it.

One call does all parameters of a group. Each is described by a row of a numpy array that mirrors ``hu_work`` of
``csrc/halfulp.h``.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

from halfulp.formats import Format
from halfulp.kernels import native
from halfulp.kernels.work import Work, step_tile
from halfulp.quantizer import Quantizer
from halfulp.rounding import codebook_tables, decode_table, grid_constants
from halfulp.rules.base import Rule
from halfulp.scaling import rows_and_cols

__all__ = ["status", "step", "supports"]

MAX_TILE = 1024
"""Elements that one pass holds (``HU_CAP``); larger tiles take two passes, in which small blocks must fit this."""

KINDS = {"float32": 0, "bfloat16": 1, "float16": 2}
FINE = 6
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SCALES = {"pow2": 1, "fp32": 2}
PER = {"block": 0, "row": 1, "tensor": 2}
SCALARS = {
    "adam": ("keep", "l2", "weight1", "beta2", "weight2", "inv_sqrt_correction2", "eps", "bound", "step_size"),
    "sgd": ("l2", "momentum", "gain", "nesterov", "lr"),
    "lion": ("keep", "weight1", "weight2", "lr"),
    "ema": ("weight",),
    "ema_difference": ("decay",),
}
"""The fused rules, and where each finds its scalars."""
RULES = {name: i for i, name in enumerate(SCALARS)}

_FORMAT = np.dtype(
    [(name, np.int32) for name in (
        "kind", "bits", "is_signed", "stochastic", "zero_floor", "scale", "mantissa_bits", "emin_field", "fraction",
        "max_bits", "scale_round", "scale_shift", "zero_code", "top_code",
    )]
    + [("max", np.float32), ("exponent_bits", np.int32)]
    + [(name, np.uintp) for name in ("values", "levels", "middles", "inverse_gaps")]
)  # fmt: skip
_SLOT = np.dtype(
    [
        ("codes", np.uintp), ("scale", np.uintp), ("format", np.uintp), ("counts", np.uintp), ("block", np.int64),
        ("per", np.int32), ("key", np.uint32, 2), ("unused", np.int32),
    ]
)  # fmt: skip
_WORK = np.dtype(
    [
        ("param", np.uintp), ("grad", np.uintp), ("scalars", np.uintp), ("skipped", np.uintp),
        ("rows", np.int64), ("cols", np.int64), ("tile", np.int64), ("first_element", np.uint64),
        ("rule", np.int32), ("slots", np.int32), ("param_kind", np.int32), ("grad_kind", np.int32),
        ("param_stochastic", np.int32), ("maximize", np.int32), ("param_key", np.uint32, 2),
        ("units_before", np.int64), ("slot", _SLOT, 2),
    ]
)  # fmt: skip


def status() -> str:
    """Whether this backend can run here, and with which instruction set; or why not."""
    return native.why_not() or f"available ({native.chosen()})"


def supports(rule: Rule, work: Work) -> str | None:
    """Reason why this backend cannot do a piece of work."""
    reason = native.why_not()
    if reason is not None:
        return reason
    if rule.name not in RULES:
        return f"rule {rule.name!r} has no fused kernel"
    if work.param.device.type != "cpu":
        return f"it works on the CPU, and the parameter is on {work.param.device.type}"
    tensors = [work.param, *(t for s in work.states for t in (s.codes, s.scale) if t is not None)]
    if work.row_stride is not None:
        return "a parameter is sharded along its columns"
    if not all(t.is_contiguous() for t in tensors):
        return "a parameter or state is not contiguous"
    if any(s.shape != work.param.shape for s in work.states):
        return "a state has another shape than its parameter"
    return _tile_reason(work)


def _tile_reason(work: Work) -> str | None:
    """Tiles that the passes cannot be cut into."""
    quantizers = tuple(s.quantizer for s in work.states)
    *_, tile = step_tile(work.param.shape, quantizers)
    blocks = [q.scaling.layout(work.param.shape).block for q in quantizers if q.format.scaled]
    small = math.lcm(1, *(b for b in blocks if b <= MAX_TILE))
    if tile > MAX_TILE and (small > MAX_TILE or any(b not in (tile,) for b in blocks if b > MAX_TILE)):
        return f"blocks of {blocks} elements do not fit into each other"
    return None


@cache
def _format(quantizer: Quantizer) -> np.ndarray:
    """``hu_format`` of a quantizer, an array of one; what it points to is kept alive by :func:`_tables`."""
    fmt = quantizer.format
    made = np.zeros(1, _FORMAT)
    row = made[0]
    row["kind"] = KINDS.get(fmt.name, {"float": 3, "int": 4, "codebook": 5}[fmt.kind])
    row["bits"], row["is_signed"] = fmt.bits, fmt.signed
    row["stochastic"], row["zero_floor"] = quantizer.stochastic, quantizer.zero_floor
    row["max"], row["exponent_bits"] = fmt.max, fmt.exponent_bits
    row["max_bits"] = row["max"].view(np.int32)
    if fmt.kind != "codebook" and not fmt.is_float32:
        row["mantissa_bits"], row["emin_field"], row["fraction"] = grid_constants(fmt)
        if fmt.kind == "float" and fmt.scaled and row["fraction"] != 24:
            row["kind"] = FINE
    if fmt.scaled:
        row["scale"], row["top_code"] = SCALES[quantizer.scaling.kind], fmt.max_code
        mantissa, exponent = math.frexp(fmt.max)
        row["scale_round"], row["scale_shift"] = 0x7FFFFF - int((2 * mantissa - 1) * 2**23), exponent - 1
        tables = _tables(fmt)
        for name, table in tables.items():
            row[name] = table.ctypes.data
    if fmt.kind == "codebook":
        row["zero_code"] = fmt.nan_code
    return made


@cache
def _tables(fmt: Format) -> dict[str, np.ndarray]:
    tables = {"values": decode_table(fmt).numpy()}
    if fmt.kind == "codebook":
        for name, table in zip(("levels", "middles", "inverse_gaps"), codebook_tables(fmt), strict=True):
            padded = np.full(256, np.inf, np.float32)
            padded[: len(table)] = table.numpy()
            tables[name] = padded
    return tables


def step(rule: Rule, works: list[Work]) -> None:
    """Do the step of every parameter."""
    rows = np.zeros(len(works), _WORK)
    skipped = np.zeros(len(works), np.int64)
    keep: list[object] = [rows, skipped]
    names = SCALARS[rule.name]
    for i, work in enumerate(works):
        grad = work.grad.contiguous()
        row = rows[i]
        scalars = np.array([work.scalars[n] for n in names], np.float32)
        keep += [grad, scalars]
        row["param"], row["grad"], row["scalars"] = work.param.data_ptr(), grad.data_ptr(), scalars.ctypes.data
        row["skipped"] = skipped[i:].ctypes.data
        quantizers = tuple(s.quantizer for s in work.states)
        row["tile"] = step_tile(work.param.shape, quantizers)[2]
        row["rows"], row["cols"] = rows_and_cols(work.param.shape)
        row["first_element"], row["rule"], row["slots"] = work.first_element, RULES[rule.name], len(work.states)
        row["param_kind"], row["grad_kind"] = DTYPES[work.param.dtype], DTYPES[grad.dtype]
        row["param_stochastic"] = work.param_rounding == "stochastic" and work.param.dtype != torch.float32
        row["maximize"], row["param_key"] = work.maximize, work.keys[-1]
        for k, state in enumerate(work.states):
            slot = row["slot"][k]
            slot["codes"], slot["format"] = state.codes.data_ptr(), _format(state.quantizer).ctypes.data
            if state.scale is not None:
                slot["scale"] = state.scale.data_ptr()
                slot["block"] = state.quantizer.scaling.layout(work.param.shape).block
                slot["per"] = PER[state.quantizer.scaling.per]
            slot["key"] = work.keys[k]
    native.library().hu_step(rows.ctypes.data, len(works), torch.get_num_threads())
    for work, count in zip(works, skipped.tolist(), strict=True):
        work.skipped = count
