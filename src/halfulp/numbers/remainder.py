"""Master weights: what is kept beside a 16-bit weight so that the two give an fp32 weight, or most of its bits.

``"fp32"`` keeps the fp32 weight itself. A remainder keeps the bits that bfloat16 cuts off.

A 16-bit remainder makes a pair with the bits of the fp32 weight: ``visible`` is the weight rounded to bfloat16, and the
remainder is the lower half of the fp32 pattern. Rounding is half-up in the magnitude of the pattern (ties away from
zero), so that the upper half follows from both: it is the visible pattern, less one where the remainder is a half or
more. Round-half-even would leave one remainder in 65 536 ambiguous.

An 8-bit remainder keeps the upper eight of these bits. The weight is then a float of 15 fraction bits, and is rounded
to it like any other format.

The pair is within half a unit of the visible weight whatever the remainder is. A weight that was changed from outside
keeps its remainder, and is still what the bfloat16 weight says.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MASTERS", "REMAINDERS", "beside", "join", "split", "weights"]

REMAINDERS = {"remainder16": torch.int16, "remainder8": torch.uint8}
"""Kinds of remainders, and their dtypes."""
MASTERS = {"fp32": torch.float32, **REMAINDERS}
"""Kinds of master weights, and their dtypes."""


def weights(visible: Tensor, master: Tensor | None) -> Tensor:
    """The fp32 weights of a parameter.

    Parameters
    ----------
    visible
        float32, bfloat16 or float16.
    master
        What is kept beside it, of a dtype of :data:`MASTERS`; ``None`` for nothing.

    Examples
    --------
    >>> weights(torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 64, dtype=torch.int16))
    tensor([1.0000])
    """
    if master is None:
        return visible.float()
    return master if master.dtype == torch.float32 else join(visible, master)


def split(x: Tensor, kind: str = "remainder16", rand_bits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """An fp32 weight as a bfloat16 weight and a remainder.

    Parameters
    ----------
    x
        fp32, any shape.
    kind
        ``"remainder16"`` (exact) or ``"remainder8"`` (rounded to 15 fraction bits).
    rand_bits
        int64 words in ``[0, 2**32)`` of the shape of `x` to round stochastically for ``"remainder8"``; ``None`` rounds
        to nearest, ties to even. Exact pairs need none.

    Returns
    -------
    tuple of Tensor
        bfloat16, and int16 or uint8, both of the shape of `x`. Infinities and NaN keep a remainder of zero.

    Examples
    --------
    >>> visible, remainder = split(torch.tensor([1.001]))
    >>> visible, join(visible, remainder)
    (tensor([1.], dtype=torch.bfloat16), tensor([1.0010]))
    """
    dtype = _dtype(kind)
    if x.dtype != torch.float32:
        raise TypeError(f"a weight with a remainder is float32, got {x.dtype}")
    bits = x.contiguous().view(torch.int32)
    finite = (bits & 0x7FFFFFFF) < 0x7F800000
    if dtype == torch.uint8:
        added = ((bits >> 8) & 1) + 0x7F if rand_bits is None else (rand_bits >> 24).to(torch.int32)
        bits = torch.where(finite, (bits + added) & -0x100, bits)
    upper = torch.where(finite, (bits + 0x8000) >> 16, x.to(torch.bfloat16).view(torch.int16).to(torch.int32))
    lower = torch.where(finite, bits & 0xFFFF, 0)
    visible = upper.to(torch.int16).view(torch.bfloat16)
    return visible, (lower >> 8).to(torch.uint8) if dtype == torch.uint8 else lower.to(torch.int16)


def beside(visible: Tensor, x: Tensor, kind: str = "remainder16") -> Tensor:
    """The remainder with which a given bfloat16 weight is nearest to an fp32 weight, however it was rounded.

    Parameters
    ----------
    visible
        bfloat16.
    x
        fp32, of the same shape. A weight further than half a unit from `visible`, or not finite, gets no remainder.
    kind
        ``"remainder16"`` or ``"remainder8"``, which is rounded to nearest.

    Returns
    -------
    Tensor
        int16 or uint8. At a tie that was rounded away from the half-up pattern, the pair is one unit of the remainder
        off.

    Examples
    --------
    >>> one = torch.ones(1, dtype=torch.bfloat16)
    >>> join(one, beside(one, torch.tensor([1.001])))
    tensor([1.0010])
    """
    dtype = _dtype(kind)
    apart = x.contiguous().view(torch.int32) - (visible.contiguous().view(torch.int16).to(torch.int32) << 16)
    apart = torch.where((apart.abs() <= 0x8000) & x.isfinite(), apart, 0)
    if dtype == torch.uint8:
        return (((apart + 0x80) >> 8).clamp(-0x80, 0x7F) & 0xFF).to(dtype)
    return apart.clamp(-0x8000, 0x7FFF).to(dtype)


def join(visible: Tensor, remainder: Tensor) -> Tensor:
    """The fp32 weight of a pair.

    Parameters
    ----------
    visible
        bfloat16.
    remainder
        int16 or uint8, of the same shape.

    Returns
    -------
    Tensor
        fp32.
    """
    if visible.dtype != torch.bfloat16 or remainder.dtype not in REMAINDERS.values():
        raise TypeError(f"a pair is bfloat16 with int16 or uint8, got {visible.dtype} with {remainder.dtype}")
    lower = remainder.to(torch.int32) & 0xFFFF
    if remainder.dtype == torch.uint8:
        lower = lower << 8
    upper = visible.contiguous().view(torch.int16).to(torch.int32) - (lower >> 15)
    return ((upper << 16) | lower).view(torch.float32)


def _dtype(kind: str) -> torch.dtype:
    if kind not in REMAINDERS:
        raise ValueError(f"a remainder is one of {', '.join(REMAINDERS)}; got {kind!r}")
    return REMAINDERS[kind]
