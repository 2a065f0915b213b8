"""Master weights: what is stored beside a 16-bit weight so that both give an fp32 weight, or most of its bits.

``"fp32"`` stores the fp32 weight itself. A remainder stores the bits that bfloat16 cuts off.

A 16-bit remainder and the visible bfloat16 weight together give the bits of the fp32 weight. The remainder is the lower
half of the fp32 pattern. The visible weight is rounded half-up in the magnitude of the pattern (ties away from zero),
so that the pair determines the upper half: it is the visible pattern, minus one if the remainder is at least a half.
Round-half-even would leave one remainder in 65 536 ambiguous.

An 8-bit remainder stores the upper eight of these bits. The weight is then a float with 15 fraction bits, and is
rounded to it like any other format.

The fp32 weight of a pair is within half a unit of the visible weight for any remainder. A weight that was changed from
outside keeps its remainder, and still rounds to the visible weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MASTERS", "REMAINDERS", "beside", "join", "split", "weights"]

REMAINDERS = {"remainder16": torch.int16, "remainder8": torch.uint8}
"""The kinds of remainders and their dtypes."""
MASTERS = {"fp32": torch.float32, **REMAINDERS}
"""The kinds of master weights and their dtypes."""


def weights(visible: Tensor, master: Tensor | None) -> Tensor:
    """Return the fp32 weights of a parameter (float32, bfloat16 or float16), given its master weights if it has any.

    Examples
    --------
    >>> weights(torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 64, dtype=torch.int16))
    tensor([1.0000])
    """
    if master is None:
        return visible.float()
    return master if master.dtype == torch.float32 else join(visible, master)


def split(x: Tensor, kind: str = "remainder16", rand_bits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Split an fp32 weight into a bfloat16 weight and an int16 or uint8 remainder, both in its shape.

    Infinities and NaN have the remainder 0.

    Parameters
    ----------
    kind
        ``"remainder16"`` (exact) or ``"remainder8"`` (rounded to 15 fraction bits).
    rand_bits
        int64 words in ``[0, 2**32)``, in the shape of `x`, to round stochastically for ``"remainder8"``. ``None``
        rounds to nearest, ties to even.

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
    """Return the remainder with which a given bfloat16 weight, rounded in any way, is closest to an fp32 weight.

    It is 0 if the fp32 weight is more than half a unit away or not finite. An 8-bit remainder is rounded to nearest. At
    a tie that was rounded away from the half-up pattern, the pair is one unit of the remainder off.

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
    """Return the fp32 weight of a pair: a bfloat16 weight, and its int16 or uint8 remainder in the same shape."""
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
