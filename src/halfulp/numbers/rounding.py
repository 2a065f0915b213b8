"""Encoding fp32 values into codes and back: nearest-even and stochastic, defined bit by bit.

This file is the definition that every kernel reproduces. For a float format with ``p`` mantissa bits and a value in
the binade ``2**e`` (``e`` never below the format's smallest exponent), the quantum is ``q = 2**(e - p)`` and

* nearest:    ``n = round_half_even(|x| / q)``
* stochastic: ``n = floor((round(|x| / q * 2**F) + (w >> (32 - F))) / 2**F)`` for a random 32-bit word ``w``

where ``F`` is 24 or as many bits as an int32 leaves. The code is ``n`` plus the binade's offset, so that a carry out
of the mantissa runs into the exponent by itself. ``x / q`` is a multiplication by a power of two and therefore exact,
and ``F`` covers every bit that a normal fp32 value loses: the probability of rounding up is exact, not approximate.
(Below the smallest normal number of the format, the probability is rounded to a multiple of ``2**-F``.)

A codebook is read as stretches of evenly spaced levels, each counted from its end next to zero, a level ``S`` with code
``c``: stochastic codes are ``c + floor((round((x - S) * density) + (w >> (32 - F))) / 2**F)``, where ``density`` is
``2**F`` over the gap, and ``F`` is 16, or less if a level would not stay what it is.

A linear integer grid is the degenerate float that has subnormals only. Values beyond the largest are saturated,
infinities too; a NaN becomes the format's NaN code, or zero where there is none.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from halfulp.numbers.formats import Format, get_format

__all__ = ["decode", "encode", "pack4", "round_to", "storage_dtype", "unpack4"]

_SIGN, _EXP, _ABS = -(1 << 31), 0x7F800000, 0x7FFFFFFF


def storage_dtype(fmt: Format) -> torch.dtype:
    """Dtype that holds codes: the torch dtype itself for 16 and 32 bits, ``uint8`` for 8 and (packed) 4 bits."""
    wide = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return wide.get(fmt.name, torch.uint8)


def encode(x: Tensor, fmt: Format, rand_bits: Tensor | None = None, *, zero_floor: bool = False) -> Tensor:
    """Round fp32 values to a format and return their codes.

    Parameters
    ----------
    x
        fp32 tensor of any shape, already divided by its scale.
    fmt
        Target format.
    rand_bits
        Random words for stochastic rounding: int64 tensor of the shape of `x`, values in ``[0, 2**32)``.
        ``None`` rounds to nearest, ties to even (a codebook's ties go to the lower code).
    zero_floor
        Under nearest rounding, a positive value never becomes zero: it is stored as the smallest positive value.
        Stochastic rounding ignores it, since it already moves between zero and that value without bias.

    Returns
    -------
    Tensor
        Codes of the shape of `x`, one element a code: ``uint8``, or the torch dtype of a 16 or 32 bit format.

    Examples
    --------
    >>> import torch
    >>> from halfulp.numbers.formats import get_format
    >>> encode(torch.tensor([1.0, 1.06, 500.0]), get_format("fp8"))
    tensor([ 56,  56, 126], dtype=torch.uint8)
    """
    if x.dtype != torch.float32:
        raise TypeError(f"encode takes float32, got {x.dtype}; convert with .float()")
    if fmt.is_float32:
        return x.clone()
    if fmt.kind == "codebook":
        return _encode_codebook(x, fmt, rand_bits, zero_floor)
    bits = x.contiguous().view(torch.int32)
    magnitude = bits & _ABS
    is_nan = magnitude > _EXP
    if not fmt.signed:
        magnitude = torch.where(bits < 0, 0, magnitude)
    clamped = magnitude.clamp_max(_float_bits(fmt.max))
    code = _bfloat16_code(clamped, rand_bits) if fmt.name == "bfloat16" else _grid_code(clamped, fmt, rand_bits)
    if zero_floor and rand_bits is None:
        code = torch.where((code == 0) & (clamped > 0), 1, code)
    if fmt.signed:
        if fmt.kind == "int":
            code = torch.where(bits < 0, -code, code) & ((1 << fmt.bits) - 1)
        else:
            code = code | torch.where(bits < 0, 1 << fmt.value_bits, 0)
    code = torch.where(is_nan, fmt.nan_code, code)
    if fmt.bits == 16:
        return code.to(torch.int16).view(storage_dtype(fmt))
    return code.to(torch.uint8)


def grid_constants(fmt: Format) -> tuple[int, int, int]:
    """``(p, smallest exponent field, F)`` of the module's formula, for floats and linear integers."""
    p = fmt.mantissa_bits if fmt.kind == "float" else fmt.value_bits
    emin = fmt.min_exponent if fmt.kind == "float" else fmt.value_bits
    return p, emin + 127, min(24, 29 - p)


def _grid_code(magnitude: Tensor, fmt: Format, rand_bits: Tensor | None) -> Tensor:
    """Unsigned code of fp32 bit patterns without sign (int32), at most the format's maximum."""
    p, emin_field, fraction = grid_constants(fmt)
    exponent = (magnitude & _EXP).clamp_min(emin_field << 23)
    value = magnitude.view(torch.float32)
    if rand_bits is None:
        n = torch.round(value * (((254 + p) << 23) - exponent).view(torch.float32)).to(torch.int32)
    else:
        fixed = torch.round(value * (((254 + p + fraction) << 23) - exponent).view(torch.float32)).to(torch.int32)
        n = (fixed + (rand_bits >> (32 - fraction)).to(torch.int32)) >> fraction
    return n + ((exponent - (emin_field << 23)) >> (23 - p))


def _bfloat16_code(magnitude: Tensor, rand_bits: Tensor | None) -> Tensor:
    """The same for bfloat16, whose exponent range is that of fp32: 16 bits are cut off the pattern."""
    if rand_bits is None:
        return (magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16
    return (magnitude + (rand_bits >> 16).to(torch.int32)) >> 16


def _encode_codebook(x: Tensor, fmt: Format, rand_bits: Tensor | None, zero_floor: bool) -> Tensor:
    tables = codebook_tables(fmt)
    y = torch.nan_to_num(x, nan=0.0, posinf=fmt.max, neginf=fmt.levels[0])
    y = y.clamp(fmt.levels[0], fmt.max).contiguous()
    if rand_bits is None:
        code = torch.searchsorted(tables.middles.to(x.device), y)
        if zero_floor:
            code = torch.where((code == fmt.nan_code) & (y > 0), code + 1, code)
    else:
        levels, density, start, base = (
            t.to(x.device) for t in (tables.levels, tables.density, tables.start, tables.base)
        )
        gap = (torch.searchsorted(levels, y, right=True) - 1).clamp(0, len(levels) - 2)
        fixed = torch.round((y - start[gap]) * density[gap]).to(torch.int32) + base[gap]
        code = (fixed + (rand_bits >> (32 - tables.fraction)).to(torch.int32)) >> tables.fraction
    return code.to(torch.uint8)


EVEN = 1e-4
"""Gaps of a codebook that differ by less, relatively, are one: fp32 levels cannot be spaced more evenly."""


@cache
def even_stretches(fmt: Format) -> tuple[int, ...]:
    """Codes at which a codebook's gap changes, or its sign: its first code, what lies between, its last."""
    gaps = [high - low for low, high in itertools.pairwise(fmt.levels)]
    changes = [
        i for i in range(1, len(gaps)) if fmt.levels[i] == 0 or abs(gaps[i] - gaps[i - 1]) > EVEN * gaps[i]
    ]  # fmt: skip
    return (0, *changes, len(gaps))


class Codebook(NamedTuple):
    """What encoding needs of a codebook of ``n`` levels; tensors on the CPU."""

    levels: Tensor
    """fp32, ``(n,)``, rising."""
    middles: Tensor
    """Between neighbours, rounded to fp32: ``(n - 1,)``, as all below."""
    density: Tensor
    """fp32: ``2**fraction`` over the gap."""
    start: Tensor
    """fp32: the level that the gap's stretch is counted from."""
    base: Tensor
    """int32: the code of that level, times ``2**fraction``."""
    fraction: int
    """Bits by which a stochastic code is finer than the codes."""


@cache
def codebook_tables(fmt: Format) -> Codebook:
    """Tables of a codebook; of ``fraction``, the largest up to 16 that leaves every level as it is.

    Raises
    ------
    ValueError
        If even 8 bits do not: the levels are too uneven to be told apart in fp32.
    """
    levels = torch.tensor(fmt.levels, dtype=torch.float64)
    middles = ((levels[1:] + levels[:-1]) / 2).float()
    for fraction in range(16, 7, -1):
        density, start = torch.empty((2, len(levels) - 1), dtype=torch.float32)
        base = torch.empty(len(levels) - 1, dtype=torch.int32)
        exact = True
        for first, last in itertools.pairwise(even_stretches(fmt)):
            anchor = min(first, last, key=lambda code: abs(fmt.levels[code]))
            density[first:last] = (last - first) / (levels[last] - levels[first]) * 2**fraction
            start[first:last], base[first:last] = levels[anchor], anchor << fraction
            inside = levels[first : last + 1].float()
            fixed = torch.round((inside - start[first]) * density[first]).to(torch.int32) + base[first]
            exact = exact and torch.equal(fixed, torch.arange(first, last + 1, dtype=torch.int32) << fraction)
        if exact:
            return Codebook(levels.float(), middles, density, start, base, fraction)
    raise ValueError(f"{fmt.name}: levels of a codebook are at least 2**-16 of the largest apart, evenly or not")


@cache
def decode_table(fmt: Format) -> Tensor:
    """Value of every code of a format of 8 bits or fewer, fp32 on the CPU."""
    return torch.tensor([fmt.decode(c) for c in range(1 << fmt.bits)], dtype=torch.float32)


def decode(codes: Tensor, fmt: Format) -> Tensor:
    """Value of each code, as fp32, exactly.

    Parameters
    ----------
    codes
        As :func:`encode` returns them.
    fmt
        Their format.
    """
    if fmt.bits >= 16:
        return codes.float()
    return decode_table(fmt).to(codes.device)[codes.long()]


def round_to(x: Tensor, fmt: Format | str, rand_bits: Tensor | None = None) -> Tensor:
    """Round fp32 values to the grid of a format, without a scale, to nearest or stochastically.

    Parameters
    ----------
    x
        float32, of any shape.
    fmt
        The format, or its name.
    rand_bits
        For stochastic rounding: random 32-bit words as int64, of the shape of `x`. By default, nearest with ties to
        even.

    Returns
    -------
    Tensor
        float32, of the shape of `x`. Values beyond the largest number become the largest, or infinity where the format
        has one.

    Examples
    --------
    >>> import torch
    >>> round_to(torch.tensor([1.0 + 2**-10]), "bf16").item()
    1.0
    >>> round_to(torch.tensor([1.0 + 2**-10]), "bf16", torch.tensor([2**32 - 1])).item()
    1.0078125
    """
    fmt = get_format(fmt)
    return decode(encode(x, fmt, rand_bits), fmt)


def pack4(codes: Tensor) -> Tensor:
    """Pack 4-bit codes along the last dimension, two to a byte, the even element in the low half.

    An odd last element shares its byte with a zero. Shape ``(..., n)`` becomes ``(..., (n + 1) // 2)``.
    """
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack4(packed: Tensor, length: int) -> Tensor:
    """Undo :func:`pack4`: shape ``(..., (length + 1) // 2)`` becomes ``(..., length)``."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[..., :length]


@cache
def _float_bits(value: float) -> int:
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))
