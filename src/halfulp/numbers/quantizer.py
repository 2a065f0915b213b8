"""A quantizer combines format, scaling and rounding: how one state tensor is stored."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from halfulp.numbers.formats import BUILT_IN, FORMATS, Format, get_format
from halfulp.numbers.rounding import codebook_tables, decode, encode, pack4, storage_dtype, unpack4
from halfulp.numbers.scaling import Layout, Scaling, rows_and_cols

__all__ = ["Quantizer", "Rounding", "check_rounding", "float_spacing"]

DEFAULT_SCALING = Scaling()

Rounding = Literal["nearest", "stochastic"]


def check_rounding(rounding: Any, name: str = "rounding") -> None:
    """Raise ``ValueError`` for an unknown rounding."""
    if not isinstance(rounding, str) or rounding not in ("nearest", "stochastic"):
        raise ValueError(f"{name} is 'nearest' or 'stochastic', got {rounding!r}")


@dataclass(frozen=True)
class Quantizer:
    """How a tensor is stored: a format, the scales of its blocks, and the rounding.

    Parameters
    ----------
    format
        A :class:`~halfulp.numbers.formats.Format`, or its name (a short name stands for its signed format).
    scaling
        The scales. Ignored by formats of 16 and 32 bits, which have none.
    rounding
        ``"nearest"`` (ties to even) or ``"stochastic"``.
    zero_floor
        Under nearest rounding, never round a positive value of a non-negative state to zero.

    Examples
    --------
    >>> import torch
    >>> q = Quantizer("float8_e4m3fn")
    >>> codes, scale = q.quantize(torch.tensor([[1.0, -0.3, 0.02]]))
    >>> q.dequantize(codes, scale, (1, 3))
    tensor([[ 1.0000, -0.3125,  0.0195]])
    """

    format: Format
    scaling: Scaling = DEFAULT_SCALING
    rounding: Rounding = "nearest"
    zero_floor: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", get_format(self.format))
        check_rounding(self.rounding)
        if self.format.kind == "codebook":
            codebook_tables(self.format)  # refuse too uneven levels here, not in the first step

    @property
    def stochastic(self) -> bool:
        """Whether :meth:`quantize` needs random words."""
        return self.rounding == "stochastic" and not self.format.is_float32

    @property
    def spec(self) -> str:
        """The storage as text: format, kind of scale, and what shares a scale. Rounding is not part of it.

        A format that is not built in has a fingerprint of its values, as in ``mine#1f3a90bc:pow2:block128``, since
        another format of the same name would decode the codes differently.
        """
        name = self.format.name
        if self.format not in BUILT_IN:
            name = f"{name}#{_fingerprint(self.format)}"
        if not self.format.scaled:
            return name
        shared = f"block{self.scaling.block_size}" if self.scaling.per == "block" else self.scaling.per
        return f"{name}:{self.scaling.kind}:{shared}"

    @classmethod
    def from_spec(cls, spec: str) -> Quantizer:
        """Return the quantizer (rounding to nearest) of a :attr:`spec`.

        Raises
        ------
        ValueError
            For any other text, or for your own format if it is not registered.
        """
        name, *rest = spec.split(":")
        name, _, fingerprint = name.partition("#")
        if fingerprint and (name not in FORMATS or _fingerprint(FORMATS[name]) != fingerprint):
            raise ValueError(
                f"{spec!r} is a format of your own, whose values are not in the file: call "
                "halfulp.register_format(Format(...)) with it first, or load it into an optimizer or average that is "
                "built with this Format"
            )
        wrong = ValueError(
            f"not a storage spec: {spec!r}; expected e.g. 'bfloat16', 'float8_e4m3fn:pow2:block128' or 'int4:fp32:row'"
        )
        if name not in FORMATS or len(rest) != (2 if FORMATS[name].scaled else 0):
            raise wrong
        if not rest:
            return cls(FORMATS[name])
        kind, shared = rest
        per, size = ("block", shared[5:]) if shared.startswith("block") else (shared, str(DEFAULT_SCALING.block_size))
        try:
            return cls(FORMATS[name], Scaling(kind, per, int(size)))  # type: ignore[arg-type]
        except ValueError as error:
            raise wrong from error

    def with_rounding(self, rounding: Rounding) -> Quantizer:
        """Return the same storage with another rounding."""
        return replace(self, rounding=rounding)

    def codes_shape(self, shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the stored codes: the tensor's own, or ``(rows, bytes per row)`` for packed codes."""
        if not self.format.packed:
            return tuple(shape)
        rows, cols = rows_and_cols(shape)
        return (rows, (cols + 1) // 2)

    def scale_shape(self, shape: torch.Size | tuple[int, ...]) -> tuple[int, int] | None:
        """Return the shape ``(rows, blocks)`` of the scales, ``(1, 1)`` for one per tensor, ``None`` without scales."""
        if not self.format.scaled:
            return None
        layout = self.scaling.layout(shape)
        return (layout.rows, layout.blocks)

    def stored_as(self, shape: torch.Size | tuple[int, ...]) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        """Return dtype and shape of the codes, and of the scales if the format has them.

        Examples
        --------
        >>> Quantizer("fp4").stored_as((4, 256))
        [(torch.uint8, (4, 128)), (torch.uint8, (4, 2))]
        """
        codes, scale = (storage_dtype(self.format), self.codes_shape(shape)), self.scale_shape(shape)
        return [codes] if scale is None else [codes, (self.scaling.dtype, scale)]

    def bytes(self, shape: torch.Size | tuple[int, ...]) -> int:
        """Return the bytes of a stored tensor of this shape, scales included."""
        return sum(math.prod(part) * dtype.itemsize for dtype, part in self.stored_as(shape))

    def zeros(self, shape: torch.Size | tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return the codes and scales of an all-zero tensor."""
        zero = self.format.encode_exact(0.0) if self.format.kind == "codebook" else 0
        packed = self.format.packed
        of = rows_and_cols(shape) if packed else self.codes_shape(shape)
        codes = torch.full(of, zero, dtype=storage_dtype(self.format), device=device)
        codes = pack4(codes) if packed else codes
        scale = self.scale_shape(shape)
        return codes, None if scale is None else torch.zeros(scale, dtype=self.scaling.dtype, device=device)

    def quantize(self, x: Tensor, rand_bits: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the codes and scales of a finite fp32 tensor.

        Parameters
        ----------
        x
            A float32 tensor of any shape.
        rand_bits
            int64 words in the shape of `x` (see :func:`halfulp.numbers.rng.random_bits`), needed for stochastic
            rounding.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"quantize takes a float32 tensor, got {x!r}: make one by torch.tensor")
        if self.stochastic and rand_bits is None:
            raise ValueError("stochastic rounding needs rand_bits, e.g. from halfulp.numbers.rng.random_bits")
        if x.dtype != torch.float32:
            raise TypeError(f"quantize takes float32, got {x.dtype}; convert with .float()")
        rand_bits = rand_bits if self.stochastic else None
        if not self.format.scaled:
            return encode(x, self.format, rand_bits, zero_floor=self.zero_floor), None
        layout = self.scaling.layout(x.shape)
        blocks = layout.split(x)
        scale = self._scales(layout, blocks)
        y = layout.join(blocks * self.scaling.inverses(scale).unsqueeze(-1))
        words = None if rand_bits is None else rand_bits.reshape(y.shape)
        codes = encode(y.contiguous(), self.format, words, zero_floor=self.zero_floor)
        if self.format.packed:
            codes = pack4(codes.reshape(rows_and_cols(x.shape)))
        return codes.reshape(self.codes_shape(x.shape)), scale

    def _scales(self, layout: Layout, blocks: Tensor) -> Tensor:
        empty = blocks.numel() == 0
        absmax = blocks.new_zeros(layout.rows, layout.blocks) if empty else blocks.abs().amax(dim=-1)
        return self.scaling.from_absmax(absmax, self.format)

    def dequantize(self, codes: Tensor, scale: Tensor | None, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Return the stored tensor as fp32, in the given shape."""
        if scale is None:
            return decode(codes, self.format).reshape(shape)
        if self.format.packed:
            codes = unpack4(codes, rows_and_cols(shape)[1])
        layout = self.scaling.layout(shape)
        blocks = layout.split(decode(codes, self.format)) * self.scaling.values(scale).unsqueeze(-1)
        return layout.join(blocks).reshape(shape)

    def units(self, x: Tensor) -> Tensor:
        """Return each element's scale under :meth:`quantize` of a finite fp32 tensor, as float64; 1 without scales."""
        if not self.format.scaled:
            return torch.ones_like(x, dtype=torch.float64)
        layout = self.scaling.layout(x.shape)
        blocks = layout.split(x)
        scale = self.scaling.values(self._scales(layout, blocks))
        return layout.join(scale.double().unsqueeze(-1).expand(blocks.shape).contiguous()).reshape(x.shape)

    def spacing(self, x: Tensor) -> Tensor:
        """Return the distance of the two stored values around each element of a finite fp32 tensor, as float64.

        For a scaled format, the scales are those of :meth:`quantize` for this tensor (0 in blocks of zeros).

        Examples
        --------
        >>> Quantizer("bfloat16").spacing(torch.tensor([1.0, 3.0])).tolist()
        [0.0078125, 0.015625]
        """
        fmt, units = self.format, self.units(x)
        y = x.double() / units.clamp_min(2.0**-1000)
        if fmt.kind == "float":
            top = math.nextafter(fmt.max, 0.0)  # above a largest value that is a power of two there is none
            return float_spacing(y.clamp(-top, top), fmt) * units
        grid = torch.tensor(fmt.grid(), dtype=torch.float64, device=x.device)
        above = torch.searchsorted(grid, y, right=True).clamp(1, len(grid) - 1)
        return (grid[above] - grid[above - 1]) * units

    def gather(self, codes: Tensor, scale: Tensor | None, shape: torch.Size | tuple[int, ...], index: Tensor) -> Tensor:
        """Return the values of single elements by flat index (1-D int64), without decoding the others."""
        code, block, odd = self.locate(shape, index)
        picked = self.pick(codes.flatten()[code], odd)
        return self.decode_picked(picked, None if scale is None else scale.flatten()[block])

    def locate(self, shape: torch.Size | tuple[int, ...], index: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the flat indices of elements in the codes and in the scales (``None`` without scales).

        The third result is 1 for elements in the high half of a byte and 0 in the low half, or ``None`` without
        packing.
        """
        code, odd = index, None
        if self.format.packed:
            cols = rows_and_cols(shape)[1]
            row, col = index // cols, index % cols
            code, odd = row * ((cols + 1) // 2) + col // 2, col % 2
        if not self.format.scaled:
            return code, None, odd
        layout = self.scaling.layout(shape)
        return code, index // layout.cols * layout.blocks + index % layout.cols // layout.block, odd

    def pick(self, codes: Tensor, odd: Tensor | None) -> Tensor:
        """Return single codes from gathered bytes. See :meth:`locate`."""
        return codes if odd is None else torch.where(odd == 0, codes & 15, codes >> 4)

    def decode_picked(self, codes: Tensor, scale: Tensor | None) -> Tensor:
        """Return the values of single codes, given the stored scales of their blocks."""
        values = decode(codes, self.format)
        return values if scale is None else values * self.scaling.values(scale)


def _fingerprint(fmt: Format) -> str:
    return hashlib.sha256(repr(fmt).encode()).hexdigest()[:8]


def float_spacing(values: Tensor, fmt: Format) -> Tensor:
    """Return the distance of the two numbers of a float format around each value, as float64.

    Examples
    --------
    >>> from halfulp.numbers.formats import get_format
    >>> float_spacing(torch.tensor([1.0, 3.0]), get_format("bfloat16")).tolist()
    [0.0078125, 0.015625]
    """
    exponent = torch.frexp(values)[1].double() - 1
    return torch.exp2(exponent.clamp_min(fmt.min_exponent) - fmt.mantissa_bits)
