"""Scales: which elements share one, and how it is computed from their largest magnitude.

``pow2`` (the default) stores only the exponent, in one byte (E8M0: 0 for an all-zero block, otherwise the scale is
``2**(byte - 127)``, byte 1 to 253). It is the smallest power of two for which no element exceeds the format's maximum.
Dividing by it is exact. The grid is therefore fixed: quantizing a value again without changes gives the same value.

``fp32`` stores ``absmax / max`` in four bytes. It uses the whole range of the format, but the grid moves with the
largest element of each block. Blocks whose scale would be below the smallest normal fp32 number are stored as zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from halfulp.numbers.formats import Format

__all__ = ["Layout", "Scaling"]


@dataclass(frozen=True)
class Layout:
    """A tensor as rows of blocks. Blocks never cross a row, so that splitting dimension 0 splits codes and scales.

    ``rows`` is dimension 0, and ``cols`` is the product of the others. A tensor of one dimension or none is a single
    row.
    """

    rows: int
    cols: int
    block: int

    @property
    def blocks(self) -> int:
        """The number of blocks per row (the last may be short)."""
        return math.ceil(self.cols / self.block) if self.block else 0

    def split(self, x: Tensor) -> Tensor:
        """Return a view or zero-padded copy of shape ``(rows, blocks, block)``."""
        x = x.reshape(self.rows, self.cols)
        missing = self.blocks * self.block - self.cols
        if missing:
            x = torch.nn.functional.pad(x, (0, missing))
        return x.reshape(self.rows, self.blocks, self.block)

    def join(self, x: Tensor) -> Tensor:
        """Undo :meth:`split`, to the shape ``(rows, cols)``."""
        return x.reshape(self.rows, self.blocks * self.block)[:, : self.cols]


def rows_and_cols(shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns of a shape. See :class:`Layout`."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


@dataclass(frozen=True)
class Scaling:
    """The kind of scale, and which elements share one.

    Parameters
    ----------
    kind
        ``"pow2"`` is a power of two in one byte; ``"fp32"`` is a float of four bytes.
    per
        ``"block"`` is `block_size` consecutive elements of a row; ``"row"`` and ``"tensor"`` are one row and the whole
        tensor.
    block_size
        An even positive number. The last block of a row may be short.

    Raises
    ------
    ValueError
        If `kind` or `per` is unknown, or `block_size` is odd or not positive.

    Examples
    --------
    >>> import torch, halfulp
    >>> quantizer = halfulp.Quantizer("int8", Scaling("fp32", per="block", block_size=64))
    >>> quantizer.bytes((256, 256))  # a byte each, and four for every 64
    69632
    """

    kind: Literal["pow2", "fp32"] = "pow2"
    per: Literal["block", "row", "tensor"] = "block"
    block_size: int = 128

    def __post_init__(self) -> None:
        if self.kind not in ("pow2", "fp32"):
            raise ValueError(f"scale kind is 'pow2' or 'fp32', got {self.kind!r}")
        if self.per not in ("block", "row", "tensor"):
            raise ValueError(f"a scale is shared per 'block', 'row' or 'tensor', got {self.per!r}")
        size = self.block_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 2 or size % 2:
            raise ValueError(f"block_size is an even number of at least 2 elements, got {size!r}")

    def layout(self, shape: torch.Size | tuple[int, ...]) -> Layout:
        """Return the blocks of a tensor of this shape."""
        rows, cols = rows_and_cols(shape)
        if self.per == "block":
            return Layout(rows, cols, min(self.block_size, cols))
        if self.per == "row":
            return Layout(rows, cols, cols)
        return Layout(1, rows * cols, rows * cols)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of stored scales."""
        return torch.uint8 if self.kind == "pow2" else torch.float32

    def from_absmax(self, absmax: Tensor, fmt: Format) -> Tensor:
        """Return the stored scales, from the largest magnitude of each block (fp32, finite)."""
        if self.kind == "fp32":
            # a tensor, since torch on CUDA multiplies by the reciprocal of a number
            scale = absmax / absmax.new_full((), fmt.reach)
            # a reach below 1 could overflow fp32
            return torch.where(scale < 2.0**-126, 0.0, scale.clamp_max(torch.finfo(torch.float32).max))
        mantissa, exponent = math.frexp(fmt.reach)  # reach = mantissa * 2**exponent, mantissa in [1/2, 1)
        mantissa_field = int((2 * mantissa - 1) * 2**23)
        bits = absmax.view(torch.int32)
        code = ((bits + (0x7FFFFF - mantissa_field)) >> 23) - (exponent - 1)
        return torch.where(bits == 0, 0, code.clamp(1, 253)).to(torch.uint8)

    def values(self, scale: Tensor) -> Tensor:
        """Return stored scales as fp32 factors."""
        return scale if self.kind == "fp32" else (scale.to(torch.int32) << 23).view(torch.float32)

    def inverses(self, scale: Tensor) -> Tensor:
        """Return the inverse of each scale: exact for ``pow2``, rounded for ``fp32``, 0 for an all-zero block."""
        if self.kind == "fp32":
            return torch.where(scale > 0, 1.0 / scale, 0.0)
        code = scale.to(torch.int32)
        return torch.where(code > 0, (254 - code) << 23, 0).view(torch.float32)
