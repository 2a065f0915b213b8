"""Python floats rounded to single precision. Overflow becomes infinity."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["all_fp32", "all_of_fp32", "fp32"]

SINGLE = struct.Struct("f")


def fp32(value: Any) -> float:
    """Return a number rounded to single precision, as a Python float."""
    try:
        return float(SINGLE.unpack(SINGLE.pack(value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def all_of_fp32(values: Collection[Any]) -> tuple[float, ...]:
    """Return :func:`fp32` of each value."""
    form = f"{len(values)}f"
    try:
        return struct.unpack(form, struct.pack(form, *values))
    except OverflowError:
        return tuple(map(fp32, values))


def all_fp32(scalars: Mapping[str, Any]) -> dict[str, float]:
    """Return :func:`fp32` of each scalar, by name."""
    return dict(zip(scalars, all_of_fp32(scalars.values()), strict=True))
