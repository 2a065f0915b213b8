"""Encoding fp32 values into codes and back, to nearest even or stochastically, defined bit by bit.

Every kernel reproduces this definition. For a float format with ``p`` mantissa bits and a value in the binade ``2**e``
(``e`` at least the format's smallest exponent), the quantum is ``q = 2**(e - p)`` and

* nearest:    ``n = round_half_even(|x| / q)``
* stochastic: ``n = floor((round(|x| / q * 2**F) + (w >> (32 - F))) / 2**F)`` for a random 32-bit word ``w``

``F`` is 24, or as many bits as an int32 leaves. The code is ``n`` plus the binade's offset, so that a carry out of the
mantissa increments the exponent. ``x / q`` is a multiplication by a power of two and therefore exact. ``F`` covers
every bit that a normal fp32 value loses, so the probability of rounding up is exact. (Below the smallest normal number
of the format, the probability is rounded to a multiple of ``2**-F``.)

A codebook is divided into stretches of evenly spaced levels. Each stretch is counted from its end next to zero, a level
``S`` with code ``c``. Stochastic codes are ``c + floor((round((x - S) * density) + (w >> (32 - F))) / 2**F)``, where
``density`` is ``2**F`` over the gap. ``F`` is 16, or less if a level would otherwise change its code.

A linear integer grid is a degenerate float with subnormals only. Values beyond the largest saturate, including
infinities. NaN becomes the format's NaN code, or zero if there is none.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from halfulp.numbers.formats import Format, get_format

__all__ = ["decode", "encode", "pack4", "round_to", "storage_dtype", "unpack4"]

_EXP, _ABS = 0x7F800000, 0x7FFFFFFF


def storage_dtype(fmt: Format) -> torch.dtype:
    """Return the dtype of codes: the torch dtype itself for 16 and 32 bits, ``uint8`` for 8 and (packed) 4 bits."""
    wide = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return wide.get(fmt.name, torch.uint8)


def encode(x: Tensor, fmt: Format, rand_bits: Tensor | None = None, *, zero_floor: bool = False) -> Tensor:
    """Round fp32 values, already divided by their scale, to a format. Return their codes in the same shape.

    Codes are ``uint8``, one element per code, or the torch dtype of a 16 or 32 bit format.

    Parameters
    ----------
    rand_bits
        Random words for stochastic rounding, int64 in ``[0, 2**32)`` in the shape of `x`. ``None`` rounds to nearest,
        ties to even (in a codebook, to the lower code).
    zero_floor
        Under nearest rounding, store a positive value that would become zero as the smallest positive value. Stochastic
        rounding ignores this, since it is already unbiased between the two.

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
    """Return ``(p, smallest exponent field, F)`` of the module's formula, for floats and linear integers."""
    p = fmt.mantissa_bits if fmt.kind == "float" else fmt.value_bits
    emin = fmt.min_exponent if fmt.kind == "float" else fmt.value_bits
    return p, emin + 127, min(24, 29 - p)


def _grid_code(magnitude: Tensor, fmt: Format, rand_bits: Tensor | None) -> Tensor:
    """Return the unsigned codes of fp32 bit patterns (int32) without sign, at most the format's maximum."""
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
    """Do the same for bfloat16, which has the exponent range of fp32, by cutting 16 bits off the pattern."""
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
"""The relative difference below which gaps of a codebook count as equal, since fp32 levels are not more exact."""


@cache
def even_stretches(fmt: Format) -> tuple[int, ...]:
    """Return the codes at which the codebook's gap or sign changes, with its first and last code."""
    gaps = [high - low for low, high in itertools.pairwise(fmt.levels)]
    changes = [
        i for i in range(1, len(gaps)) if fmt.levels[i] == 0 or abs(gaps[i] - gaps[i - 1]) > EVEN * gaps[i]
    ]  # fmt: skip
    return (0, *changes, len(gaps))


class Codebook(NamedTuple):
    """The tables for encoding to a codebook of ``n`` levels, as tensors on the CPU."""

    levels: Tensor
    """fp32 of shape ``(n,)``, increasing."""
    middles: Tensor
    """The midpoints of neighbours, rounded to fp32, of shape ``(n - 1,)`` like all below."""
    density: Tensor
    """fp32: ``2**fraction`` over the gap."""
    start: Tensor
    """fp32: the level from which the gap's stretch is counted."""
    base: Tensor
    """int32: the code of that level times ``2**fraction``."""
    fraction: int
    """The number of fraction bits of a stochastic code."""


@cache
def codebook_tables(fmt: Format) -> Codebook:
    """Return the tables of a codebook. ``fraction`` is the largest up to 16 that keeps the code of every level.

    Raise ``ValueError`` if 8 bits do not suffice, since the levels are too uneven for fp32.
    """
    levels = torch.tensor(fmt.levels, dtype=torch.float64, device="cpu")
    middles = ((levels[1:] + levels[:-1]) / 2).float()
    for fraction in range(16, 7, -1):
        density, start = torch.empty((2, len(levels) - 1), dtype=torch.float32, device="cpu")
        base = torch.empty(len(levels) - 1, dtype=torch.int32, device="cpu")
        exact = True
        for first, last in itertools.pairwise(even_stretches(fmt)):
            anchor = min(first, last, key=lambda code: abs(fmt.levels[code]))
            density[first:last] = (last - first) / (levels[last] - levels[first]) * 2**fraction
            start[first:last], base[first:last] = levels[anchor], anchor << fraction
            inside = levels[first : last + 1].float()
            fixed = torch.round((inside - start[first]) * density[first]).to(torch.int32) + base[first]
            codes = torch.arange(first, last + 1, dtype=torch.int32, device="cpu")
            exact = exact and torch.equal(fixed, codes << fraction)
        if exact:
            return Codebook(levels.float(), middles, density, start, base, fraction)
    raise ValueError(f"{fmt.name}: levels of a codebook are at least 2**-16 of the largest apart, evenly or not")


@cache
def decode_table(fmt: Format) -> Tensor:
    """Return the value of every code of a format of 8 bits or fewer, as fp32 on the CPU."""
    return torch.tensor([fmt.decode(c) for c in range(1 << fmt.bits)], dtype=torch.float32, device="cpu")


def decode(codes: Tensor, fmt: Format) -> Tensor:
    """Return the exact value of each code, as :func:`encode` returns them, as fp32."""
    if fmt.bits >= 16:
        return codes.float()
    return decode_table(fmt).to(codes.device)[codes.long()]


def round_to(x: Tensor, fmt: Format | str, rand_bits: Tensor | None = None) -> Tensor:
    """Round fp32 values to the grid of a format, without a scale, to nearest or stochastically.

    Parameters
    ----------
    x
        A float32 tensor of any shape.
    fmt
        The format, or its name.
    rand_bits
        Random 32-bit words for stochastic rounding, as int64 in the shape of `x`. By default, round to nearest with
        ties to even.

    Returns
    -------
    Tensor
        A float32 tensor in the shape of `x`. Values beyond the largest number become the largest, or infinity if the
        format has it.

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

    An odd last element shares its byte with a zero. The shape ``(..., n)`` becomes ``(..., (n + 1) // 2)``.
    """
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack4(packed: Tensor, length: int) -> Tensor:
    """Undo :func:`pack4`. The shape ``(..., (length + 1) // 2)`` becomes ``(..., length)``."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[..., :length]


@cache
def _float_bits(value: float) -> int:
    return int(torch.tensor(value, dtype=torch.float32, device="cpu").view(torch.int32))
