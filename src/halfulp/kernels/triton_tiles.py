"""Device functions of a step: the tiles of a program, and loading and storing their values.

Everything that differs between tensors is in an int64 table with one line per tensor, whose layout is :class:`Line`.
Tiles are counted in 32 bits (:func:`halfulp.kernels.triton_plan.tiling` ensures that), elements in 64. Triton reads the
annotations of these functions, so only constants are annotated.
"""

from __future__ import annotations

import triton
import triton.language as tl

from halfulp.kernels.triton_ops import (
    absmax_of_blocks,
    bits_of,
    decode,
    encode,
    float_of,
    inverse_scale,
    round_param,
    scale_of_absmax,
    scale_value,
    split_param,
    spread,
)
from halfulp.kernels.triton_plan import STRETCH as stretch
from halfulp.kernels.triton_plan import Line

__all__ = [
    "column_values", "count_skipped", "filled", "fold", "fold_columns", "largest_of", "load_float", "load_param",
    "load_state", "row_values", "scalar", "store_column_sums", "store_largest", "store_param", "store_state",
    "store_sum", "this_tensor", "tile_of",
]  # fmt: skip

ROWS = tl.constexpr(Line.ROWS)
COLS = tl.constexpr(Line.COLS)
TILES_A_ROW = tl.constexpr(Line.TILES_A_ROW)
FIRST_ELEMENT = tl.constexpr(Line.FIRST_ELEMENT)
ROW_STRIDE = tl.constexpr(Line.ROW_STRIDE)
SCALARS = tl.constexpr(Line.SCALARS)
PARAM = tl.constexpr(Line.PARAM)
MASTER = tl.constexpr(Line.MASTER)
SKIPPED = tl.constexpr(Line.SKIPPED)
FIRST_SUM = tl.constexpr(Line.FIRST_SUM)
SUMS = tl.constexpr(Line.SUMS)
FIRST_COLUMN_SUM = tl.constexpr(Line.FIRST_COLUMN_SUM)
COLUMN_SUMS = tl.constexpr(Line.COLUMN_SUMS)
FIRST_ROW = tl.constexpr(Line.FIRST_ROW)
ALL_ROWS = tl.constexpr(Line.ALL_ROWS)
FIRST_COLUMN = tl.constexpr(Line.FIRST_COLUMN)
ALL_COLUMNS = tl.constexpr(Line.ALL_COLUMNS)
STRETCH = tl.constexpr(stretch)


@triton.jit
def this_tensor(lines, program, tensors, FIELDS: tl.constexpr):
    """Return the number of a program's tensor, the last one whose first program is not after this one."""
    this = program * 0
    last = this + tensors - 1
    while this < last:
        middle = (this + last + 1) // 2
        reached = tl.load(lines + middle.to(tl.int64) * FIELDS) <= program
        this = tl.where(reached, middle, this)
        last = tl.where(reached, last, middle - 1)
    return this


@triton.jit
def tile_of(line, program, PLAN: tl.constexpr):
    """Return a program's tiles: row and first column of each, flat and global indices of the elements, a mask."""
    rows = tl.load(line + ROWS).to(tl.int32)
    cols = tl.load(line + COLS)
    if PLAN.aligned:
        cols = tl.multiple_of(cols, 16)
    place = program - tl.load(line).to(tl.int32)
    tile = place * PLAN.tiles + tl.arange(0, PLAN.tiles)
    column = tl.arange(0, PLAN.padded)[None, :]
    first = tl.load(line + FIRST_ELEMENT)
    if PLAN.flat:
        row = tile * 0
        start = tile.to(tl.int64) * PLAN.tile
        inside = (start < cols)[:, None] & (column < PLAN.tile)
        flat = start[:, None] + column
        element = first + flat
    else:
        tiles_a_row = tl.load(line + TILES_A_ROW).to(tl.int32)
        if PLAN.down:
            group = place // tiles_a_row
            row = group * PLAN.tiles + tl.arange(0, PLAN.tiles)
            start = (row * 0 + (place - group * tiles_a_row)).to(tl.int64) * PLAN.tile
        else:
            row = tile // tiles_a_row
            start = (tile - row * tiles_a_row).to(tl.int64) * PLAN.tile
        inside = (column < PLAN.tile) & (start[:, None] + column < cols) & (row < rows)[:, None]
        flat = (row.to(tl.int64) * cols + start)[:, None] + column
        element = first + (row.to(tl.int64) * tl.load(line + ROW_STRIDE) + start)[:, None] + column
    return row, start, rows, cols, flat, element, inside


@triton.jit
def scalar(scalars, line, number, COUNT: tl.constexpr):
    """Return one of the scalars of a tensor's step."""
    return tl.load(scalars + tl.load(line + SCALARS) * COUNT + number)


@triton.jit
def row_values(given, line, number, row, rows):
    """Return one value for each tile of a program, from a vector with one for each row."""
    place = tl.load(line + FIRST_ROW) + number * tl.load(line + ALL_ROWS) + row
    return tl.load(given + place, mask=row < rows, other=0.0)[:, None]


@triton.jit
def column_values(given, line, number, start, inside, PLAN: tl.constexpr):
    """Return one value for each element of a program, from a vector with one for each column."""
    place = tl.load(line + FIRST_COLUMN) + number * tl.load(line + ALL_COLUMNS) + start
    return tl.load(given + place[:, None] + tl.arange(0, PLAN.padded)[None, :], mask=inside, other=0.0)


@triton.jit
def filled(value, PLAN: tl.constexpr):
    """Return a value for each element of a program, from a number or from values of rows."""
    return tl.broadcast_to(value, (PLAN.tiles, PLAN.padded))


@triton.jit
def address(line, field, TYPE: tl.constexpr, PLAN: tl.constexpr):
    """Return a pointer from the table."""
    pointer = tl.load(line + field).to(tl.pointer_type(TYPE))
    if PLAN.aligned:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def load_float(line, field, flat, inside, F: tl.constexpr, PLAN: tl.constexpr):
    """Return the values of a float32, bfloat16 or float16 tensor, as fp32."""
    if F.float32:
        value = tl.load(address(line, field, tl.float32, PLAN) + flat, mask=inside, other=0.0)
    else:
        half = tl.load(address(line, field, tl.uint16, PLAN) + flat, mask=inside, other=0)
        if F.bfloat16:
            value = float_of(half.to(tl.int32) << 16)
        else:
            value = half.to(tl.float16, bitcast=True).to(tl.float32)
    return value


@triton.jit
def load_param(line, flat, inside, F: tl.constexpr, PLAN: tl.constexpr):
    """Return the fp32 weights of a parameter, with its master weights: ``halfulp.numbers.remainder.weights``."""
    if PLAN.master == 32:
        value = tl.load(address(line, MASTER, tl.float32, PLAN) + flat, mask=inside, other=0.0)
    else:
        value = load_float(line, PARAM, flat, inside, F, PLAN)
        if PLAN.master == 16:
            rest = tl.load(address(line, MASTER, tl.int16, PLAN) + flat, mask=inside, other=0)
            value = float_of(bits_of(value) + rest.to(tl.int32))
        elif PLAN.master == 8:
            rest = tl.load(address(line, MASTER, tl.int8, PLAN) + flat, mask=inside, other=0)
            value = float_of(bits_of(value) + (rest.to(tl.int32) << 8))
    return value


@triton.jit
def scale_places(row, start, rows, cols, F: tl.constexpr):
    """Return the index of the scale of each block of each tile, and whether it exists."""
    number = tl.arange(0, F.blocks_padded)[None, :]
    blocks_a_row = (cols + (F.block - 1)) // F.block
    index = (row.to(tl.int64) * blocks_a_row + start // F.block)[:, None] + number
    there = (start[:, None] + number * F.block < cols) & (number < F.blocks) & (row < rows)[:, None]
    return index, there


@triton.jit
def pair_places(row, start, rows, cols, PLAN: tl.constexpr):
    """Return the index of the byte of each pair of 4-bit codes, and whether it exists."""
    bytes_a_row = (cols + 1) // 2
    first = start // 2
    if PLAN.aligned:
        bytes_a_row = tl.multiple_of(bytes_a_row, 16)
        first = tl.multiple_of(first, 16)
    pair = tl.arange(0, PLAN.padded // 2)[None, :]
    there = (pair < (PLAN.tile + 1) // 2) & (first[:, None] + pair < bytes_a_row) & (row < rows)[:, None]
    return (row.to(tl.int64) * bytes_a_row + first)[:, None] + pair, there


@triton.jit
def load_state(line, field, levels, row, start, rows, cols, flat, inside, F: tl.constexpr, PLAN: tl.constexpr):
    """Return a decoded state."""
    if F.float32 or F.bfloat16 or F.float16:
        value = load_float(line, field, flat, inside, F, PLAN)
    else:
        codes = address(line, field, tl.uint8, PLAN)
        if F.packed:
            place, there = pair_places(row, start, rows, cols, PLAN)
            both = tl.load(codes + place, mask=there, other=0).to(tl.int32)
            code = tl.reshape(tl.join(both & 15, both >> 4), (PLAN.tiles, PLAN.padded))
        else:
            code = tl.load(codes + flat, mask=inside, other=0).to(tl.int32)
        index, has_scale = scale_places(row, start, rows, cols, F)
        if F.pow2:
            scale = tl.load(address(line, field + 1, tl.uint8, PLAN) + index, mask=has_scale, other=0).to(tl.int32)
        else:
            scale = tl.load(address(line, field + 1, tl.float32, PLAN) + index, mask=has_scale, other=0.0)
        value = decode(code, levels, F) * spread(scale_value(scale, F), F, PLAN.tiles, PLAN.padded)
    return value


@triton.jit
def largest_of(value, inside, F: tl.constexpr, PLAN: tl.constexpr):
    """Return the bit pattern of the largest magnitude of each block, or of each tile if there are no scales."""
    magnitude = bits_of(value) & 0x7FFFFFFF
    if not PLAN.flat:
        magnitude = tl.where(inside, magnitude, 0)
    if F.scaled:
        found = absmax_of_blocks(magnitude, F, PLAN.tiles, PLAN.padded)
    else:
        found = tl.max(magnitude, 1)[:, None]
    return found


@triton.jit
def store_state(
    value, largest, good, words, line, field, levels, row, start, rows, cols, flat, inside,
    F: tl.constexpr, PLAN: tl.constexpr,
):  # fmt: skip
    """Encode and store a state where its tile is good. `largest` comes from :func:`largest_of`."""
    keep = inside & good
    if F.float32:
        tl.store(address(line, field, tl.float32, PLAN) + flat, value, mask=keep)
    elif F.bfloat16 or F.float16:
        code = encode(value, words, levels, F)
        tl.store(address(line, field, tl.uint16, PLAN) + flat, code.to(tl.uint16), mask=keep)
    else:
        scale = scale_of_absmax(largest, F)
        y = value * spread(inverse_scale(scale, F), F, PLAN.tiles, PLAN.padded)
        code = encode(y, words, levels, F)
        codes = address(line, field, tl.uint8, PLAN)
        if F.packed:
            code = tl.where(inside, code, 0)
            low, high = tl.split(tl.reshape(code, (PLAN.tiles, PLAN.padded // 2, 2)))
            place, there = pair_places(row, start, rows, cols, PLAN)
            tl.store(codes + place, (low | (high << 4)).to(tl.uint8), mask=there & good)
        else:
            tl.store(codes + flat, code.to(tl.uint8), mask=keep)
        index, has_scale = scale_places(row, start, rows, cols, F)
        if F.pow2:
            tl.store(address(line, field + 1, tl.uint8, PLAN) + index, scale.to(tl.uint8), mask=has_scale & good)
        else:
            tl.store(address(line, field + 1, tl.float32, PLAN) + index, scale, mask=has_scale & good)


@triton.jit
def count_skipped(worst, fine, line, row, start, rows, cols, PLAN: tl.constexpr):
    """Return which tiles are good (`worst`, the largest magnitude, is finite), and count the elements of the others.

    If the tensor is updated as a whole, none is unless the flag `fine` is set.
    """
    if PLAN.whole:
        worst = tl.where(tl.load(fine) != 0.0, worst, 0x7F800000)
    good = worst < 0x7F800000
    left = tl.minimum(cols - start, PLAN.tile)
    skipped = tl.load(line + SKIPPED).to(tl.pointer_type(tl.int64))
    tl.atomic_add(skipped + row * 0, left, mask=~good & (left > 0) & (row < rows), sem="relaxed")
    return good[:, None]


@triton.jit
def store_param(param, keep, words, line, flat, F: tl.constexpr, PLAN: tl.constexpr):
    """Round and store the parameter and its master weights where their tile is good."""
    if F.float32:
        tl.store(address(line, PARAM, tl.float32, PLAN) + flat, param, mask=keep)
    else:
        if PLAN.master == 16:
            half, rest = split_param(param, words, 16, F)
            tl.store(address(line, MASTER, tl.int16, PLAN) + flat, rest.to(tl.int16), mask=keep)
        elif PLAN.master == 8:
            half, rest = split_param(param, words, 8, F)
            tl.store(address(line, MASTER, tl.uint8, PLAN) + flat, rest.to(tl.uint8), mask=keep)
        else:
            half = round_param(param, words, F)
            if PLAN.master == 32:
                tl.store(address(line, MASTER, tl.float32, PLAN) + flat, param, mask=keep)
        tl.store(address(line, PARAM, tl.uint16, PLAN) + flat, half.to(tl.uint16), mask=keep)


@triton.jit
def halved(x, WIDTH: tl.constexpr):
    """Sum the last dimension of `[n, WIDTH]`, adding the halves to each other until one number is left."""
    if WIDTH == 1:
        found = tl.reshape(x, (x.shape[0],))
    else:
        found = halved(tl.sum(tl.reshape(x, (x.shape[0], 2, WIDTH // 2)), 1), WIDTH // 2)
    return found


@triton.jit
def store_stretches(values, sums, line, number, row, start, rows, cols, PLAN: tl.constexpr):
    """Store one number for each segment of 1024 elements of each tile, if it exists."""
    A_TILE: tl.constexpr = (PLAN.padded + STRETCH - 1) // STRETCH
    part = tl.arange(0, A_TILE)[None, :]
    there = (part * STRETCH < PLAN.tile) & (start[:, None] + part * STRETCH < cols) & (row < rows)[:, None]
    place = row.to(tl.int64)[:, None] * ((cols + STRETCH - 1) // STRETCH) + start[:, None] // STRETCH + part
    first = tl.load(line + FIRST_SUM) + number * tl.load(line + SUMS)
    tl.store(sums + first + place, tl.reshape(values, (PLAN.tiles, A_TILE)), mask=there)


@triton.jit
def store_sum(a, b, sums, line, number, row, start, rows, cols, flat, inside, PLAN: tl.constexpr):
    """Store the sum of `a * b` (of `a`, if there is no `b`) over each segment: ``halfulp.rules.base.total``."""
    WIDTH: tl.constexpr = min(PLAN.padded, STRETCH)
    wide = tl.where(inside, a, 0.0).to(tl.float64)
    if b is not None:
        wide = wide * tl.where(inside, b, 0.0).to(tl.float64)
    stretches = tl.reshape(wide, (PLAN.tiles * PLAN.padded // WIDTH, WIDTH))
    store_stretches(halved(stretches, WIDTH), sums, line, number, row, start, rows, cols, PLAN)


@triton.jit
def store_largest(a, sums, line, number, row, start, rows, cols, flat, inside, PLAN: tl.constexpr):
    """Store the pattern of the largest magnitude of each segment: ``halfulp.rules.base.largest``."""
    WIDTH: tl.constexpr = min(PLAN.padded, STRETCH)
    patterns = tl.where(inside, bits_of(a) & 0x7FFFFFFF, 0)
    stretches = tl.reshape(patterns, (PLAN.tiles * PLAN.padded // WIDTH, WIDTH))
    store_stretches(tl.max(stretches, 1).to(tl.float64), sums, line, number, row, start, rows, cols, PLAN)


@triton.jit
def paired(x, HEIGHT: tl.constexpr):
    """Sum the first dimension of `[HEIGHT, n]`, adding rows 2 i and 2 i + 1 until one is left."""
    if HEIGHT == 1:
        found = x
    else:
        found = paired(tl.sum(tl.reshape(x, (HEIGHT // 2, 2, x.shape[1])), 1), HEIGHT // 2)
    return found


@triton.jit
def store_column_sums(a, sums, line, number, row, start, rows, cols, flat, inside, PLAN: tl.constexpr):
    """Store the sum of each column over the rows of a program: ``halfulp.rules.base.fold_columns``.

    `sums` is where the column sums begin.
    """
    wide = paired(tl.where(inside, a, 0.0).to(tl.float64), PLAN.tiles)
    first_row = tl.min(row, 0)
    column = tl.min(start, 0) + tl.arange(0, PLAN.padded)[None, :]
    there = (tl.arange(0, PLAN.padded)[None, :] < PLAN.tile) & (column < cols)
    first = tl.load(line + FIRST_COLUMN_SUM) + number * tl.load(line + COLUMN_SUMS)
    tl.store(sums + first + (first_row // PLAN.tiles).to(tl.int64) * cols + column, wide, mask=there)


@triton.jit(do_not_specialize=["tensors"])
def fold(lines, numbers, folded, tensors, WIDTH: tl.constexpr, LARGEST: tl.constexpr):
    """Store the sum or the largest of each 1024 numbers of a row. `WIDTH` is smaller if every row is short.

    A line has the first program, the position of the numbers, the rows, the numbers a row, and the position of results.
    """
    program = tl.program_id(0)
    AT_ONCE: tl.constexpr = STRETCH // WIDTH
    line = lines + this_tensor(lines, program, tensors, 5).to(tl.int64) * 5
    count = tl.load(line + 3)
    parts = (count + WIDTH - 1) // WIDTH
    part = (program - tl.load(line)) * AT_ONCE + tl.arange(0, AT_ONCE)
    row = part // parts
    there = row < tl.load(line + 2)
    column = ((part - row * parts) * WIDTH)[:, None] + tl.arange(0, WIDTH)[None, :]
    place = tl.load(line + 1) + (row * count)[:, None] + column
    values = tl.load(numbers + place, mask=(column < count) & there[:, None], other=0.0)
    if LARGEST:
        result = tl.max(values, 1)
    else:
        result = halved(values, WIDTH) + 0.0
    tl.store(folded + tl.load(line + 4) + part, result, mask=there)


@triton.jit(do_not_specialize=["tensors"])
def fold_columns(lines, numbers, folded, tensors, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Store the sum of each column over each `HEIGHT` rows of a matrix.

    A line has the first program, the position of the numbers, the rows, the columns, and the position of results.
    """
    program = tl.program_id(0)
    line = lines + this_tensor(lines, program, tensors, 5).to(tl.int64) * 5
    rows, cols = tl.load(line + 2), tl.load(line + 3)
    across = (cols + WIDTH - 1) // WIDTH
    place = program - tl.load(line)
    group = place // across
    row = (group * HEIGHT + tl.arange(0, HEIGHT))[:, None]
    column = ((place - group * across) * WIDTH + tl.arange(0, WIDTH))[None, :]
    values = tl.load(numbers + tl.load(line + 1) + row * cols + column, mask=(row < rows) & (column < cols), other=0.0)
    result = paired(values, HEIGHT) + 0.0
    tl.store(folded + tl.load(line + 4) + group * cols + column, result, mask=column < cols)
