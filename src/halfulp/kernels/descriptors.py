"""The input of the C kernels: rows of numpy arrays that mirror the structs of ``csrc/halfulp.h`` field by field."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from halfulp.kernels.binding import Binding, step_tile
from halfulp.kernels.constants import CAP, FINE, KINDS, MAX_SUMS, PER, SCALES, STRETCHES
from halfulp.numbers.formats import Format
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.rounding import codebook_tables, decode_table, even_stretches, grid_constants
from halfulp.numbers.scaling import rows_and_cols

__all__ = ["DTYPES", "FORMAT", "SLOT", "WORK", "describe", "describe_slot", "describe_slots", "fill_master"]

Rows = npt.NDArray[np.void]
Key = TypeVar("Key")
Made = TypeVar("Made")

DTYPES = {torch.float32: KINDS["float32"], torch.bfloat16: KINDS["bfloat16"], torch.float16: KINDS["float16"]}

FORMAT = np.dtype(
    [(name, np.int32) for name in (
        "kind", "bits", "is_signed", "stochastic", "zero_floor", "scale", "mantissa_bits", "emin_field", "fraction",
        "max_bits", "scale_round", "scale_shift", "zero_code", "top_code",
    )]
    + [("max", np.float32), ("reach", np.float32), ("exponent_bits", np.int32), ("unused", np.int32)]
    + [(name, np.uintp) for name in ("values", "levels", "middles", "density", "start", "base", "even")]
)  # fmt: skip
EVEN = np.dtype(
    [
        ("border", np.float32, STRETCHES), ("density", np.float32, STRETCHES),
        ("start", np.float32, 2 * STRETCHES), ("base", np.int32, 2 * STRETCHES),
        ("first", np.int32, 32), ("next", np.float32, 32), ("second", np.float32, 32),
    ]
)  # fmt: skip
SLOT = np.dtype(
    [
        ("codes", np.uintp), ("scale", np.uintp), ("format", np.uintp), ("counts", np.uintp), ("block", np.int64),
        ("per", np.int32), ("key", np.uint32, 3),
    ]
)  # fmt: skip
WORK = np.dtype(
    [
        ("param", np.uintp), ("grad", np.uintp), ("scalars", np.uintp), ("skipped", np.uintp),
        ("rows", np.int64), ("cols", np.int64), ("tile", np.int64), ("first_element", np.uint64),
        ("program", np.int32), ("slots", np.int32), ("param_kind", np.int32), ("grad_kind", np.int32),
        ("param_stochastic", np.int32), ("maximize", np.int32), ("param_key", np.uint32, 3), ("flags", np.int32),
        ("row_stride", np.int64), ("units_before", np.int64), ("code", np.uintp), ("slot", np.uintp),
        ("sums", np.uintp), ("terms", np.int64), ("master", np.uintp), ("master_kind", np.int64),
        ("row_values", np.uintp), ("column_values", np.uintp), ("row_vectors", np.int64), ("column_vectors", np.int64),
        ("column_sums", np.uintp), ("term", np.uint8, MAX_SUMS),
    ]
)  # fmt: skip


def kept(make: Callable[[Key], Made]) -> Callable[[Key], Made]:
    """Cache a function so that each result is made only once across threads, since C holds addresses of the results."""
    lock, found = threading.RLock(), dict[Key, Made]()

    @wraps(make)
    def get(key: Key) -> Made:
        with lock:
            if key not in found:
                found[key] = make(key)
            return found[key]

    return get


@lru_cache(maxsize=4096)
def describe(
    shape: torch.Size, quantizers: tuple[Quantizer, ...], row_stride: int | None = None, by_row: bool = False
) -> tuple[Rows, Rows] | str:
    """Return a parameter's ``hu_work`` (an array of one) and its ``hu_slot``, with all that steps do not change.

    `by_row` keeps rows apart, since a program may have a value for each. Equal arguments give the same arrays, which
    must be copied. If C cannot do it, the result is a string with the reason.
    """
    rows, cols = rows_and_cols(shape)
    tile = step_tile(shape, quantizers)[2]
    blocks = [q.scaling.layout(shape).block for q in quantizers if q.format.scaled]
    small = math.lcm(1, *(b for b in blocks if b <= CAP))
    if tile > CAP and (small > CAP or any(b != tile for b in blocks if b > CAP)):
        return f"blocks of {blocks} elements do not fit into each other"
    made = np.zeros(1, WORK)
    row = made[0]
    odd = cols % 2 == 1 and any(q.format.packed for q in quantizers)
    if row_stride in (None, cols) and not odd and not by_row and cols and all(cols % b == 0 for b in (tile, *blocks)):
        rows, cols = 1, rows * cols  # no tile is cut at the end of a row, so one long row has the same tiles
    elif tile == rows * cols and rows > 1 and not odd and not by_row and row_stride is None and _whole(quantizers):
        rows, cols = 1, tile
    row["tile"], row["rows"], row["cols"] = tile, rows, cols
    row["row_stride"] = cols if row_stride is None else row_stride
    slots = describe_slots(quantizers, shape)
    if rows == 1:
        slots["per"][slots["per"] == PER["row"]] = PER["block"]  # rows may have become blocks of the one long row
    return made, slots


def fill_master(row: np.void, binding: Binding) -> None:
    """Set the address of a binding's master weights in its ``hu_work``, if it has any."""
    if binding.master is not None:
        row["master"] = binding.master.data_ptr()
        row["master_kind"] = 8 * binding.master.element_size()


def describe_slots(quantizers: tuple[Quantizer, ...], shape: torch.Size) -> Rows:
    """Return the ``hu_slot`` of each state of a shape, without addresses and keys."""
    return np.concatenate([np.zeros(0, SLOT), *(describe_slot(q, shape) for q in quantizers)])


def _whole(quantizers: tuple[Quantizer, ...]) -> bool:
    return all(not q.format.scaled or q.scaling.per == "tensor" for q in quantizers)


def describe_slot(quantizer: Quantizer, shape: torch.Size) -> Rows:
    """Return the ``hu_slot`` of a state (an array of one), without its addresses and key."""
    made = np.zeros(1, SLOT)
    slot = made[0]
    slot["format"] = _format(quantizer).ctypes.data
    if quantizer.format.scaled:
        slot["block"] = quantizer.scaling.layout(shape).block
        slot["per"] = PER[quantizer.scaling.per]
    return made


@kept
def _format(quantizer: Quantizer) -> Rows:
    """Return the ``hu_format`` of a quantizer (an array of one). :func:`_tables` keeps alive what it points to."""
    fmt = quantizer.format
    made = np.zeros(1, FORMAT)
    row = made[0]
    row["kind"] = KINDS.get(fmt.name, KINDS.get(fmt.kind, KINDS["book"]))
    row["bits"], row["is_signed"] = fmt.bits, fmt.signed
    row["stochastic"], row["zero_floor"] = quantizer.stochastic, quantizer.zero_floor
    row["max"], row["reach"], row["exponent_bits"] = fmt.max, fmt.reach, fmt.exponent_bits
    row["max_bits"] = row["max"].view(np.int32)
    if fmt.kind != "codebook" and not fmt.is_float32:
        row["mantissa_bits"], row["emin_field"], row["fraction"] = grid_constants(fmt)
        if fmt.kind == "float" and fmt.scaled and row["fraction"] != 24:
            row["kind"] = FINE
    if fmt.scaled:
        row["scale"], row["top_code"] = SCALES[quantizer.scaling.kind], fmt.max_code
        mantissa, exponent = math.frexp(fmt.reach)
        row["scale_round"], row["scale_shift"] = 0x7FFFFF - int((2 * mantissa - 1) * 2**23), exponent - 1
        tables = _tables(fmt)
        for name, table in tables.items():
            row[name] = table.ctypes.data
    if fmt.kind == "codebook":
        row["zero_code"], row["fraction"] = fmt.nan_code, codebook_tables(fmt).fraction
    return made


@kept
def even_stretches_of(fmt: Format) -> Rows | None:
    """Return the ``hu_even`` of a codebook (an array of one), or ``None`` if its gaps change too often or by side."""
    *tables, fraction = codebook_tables(fmt)
    levels, middles, density, start, base = (table.numpy() for table in tables)
    ends = levels[list(even_stretches(fmt))]
    borders, below = ends[ends > 0][:-1], -ends[ends < 0][:0:-1]
    if fraction != 16:
        return None
    halves = np.rint((middles - start) * density).astype(np.int32) + base - (np.arange(len(middles)) << 16)
    if np.abs(halves - (1 << 15)).max() > 1:  # even_code in encode.h relies on it
        return None
    if len(borders) >= STRETCHES or borders[:1].min(initial=1) < 2.0**-30 or fmt.max >= 2:
        return None
    made = np.zeros(1, EVEN)
    row = made[0]
    row["border"] = row["next"] = row["second"] = np.inf
    row["border"][0], row["border"][1 : len(borders) + 1] = 0, borders
    for first, sign in ((0, 1), (STRETCHES, -1)) if fmt.signed else ((0, 1),):
        inside = row["border"][: (len(borders) if sign > 0 else len(below)) + 1]
        gap = np.searchsorted(levels, sign * inside, "right" if sign > 0 else "left") - 1
        row["start"][first : first + len(inside)] = start[gap]
        row["base"][first : first + len(inside)] = base[gap]
        if sign > 0:
            row["density"][: len(inside)] = density[gap]
        elif not (np.array_equal(inside[1:], below) and np.array_equal(row["density"][: len(inside)], density[gap])):
            return None
    for k in range(32):
        low, high = 2.0 ** (k - 31), 2.0 ** (k - 30)
        row["first"][k] = (borders <= low).sum()
        between = borders[(borders > low) & (borders < high)]
        if len(between) > 2:
            return None
        row["next"][k], row["second"][k] = [*between, np.inf, np.inf][:2]
    return made


@kept
def _tables(fmt: Format) -> dict[str, npt.NDArray[Any]]:
    tables: dict[str, npt.NDArray[Any]] = {"values": decode_table(fmt).numpy()}
    if fmt.kind == "codebook":
        for name, table in codebook_tables(fmt)._asdict().items():
            if isinstance(table, torch.Tensor):
                tables[name] = np.full(256, np.inf if table.is_floating_point() else 0, table.numpy().dtype)
                tables[name][: len(table)] = table.numpy()
        even = even_stretches_of(fmt)
        if even is not None:
            tables["even"] = even
    if fmt.bits == 8:
        values = tables["values"]
        tables["values"] = np.concatenate(
            [values, values.view(np.uint8).reshape(256, 4).T.reshape(-1).view(np.float32)]
        )
    return {name: _aligned(table) for name, table in tables.items()}


def _aligned(table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a copy aligned to a cache line, since reading a 64-byte vector across two lines takes twice the time."""
    room = np.empty(table.nbytes + 64, np.uint8)
    first = -room.ctypes.data % 64
    copy = room[first : first + table.nbytes].view(table.dtype)
    copy[:] = table
    return copy
