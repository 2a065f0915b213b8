"""Device functions for random bits, decoding, encoding and scales, which follow the reference operation by operation.

Every operation is an integer operation or has PTX that rounds as IEEE 754 requires (see ``docs/results/gpu.md``).
bfloat16 and the 8-bit and 4-bit formats use integers, rounding to an integer adds ``2**23``, and signs are flipped by
xor (Triton's unary minus is ``0 - x``, which loses the sign of zero). Triton reads the annotations of these functions,
so only constants are annotated.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "absmax_of_blocks",
    "bits_of",
    "decode",
    "encode",
    "float_of",
    "inverse_scale",
    "mix_element",
    "negate",
    "not_finite",
    "round_param",
    "round_signed",
    "scale_of_absmax",
    "scale_value",
    "sign",
    "split_param",
    "spread",
    "without_sign",
    "words_of_lane",
]


@triton.jit
def bits_of(x):
    """Return the bit patterns of fp32 values, as int32."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def float_of(bits):
    """Return the fp32 values of int32 patterns."""
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def negate(x):
    """Return -x, signed zeros included."""
    return float_of(bits_of(x) ^ -2147483648)


@triton.jit
def without_sign(x):
    """Return |x|, also for NaN and signed zeros."""
    return float_of(bits_of(x) & 0x7FFFFFFF)


@triton.jit
def sign(x):
    """Return 1, -1, or 0 for NaN and zeros of both signs."""
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0))


@triton.jit
def not_finite(x):
    """Whether fp32 values are NaN or infinite."""
    return (bits_of(x) & 0x7F800000) == 0x7F800000


@triton.jit
def mix_element(element, keys, FAR: tl.constexpr):
    """Return the part of the random words (uint32) of global elements (int64) that all lanes share.

    The first shift of the hash is applied to the element and to the key separately, which gives the same bits.
    """
    key0, key1 = tl.load(keys).to(tl.uint32, bitcast=True), tl.load(keys + 1).to(tl.uint32, bitcast=True)
    x = element.to(tl.uint32) * 0x9E3779B9
    if FAR:
        key0 = key0 ^ ((element >> 32).to(tl.uint32) * 0xBB67AE85)
    x = ((x ^ (x >> 16)) ^ (key0 ^ (key0 >> 16))) * 0x21F0AAAD + key1
    return x ^ (x >> 15)


@triton.jit
def words_of_lane(mixed, lane, F: tl.constexpr):
    """Return the random words of one lane from :func:`mix_element`, if its rounding needs any."""
    if F.stochastic:
        words = mixed * tl.load(lane).to(tl.uint32)
        words = words ^ (words >> 15)
    else:
        words = mixed
    return words


@triton.jit
def round_half_even(x):
    """Round non-negative fp32 below 2**31 to the nearest integer, ties to even, as int32."""
    return tl.where(x < 8388608.0, (x + 8388608.0) - 8388608.0, x).to(tl.int32)


@triton.jit
def round_signed(x):
    """Do the same for numbers of either sign."""
    magnitude = round_half_even(tl.abs(x))
    return tl.where(x < 0.0, 0 - magnitude, magnitude)


@triton.jit
def grid_code(magnitude, words, F: tl.constexpr):
    """Return the unsigned codes of patterns without sign, at most the format's largest: ``rounding._grid_code``."""
    above = tl.maximum(magnitude & 0x7F800000, F.smallest_exponent) - F.smallest_exponent
    value = float_of(magnitude)
    if F.stochastic:
        fixed = round_half_even(value * float_of(F.to_fixed - above))
        n = (fixed + (words >> F.drop).to(tl.int32)) >> F.fraction
    else:
        n = round_half_even(value * float_of(F.to_nearest - above))
    return n + (above >> F.shift)


@triton.jit
def high_code(bits, magnitude, words, F: tl.constexpr):
    """Return stochastic codes of 4-bit or 8-bit floats with their signs: :func:`grid_code` in fewer operations.

    The bit pattern of a normal number, minus that of the smallest exponent and shifted, is its code followed by 24 bits
    of fraction.
    """
    normal = (magnitude - (F.smallest_exponent - 0x800000)) << (24 - F.shift)
    tiny = round_half_even(float_of(magnitude) * F.fixed_unit)
    fixed = tl.where(magnitude < F.smallest_exponent, tiny, normal).to(tl.uint32, bitcast=True) + (words >> 8)
    if F.signed:
        fixed = fixed | ((bits.to(tl.uint32, bitcast=True) & 0x80000000) >> (7 - F.value_bits))
    return (fixed >> 24).to(tl.int32)


@triton.jit
def bfloat16_code(magnitude, words, F: tl.constexpr):
    """Do the same for bfloat16: ``rounding._bfloat16_code``."""
    if F.stochastic:
        code = (magnitude + (words >> 16).to(tl.int32)) >> 16
    else:
        code = (magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16
    return code


@triton.jit
def codebook_code(x, words, levels, F: tl.constexpr):
    """Return the code of the nearest level, or of one of the two around it: ``rounding._encode_codebook``."""
    y = tl.where(x < F.lowest, F.lowest, x)
    y = tl.where(y > F.largest, F.largest, y)
    if F.stochastic:
        count = search(levels, y, False)
        low = tl.minimum(tl.maximum(count - 1, 0), F.last_gap)
        share = (y - tl.load(levels + 768 + low)) * tl.load(levels + 512 + low)
        fixed = round_signed(share) + tl.load(levels + 1024 + low).to(tl.int32)
        code = (fixed + (words >> F.drop).to(tl.int32)) >> F.fraction
    else:
        code = search(levels + 256, y, True)
        if F.zero_floor:
            code = tl.where((code == F.zero_code) & (y > 0.0), code + 1, code)
    return code


@triton.jit
def search(table, y, STRICT: tl.constexpr):
    """Count how many of 255 sorted values are below each of `y` (or equal to it, unless `STRICT`)."""
    count = (y < y).to(tl.int32)
    for k in tl.static_range(8):
        value = tl.load(table + count + ((1 << (7 - k)) - 1))
        if STRICT:
            below = value < y
        else:
            below = value <= y
        count = tl.where(below, count + (1 << (7 - k)), count)
    return count


@triton.jit
def encode(x, words, levels, F: tl.constexpr):
    """Return the codes (int32) of finite fp32 values, already divided by their scale: ``rounding.encode``."""
    if F.codebook:
        code = codebook_code(x, words, levels, F)
    else:
        bits = bits_of(x)
        magnitude = bits & 0x7FFFFFFF
        if not F.signed:
            magnitude = tl.maximum(bits, 0)
        magnitude = tl.minimum(magnitude, F.largest_bits)
        if F.high:
            code = high_code(bits, magnitude, words, F)
        elif F.bfloat16:
            code = bfloat16_code(magnitude, words, F)
        else:
            code = grid_code(magnitude, words, F)
        if F.zero_floor:
            code = tl.where((code == 0) & (magnitude > 0), 1, code)
        if F.signed and not F.high:
            if F.integer:
                code = tl.where(bits < 0, 0 - code, code) & F.code_mask
            else:
                code = code | tl.where(bits < 0, F.sign_bit, 0)
    return code


@triton.jit
def decode(code, levels, F: tl.constexpr):
    """Return the fp32 values of codes (int32) of 16 bits or fewer: ``rounding.decode``."""
    if F.codebook:
        value = tl.load(levels + code)
    elif F.bfloat16:
        value = float_of(code << 16)
    elif F.float16:
        value = code.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    elif F.integer:
        if F.signed:
            value = ((code ^ F.sign_bit) - F.sign_bit).to(tl.float32)
        else:
            value = code.to(tl.float32)
    else:
        pattern = code << F.shift
        if F.signed:
            pattern = ((code << 31 - F.value_bits) >> 31 - F.value_bits - F.shift) & F.pattern_mask
        value = float_of(pattern) * F.unit
        if F.specials:
            value = tl.where(tl.abs(value) > F.largest, float("nan"), value)
    return value


@triton.jit
def round_param(x, words, F: tl.constexpr):
    """Return the 16 bits (int32) of a new parameter: torch's cast, or stochastic if the value is finite."""
    if F.bfloat16:
        bits = bits_of(x)
        cast = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF
        cast = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, cast)
    else:
        cast = x.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.int32)
    if F.stochastic:
        cast = tl.where(not_finite(x), cast, encode(x, words, x, F))
    return cast


@triton.jit
def split_param(x, words, BITS: tl.constexpr, F: tl.constexpr):
    """Return a new weight's bfloat16 pattern and remainder (int32): ``halfulp.numbers.remainder.split``."""
    bits = bits_of(x)
    special = not_finite(x)
    lower = bits
    if BITS == 8:
        if F.stochastic:
            lower = lower + (words >> 24).to(tl.int32)
        else:
            lower = lower + ((bits >> 8) & 1) + 0x7F
        lower = lower & -256
    upper = ((lower + 0x8000) >> 16) & 0xFFFF
    other = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, 0x7F80) | ((bits >> 16) & 0x8000)
    rest = tl.where(special, 0, lower & 0xFFFF)
    if BITS == 8:
        rest = rest >> 8
    return tl.where(special, other, upper), rest


@triton.jit
def absmax_of_blocks(magnitude, F: tl.constexpr, TILES: tl.constexpr, PADDED: tl.constexpr):
    """Return each block's largest pattern (int32, no sign): ``[TILES, PADDED]`` -> ``[TILES, F.blocks_padded]``."""
    if F.blocks == 1:
        found = tl.max(magnitude, 1)[:, None]
    elif F.even_blocks:
        found = tl.max(tl.reshape(magnitude, (TILES, F.blocks_padded, F.block)), 2)
    else:
        of = (tl.arange(0, PADDED) // F.block)[None, :]
        number = tl.arange(0, F.blocks_padded)[None, :]
        found = tl.full((TILES, F.blocks_padded), 0, tl.int32)
        for k in tl.static_range(tl.constexpr(F.blocks)):
            found = tl.where(number == k, tl.max(tl.where(of == k, magnitude, 0), 1)[:, None], found)
    return found


@triton.jit
def spread(values, F: tl.constexpr, TILES: tl.constexpr, PADDED: tl.constexpr):
    """Spread fp32 values of blocks over their elements: ``[TILES, F.blocks_padded]`` -> ``[TILES, PADDED]``."""
    if F.blocks == 1:
        spread_out = tl.broadcast_to(values, (TILES, PADDED))
    elif F.even_blocks:
        wide = tl.broadcast_to(values[:, :, None], (TILES, F.blocks_padded, F.block))
        spread_out = tl.reshape(wide, (TILES, PADDED))
    else:
        of = (tl.arange(0, PADDED) // F.block)[None, :]
        number = tl.arange(0, F.blocks_padded)[None, :]
        bits = tl.full((TILES, PADDED), 0, tl.int32)
        for k in tl.static_range(tl.constexpr(F.blocks)):
            bits = tl.where(of == k, tl.sum(tl.where(number == k, bits_of(values), 0), 1)[:, None], bits)
        spread_out = float_of(bits)
    return spread_out


@triton.jit
def scale_of_absmax(bits, F: tl.constexpr):
    """Return the stored scale of blocks from the pattern of their largest magnitude: ``Scaling.from_absmax``."""
    if F.pow2:
        code = tl.minimum(tl.maximum(((bits + F.carry) >> 23) - F.exponent, 1), 253)
        scale = tl.where(bits == 0, 0, code)
    else:
        scale = tl.div_rn(float_of(bits), F.reach)
        scale = tl.where(scale > 3.4028234663852886e38, 3.4028234663852886e38, scale)
        scale = tl.where(scale < 1.1754943508222875e-38, 0.0, scale)
    return scale


@triton.jit
def scale_value(scale, F: tl.constexpr):
    """Return the fp32 factor of a stored scale: ``Scaling.values``."""
    if F.pow2:
        value = float_of(scale << 23)
    else:
        value = scale
    return value


@triton.jit
def inverse_scale(scale, F: tl.constexpr):
    """Return the inverse of a stored scale: ``Scaling.inverses``."""
    if F.pow2:
        inverse = float_of(tl.where(scale > 0, (254 - scale) << 23, 0))
    else:
        inverse = tl.where(scale > 0.0, tl.div_rn(1.0, tl.where(scale > 0.0, scale, 1.0)), 0.0)
    return inverse
