"""Compile-time constants of a Triton kernel: those of each stored tensor and of the launch. No Triton code here.

Values that change from step to step (addresses, sizes, keys, scalars) are passed to the kernel in a table. See
:mod:`halfulp.kernels.triton`.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, fields
from functools import lru_cache

import torch

from halfulp.numbers.formats import Format, get_format
from halfulp.numbers.quantizer import Quantizer, Rounding
from halfulp.numbers.rounding import codebook_tables, grid_constants
from halfulp.numbers.scaling import rows_and_cols

__all__ = [
    "LARGEST_TILE", "STRETCH", "Line", "Plan", "StoredAs", "Tiling", "float_as", "power_of_two", "state_as", "tiling",
]  # fmt: skip

STRETCH = 1024
"""The number of elements of a segment whose sum is taken at once: :data:`halfulp.rules.base.ROW`."""
LARGEST_TILE = 8192
"""The most elements of one program. A row or tensor that shares one scale must not be longer."""
_PROGRAM = 1024
"""The number of elements of a program if its tiles are shorter."""
_LOOP = 16
"""The most blocks of a tile that are handled one by one, if their size is not a power of two."""


@dataclass(frozen=True)
class StoredAs:
    """Constants of one stored tensor: a state, the parameter, or an input.

    ``float32``, ``bfloat16``, ``float16``, ``codebook`` and ``integer`` select the code path. The numbers are those of
    :func:`halfulp.numbers.rounding.encode` and :class:`halfulp.numbers.scaling.Scaling`, ready for use on fp32 bits.
    """

    name: str
    float32: bool
    bfloat16: bool
    float16: bool
    codebook: bool
    integer: bool
    signed: bool
    packed: bool
    scaled: bool
    pow2: bool
    stochastic: bool
    zero_floor: bool
    value_bits: int
    sign_bit: int
    pattern_mask: int
    code_mask: int
    smallest_exponent: int
    to_nearest: int
    to_fixed: int
    fraction: int
    drop: int
    shift: int
    high: bool
    fixed_unit: float
    unit: float
    specials: bool
    largest: float
    reach: float
    largest_bits: int
    lowest: float
    zero_code: int
    last_gap: int
    block: int
    blocks: int
    blocks_padded: int
    even_blocks: bool
    carry: int
    exponent: int

    def __repr__(self) -> str:
        """Return every field. Triton uses this text as the key of compiled kernels."""
        return ",".join(str(getattr(self, f.name)) for f in fields(self))

    def mangle(self) -> str:
        """Return a unique name of the constants, for the symbols of compiled functions."""
        return "".join(c if c.isalnum() else "_" for c in repr(self))


@dataclass(frozen=True)
class Line:
    """The indices of a tensor's line in the int64 table, for a number of states."""

    FIRST_PROGRAM = 0
    ROWS = 1
    COLS = 2
    TILES_A_ROW = 3
    FIRST_ELEMENT = 4
    ROW_STRIDE = 5
    SCALARS = 6
    SKIPPED = 7
    FIRST_SUM = 8
    SUMS = 9
    FIRST_COLUMN_SUM = 10
    COLUMN_SUMS = 11
    FIRST_ROW = 12
    ALL_ROWS = 13
    FIRST_COLUMN = 14
    ALL_COLUMNS = 15
    PARAM = 16
    PARAM_LANE = 17
    MASTER = 18
    GRAD = 19
    STATES = 20

    states: int

    def state(self, slot: int) -> int:
        """Return the index of the address of a slot's codes. Those of its scales and of its lane follow."""
        return self.STATES + 3 * slot

    @property
    def length(self) -> int:
        """The length of a line, an even number, so that every line starts at a multiple of 16 bytes."""
        return (self.state(self.states) + 1) // 2 * 2


@dataclass(frozen=True)
class Plan:
    """Constants of a launch besides its program: elements per program, and properties of the parameter.

    `flat` is whether the tensor is one row of whole tiles, `far` whether a global index reaches 2**32, and `down`
    whether the tiles of a program are below each other. `whole` is whether a flag decides if the tensor is updated
    (:mod:`halfulp.kernels.triton_stages`). `master` is the number of bits of the master weights
    (:mod:`halfulp.numbers.remainder`), 0 for none.
    """

    maximize: bool
    stochastic: bool
    tile: int
    padded: int
    tiles: int
    aligned: bool
    flat: bool
    far: bool
    down: bool = False
    whole: bool = False
    master: int = 0

    def mangle(self) -> str:
        """Return a unique name. See :meth:`StoredAs.mangle`."""
        return "_".join(str(getattr(self, f.name)) for f in fields(self))


@dataclass(frozen=True)
class Tiling:
    """A parameter as the kernel sees it: ``rows`` x ``cols``, cut into tiles that never cross a row."""

    rows: int
    cols: int
    tile: int
    padded: int
    blocks: tuple[int, ...]
    down: bool = False

    @property
    def tiles_a_row(self) -> int:
        """The number of tiles per row."""
        return -(-self.cols // self.tile)

    @property
    def tiles_a_program(self) -> int:
        """The number of tiles per program."""
        if self.down:
            return min(LARGEST_TILE // self.padded, power_of_two(max(self.rows, 1)))
        return max(1, _PROGRAM // self.padded)

    @property
    def flat(self) -> bool:
        """Whether the tensor is one row of whole tiles."""
        return self.rows == 1 and self.cols % self.tile == 0 and self.padded == self.tile

    @property
    def programs(self) -> int:
        """The number of programs of a tensor."""
        if self.down:
            return -(-self.rows // self.tiles_a_program) * self.tiles_a_row
        return -(-self.rows * self.tiles_a_row // self.tiles_a_program)


def tiling(
    shape: torch.Size, quantizers: tuple[Quantizer, ...], *,
    stretches: bool = False, by_row: bool = False, down: bool = False, row_stride: int | None = None,
) -> Tiling | str:  # fmt: skip
    """Cut a parameter into the tiles of :func:`halfulp.kernels.binding.step_tile`, or return the reason why not.

    Unlike there, a tile is never cut to the row: a short row is a partly filled tile. Contiguous rows of whole tiles
    become one long row, unless values are read `by_row`. For sums, tiles consist of whole segments (`stretches`), and
    those of a program are below each other if columns are added up (`down`).
    """
    rows, cols = rows_and_cols(shape)
    scalings = [q.scaling for q in quantizers if q.format.scaled]
    if any(s.per == "tensor" for s in scalings) and rows > 1:
        if stretches or by_row:
            return "one scale for a whole tensor beside sums over its rows"
        if any(s.per != "tensor" for s in scalings):
            return "one scale for a whole tensor beside scales of blocks or rows"
        if cols % 2 and any(q.format.packed for q in quantizers):
            return "one scale for a whole tensor whose 4-bit rows have an odd length"
        rows, cols = 1, rows * cols
    whole = any(s.per != "block" for s in scalings)
    if whole:
        tile = power_of_two(max(cols, 2))
    else:
        stretch = min(STRETCH, power_of_two(max(cols, 1))) if stretches else 1
        tile = math.lcm(stretch, *(s.block_size for s in scalings) if scalings else (128,))
    if tile > LARGEST_TILE:
        what = "that share a scale" if whole else "in the least common multiple of the block sizes"
        return f"{cols if whole else tile} elements {what}, more than the {LARGEST_TILE} of one program"
    blocks = []
    for q in quantizers:
        block = q.scaling.block_size if q.format.scaled and q.scaling.per == "block" else tile
        if block & (block - 1) and -(-tile // block) > _LOOP:
            return f"{-(-tile // block)} blocks of {block} elements a tile, more than {_LOOP}, and not a power of two"
        blocks.append(min(block, tile))
    if cols and cols % tile == 0 and not (stretches or by_row) and row_stride in (None, cols):
        rows, cols = 1, rows * cols
    cut = Tiling(rows, cols, tile, power_of_two(tile), tuple(blocks), down)
    if cut.programs * cut.tiles_a_program >= 1 << 31:
        return f"{rows * cut.tiles_a_row} tiles of {tile} elements: a tensor has at most 2**31"
    return cut


@lru_cache(maxsize=64)
def float_as(dtype: torch.dtype, rounding: Rounding) -> StoredAs:
    """Return the constants of a parameter or an input."""
    return state_as(Quantizer(get_format(str(dtype).removeprefix("torch.")), rounding=rounding), 1, 1, 1)


@lru_cache(maxsize=1024)
def state_as(quantizer: Quantizer, tile: int, padded: int, block: int) -> StoredAs:
    """Return the constants of a state with this tile and block size."""
    fmt, scaling = quantizer.format, quantizer.scaling
    grid = fmt.kind != "codebook"
    p, smallest, fraction = grid_constants(fmt) if grid and not fmt.is_float32 else (0, 0, 24)
    if not grid:
        fraction = codebook_tables(fmt).fraction
    mantissa, exponent = math.frexp(fmt.reach)
    power = block & (block - 1) == 0
    return StoredAs(
        name=fmt.name,
        float32=fmt.is_float32,
        bfloat16=fmt.name == "bfloat16",
        float16=fmt.name == "float16",
        codebook=not grid,
        integer=fmt.kind == "int",
        signed=fmt.signed,
        packed=fmt.packed,
        scaled=fmt.scaled,
        pow2=scaling.kind == "pow2",
        stochastic=quantizer.stochastic,
        zero_floor=quantizer.zero_floor and not quantizer.stochastic,
        value_bits=fmt.value_bits,
        sign_bit=1 << fmt.value_bits if fmt.bits < 32 else 0,
        pattern_mask=(((1 << fmt.value_bits) - 1) << (23 - p)) - (1 << 31),
        code_mask=(1 << min(fmt.bits, 16)) - 1,
        smallest_exponent=smallest << 23,
        to_nearest=(254 + p - smallest) << 23,
        to_fixed=(254 + p + fraction - smallest) << 23,
        fraction=fraction,
        drop=32 - fraction,
        shift=23 - p,
        high=fmt.kind == "float" and fmt.bits <= 8 and quantizer.stochastic and fraction == 24,
        fixed_unit=math.ldexp(1.0, 127 + p + fraction - smallest),
        unit=math.ldexp(1.0, 127 - fmt.bias),
        specials=fmt.special != "none",
        largest=fmt.max,
        reach=fmt.reach,
        largest_bits=_float_bits(fmt.max),
        lowest=fmt.levels[0] if not grid else 0.0,
        zero_code=0 if grid else fmt.nan_code,
        last_gap=max(len(fmt.levels) - 2, 0),
        block=block,
        blocks=-(-tile // block),
        blocks_padded=padded // block if power else power_of_two(-(-tile // block)),
        even_blocks=power,
        carry=0x7FFFFF - int((2 * mantissa - 1) * 2**23),
        exponent=exponent - 1,
    )


def codebook(fmt: Format, device: torch.device) -> torch.Tensor:
    """Return the levels, middles, densities, starts and bases of a codebook, 256 each, padded with infinity."""
    tables = torch.full((5, 256), math.inf, dtype=torch.float32, device="cpu")
    for row, values in zip(tables, codebook_tables(fmt)[:-1], strict=True):
        row[: len(values)] = values  # a base is a code times a power of two, so it is exact in fp32
    return tables.to(device)


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is not below a positive number."""
    return 1 << (n - 1).bit_length()


def _float_bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])
