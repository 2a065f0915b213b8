"""The fused step: one launch for all tensors that are stored alike; a program takes a few tiles of one of them.

Everything that differs between tensors or steps stands in a table of int64, one line of :data:`FIELDS` a tensor:
first program, rows, columns, tiles a row, first global element, addresses, keys, and the rule's scalars as fp32
patterns. Tiles are counted in 32 bits (:func:`halfulp.kernels.triton_plan.tiling` sees to that), elements in 64.
Triton reads the annotations of a kernel, so that only constants have one.
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
    negate,
    not_finite,
    random_words,
    round_param,
    scale_of_absmax,
    scale_value,
    spread,
)

__all__ = ["step_kernel"]

FIELDS = tl.constexpr(32)
PARAM = tl.constexpr(5)
GRAD = tl.constexpr(6)
STATES = tl.constexpr(7)  # codes and scale of each of two
KEYS = tl.constexpr(11)  # three words of each of two states, and of the parameter
SCALARS = tl.constexpr(20)


@triton.jit
def scalar(line, number):
    """A rule's scalar, by its place in `halfulp.kernels.triton.SCALARS_OF`."""
    return float_of(tl.load(line + SCALARS + number).to(tl.int32))


@triton.jit
def adam(param, grad, exp_avg, exp_avg_sq, line, PLAN: tl.constexpr):
    """`halfulp.rules.adam`, operation by operation."""
    if PLAN.l2:
        grad = grad + param * scalar(line, 8)
    exp_avg = exp_avg + (grad - exp_avg) * scalar(line, 1)
    exp_avg_sq = exp_avg_sq * scalar(line, 2) + (grad * grad) * scalar(line, 3)
    denominator = tl.sqrt_rn(exp_avg_sq) * scalar(line, 4) + scalar(line, 5)
    ratio = tl.div_rn(exp_avg, denominator)
    bound = scalar(line, 6)
    ratio = tl.where(ratio > bound, bound, ratio)
    ratio = tl.where(ratio < negate(bound), negate(bound), ratio)
    return param * scalar(line, 0) - ratio * scalar(line, 7), exp_avg, exp_avg_sq


@triton.jit
def lion(param, grad, exp_avg, line):
    """`halfulp.rules.momentum.LION`."""
    difference = grad - exp_avg
    mixed = exp_avg + difference * scalar(line, 1)
    direction = tl.where(mixed > 0.0, 1.0, tl.where(mixed < 0.0, -1.0, 0.0))
    return param * scalar(line, 0) - direction * scalar(line, 3), exp_avg + difference * scalar(line, 2)


@triton.jit
def momentum(param, grad, buffer, line, PLAN: tl.constexpr):
    """`halfulp.rules.momentum.SGD` with momentum."""
    if PLAN.l2:
        grad = grad + param * scalar(line, 4)
    buffer = buffer * scalar(line, 1) + grad * scalar(line, 2)
    if PLAN.nesterov:
        step = grad + buffer * scalar(line, 3)
    else:
        step = buffer
    return param - step * scalar(line, 0), buffer


@triton.jit
def plain(param, grad, line, PLAN: tl.constexpr):
    """`halfulp.rules.momentum.SGD` without."""
    if PLAN.l2:
        grad = grad + param * scalar(line, 4)
    return param - grad * scalar(line, 0)


@triton.jit
def address(line, field, TYPE: tl.constexpr, PLAN: tl.constexpr):
    """A pointer out of the table."""
    pointer = tl.load(line + field).to(tl.pointer_type(TYPE))
    if PLAN.aligned:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def load_float(line, field, flat, inside, FLOAT32: tl.constexpr, BFLOAT16: tl.constexpr, PLAN: tl.constexpr):
    """Values of a float32, bfloat16 or float16 tensor, as fp32."""
    if FLOAT32:
        value = tl.load(address(line, field, tl.float32, PLAN) + flat, mask=inside, other=0.0)
    else:
        half = tl.load(address(line, field, tl.uint16, PLAN) + flat, mask=inside, other=0)
        if BFLOAT16:
            value = float_of(half.to(tl.int32) << 16)
        else:
            value = half.to(tl.float16, bitcast=True).to(tl.float32)
    return value


@triton.jit
def scale_places(row, start, rows, cols, F: tl.constexpr):
    """Index of the scale of each block of each tile, and whether there is one."""
    number = tl.arange(0, F.blocks_padded)[None, :]
    blocks_a_row = (cols + (F.block - 1)) // F.block
    index = (row.to(tl.int64) * blocks_a_row + start // F.block)[:, None] + number
    there = (start[:, None] + number * F.block < cols) & (number < F.blocks) & (row < rows)[:, None]
    return index, there


@triton.jit
def pair_places(row, start, rows, cols, PLAN: tl.constexpr):
    """Index of the byte of each two 4-bit codes, and whether there is one."""
    bytes_a_row = (cols + 1) // 2
    first = start // 2
    if PLAN.aligned:
        bytes_a_row = tl.multiple_of(bytes_a_row, 16)
        first = tl.multiple_of(first, 16)
    pair = tl.arange(0, PLAN.padded // 2)[None, :]
    there = (2 * pair < PLAN.tile) & (start[:, None] + 2 * pair < cols) & (row < rows)[:, None]
    return (row.to(tl.int64) * bytes_a_row + first)[:, None] + pair, there


@triton.jit
def load_state(line, field, levels, row, start, rows, cols, flat, inside, F: tl.constexpr, PLAN: tl.constexpr):
    """A state, decoded."""
    if F.float32 or F.bfloat16 or F.float16:
        value = load_float(line, field, flat, inside, F.float32, F.bfloat16, PLAN)
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
def store_state(
    value, good, words, line, field, levels, row, start, rows, cols, flat, inside, F: tl.constexpr, PLAN: tl.constexpr
):
    """Encode and store a state, where its tile is good."""
    keep = inside & good
    if F.float32:
        tl.store(address(line, field, tl.float32, PLAN) + flat, value, mask=keep)
    elif F.bfloat16 or F.float16:
        code = encode(value, words, levels, F)
        tl.store(address(line, field, tl.uint16, PLAN) + flat, code.to(tl.uint16), mask=keep)
    else:
        magnitude = tl.where(inside, bits_of(value) & 0x7FFFFFFF, 0)
        scale = scale_of_absmax(absmax_of_blocks(magnitude, F, PLAN.tiles, PLAN.padded), F)
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
def words_of(line, number, element, F: tl.constexpr):
    """Random words of a stream of this step, if its rounding takes any."""
    if F.stochastic:
        key0 = tl.load(line + KEYS + 3 * number).to(tl.uint32)
        key1 = tl.load(line + KEYS + 3 * number + 1).to(tl.uint32)
        words = random_words(element, key0, key1, tl.load(line + KEYS + 3 * number + 2).to(tl.uint32))
    else:
        words = element
    return words


@triton.jit(do_not_specialize=["tensors"])
def step_kernel(
    table,
    skipped,
    levels0,
    levels1,
    tensors,
    PLAN: tl.constexpr,
    SLOT0: tl.constexpr,
    SLOT1: tl.constexpr,
    STORED: tl.constexpr,
):
    """Decode, apply the rule, encode; tiles in which the gradient or a new state is not finite stay as they are."""
    program = tl.program_id(0)
    this = program * 0
    last = this + tensors - 1
    while this < last:  # the last tensor whose first program is not after this one
        middle = (this + last + 1) // 2
        reached = tl.load(table + middle.to(tl.int64) * FIELDS) <= program
        this = tl.where(reached, middle, this)
        last = tl.where(reached, last, middle - 1)
    line = table + this.to(tl.int64) * FIELDS
    rows = tl.load(line + 1).to(tl.int32)
    cols = tl.load(line + 2)
    if PLAN.aligned:
        cols = tl.multiple_of(cols, 16)
    tiles_a_row = tl.load(line + 3).to(tl.int32)
    tile = (program - tl.load(line).to(tl.int32)) * PLAN.tiles + tl.arange(0, PLAN.tiles)
    row = tile // tiles_a_row
    start = (tile - row * tiles_a_row).to(tl.int64) * PLAN.tile
    column = tl.arange(0, PLAN.padded)[None, :]
    inside = (column < PLAN.tile) & (start[:, None] + column < cols) & (row < rows)[:, None]
    flat = (row.to(tl.int64) * cols + start)[:, None] + column
    element = tl.load(line + 4) + flat

    param = load_float(line, PARAM, flat, inside, STORED.float32, STORED.bfloat16, PLAN)
    grad = load_float(line, GRAD, flat, inside, PLAN.grad_float32, PLAN.grad_bfloat16, PLAN)
    if PLAN.maximize:
        grad = negate(grad)
    bad = not_finite(grad)
    if PLAN.slots > 0:
        state0 = load_state(line, STATES, levels0, row, start, rows, cols, flat, inside, SLOT0, PLAN)
    if PLAN.slots > 1:
        state1 = load_state(line, STATES + 2, levels1, row, start, rows, cols, flat, inside, SLOT1, PLAN)
    if PLAN.rule == "adam":
        param, state0, state1 = adam(param, grad, state0, state1, line, PLAN)
    elif PLAN.rule == "lion":
        param, state0 = lion(param, grad, state0, line)
    elif PLAN.slots > 0:
        param, state0 = momentum(param, grad, state0, line, PLAN)
    else:
        param = plain(param, grad, line, PLAN)
    if PLAN.slots > 0:
        bad = bad | not_finite(state0)
    if PLAN.slots > 1:
        bad = bad | not_finite(state1)

    bad_tile = tl.max((bad & inside).to(tl.int32), 1)[:, None] > 0
    count = tl.sum(tl.sum((bad_tile & inside).to(tl.int64), 1), 0)
    tl.atomic_add(skipped + this, count, mask=count > 0, sem="relaxed")
    good = bad_tile == 0
    if PLAN.slots > 0:
        words0 = words_of(line, 0, element, SLOT0)
        store_state(
            state0, good, words0, line, STATES, levels0, row, start, rows, cols, flat, inside, SLOT0, PLAN
        )  # fmt: skip
    if PLAN.slots > 1:
        words1 = words_of(line, 1, element, SLOT1)
        store_state(
            state1, good, words1, line, STATES + 2, levels1, row, start, rows, cols, flat, inside, SLOT1, PLAN
        )  # fmt: skip
    keep = inside & good
    if STORED.float32:
        tl.store(address(line, PARAM, tl.float32, PLAN) + flat, param, mask=keep)
    else:
        half = round_param(param, words_of(line, 2, element, STORED), STORED)
        tl.store(address(line, PARAM, tl.uint16, PLAN) + flat, half.to(tl.uint16), mask=keep)
