"""A slow exact scalar model of the arithmetic in fractions and integers, without torch, numpy or our own code.

It is written from the definitions in ``docs/bit-contract.md``: the values of codes, rounding, the random word of an
element, the scale of a block, and one step of each rule. Fractions have no signed zero. If the sign of a zero matters,
the caller passes a float.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

MASK = 0xFFFFFFFF
ZERO = Fraction(0)


# ---------------------------------------------------------------- single precision


def f32(x: Fraction) -> Fraction:
    """Round to the nearest fp32 value, ties to even, with subnormals. Raise ``OverflowError`` beyond the largest."""
    if x == 0:
        return ZERO
    magnitude = abs(x)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, -126) - 23)
    rounded = round(magnitude / quantum) * quantum  # round() of a Fraction is half to even
    if rounded >= Fraction(2) ** 128:
        raise OverflowError(f"{float(x)} is beyond fp32")
    return rounded if x > 0 else -rounded


def f32_sqrt(x: Fraction) -> Fraction:
    """Return the correctly rounded square root of a non-negative fp32 value."""
    if x == 0:
        return ZERO
    shift = 2 * 140  # enough digits for 24 bits and a sticky bit of the smallest subnormal
    n = x.numerator * (1 << (2 * shift)) // x.denominator
    root = math.isqrt(n)
    sticky = 1 if root * root != n or x.numerator * (1 << (2 * shift)) % x.denominator else 0
    return f32(Fraction(2 * root + sticky, 1 << (shift + 1)))


# ---------------------------------------------------------------- formats


def value(fmt: Any, code: int) -> Fraction | None:
    """Return the value of a code, or ``None`` for NaN and infinity."""
    if fmt.kind == "codebook":
        return Fraction(fmt.levels[code])
    if fmt.kind == "int":
        return Fraction(code - 2**fmt.bits if fmt.signed and code >= 2 ** (fmt.bits - 1) else code)
    text = f"{code:0{fmt.bits}b}"
    sign = -1 if fmt.signed and text[0] == "1" else 1
    text = text[1:] if fmt.signed else text
    e, m = text[: fmt.exponent_bits], text[fmt.exponent_bits :]
    if fmt.special == "ieee" and "0" not in e:
        return None
    if fmt.special == "fn" and "0" not in text:
        return None
    exponent, mantissa = int(e, 2), Fraction(int(m or "0", 2), 2**fmt.mantissa_bits)
    if exponent == 0:
        return sign * mantissa * Fraction(2) ** (1 - fmt.bias)
    return sign * (1 + mantissa) * Fraction(2) ** (exponent - fmt.bias)


@cache
def magnitudes(fmt: Any) -> tuple[tuple[Fraction, int], ...]:
    """Return (value, code) of the non-negative numbers of a float or integer format, in increasing order."""
    codes = range(2 ** (fmt.bits - 1) if fmt.signed else 2**fmt.bits)
    return tuple(sorted((v, c) for c in codes if (v := value(fmt, c)) is not None))


def neighbours(table: Sequence[tuple[Fraction, int]], x: Fraction) -> tuple[tuple[Fraction, int], tuple[Fraction, int]]:
    """Return the table entries at or below and above a value within the table's range (the last two at its end)."""
    low, high = 0, len(table) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if table[middle][0] <= x else (low, middle)
    return table[low], table[high]


def fraction_bits(fmt: Any) -> int:
    """Return the number of random bits that stochastic rounding uses."""
    if fmt.name == "bfloat16" or fmt.kind == "codebook":
        return 16
    p = fmt.mantissa_bits if fmt.kind == "float" else fmt.bits - fmt.signed
    return min(24, 29 - p)


def encode(fmt: Any, x: float, word: int | None = None, zero_floor: bool = False) -> int:
    """Return the code of an fp32 value: nearest without a random word, stochastic with one."""
    if math.isnan(x):
        return int(fmt.nan_code)
    if fmt.kind == "codebook":
        return _encode_codebook(fmt, x, word, zero_floor)
    negative = math.copysign(1.0, x) < 0
    if negative and not fmt.signed:
        x = 0.0
    table = magnitudes(fmt)
    top = table[-1][0]
    magnitude = top if math.isinf(x) else min(abs(Fraction(x)), top)
    (low, low_code), (high, high_code) = neighbours(table, magnitude)
    share = (magnitude - low) / (high - low)
    if word is None:
        up = share > Fraction(1, 2) or (share == Fraction(1, 2) and _tie_up(fmt, low_code))
        code = high_code if up else low_code
        if zero_floor and code == 0 and magnitude > 0:
            code = 1
    else:
        bits = fraction_bits(fmt)
        code = high_code if round(share * 2**bits) + (word >> (32 - bits)) >= 2**bits else low_code
    if not (negative and fmt.signed):
        return code
    return (2**fmt.bits - code) % 2**fmt.bits if fmt.kind == "int" else code + 2 ** (fmt.bits - 1)


def _tie_up(fmt: Any, low_code: int) -> bool:
    """Ties go to the even multiple of the spacing. Without mantissa bits, that is always the upper power of two."""
    if fmt.kind == "float" and fmt.mantissa_bits == 0:
        return low_code > 0
    return low_code % 2 == 1


@cache
def _levels(fmt: Any) -> tuple[list[Fraction], list[Fraction]]:
    levels = [Fraction(v) for v in fmt.levels]
    return levels, [f32((a + b) / 2) for a, b in itertools.pairwise(levels)]


def _encode_codebook(fmt: Any, x: float, word: int | None, zero_floor: bool) -> int:
    levels, middles = _levels(fmt)
    y = levels[-1] if x == math.inf else levels[0] if x == -math.inf else Fraction(x)
    y = min(max(y, levels[0]), levels[-1])
    if word is None:
        code = bisect.bisect_left(middles, y)
        return code + 1 if zero_floor and levels[code] == 0 and y > 0 else code
    low = min(bisect.bisect_right(levels, y) - 1, len(levels) - 2)
    level, code, gap = _evenly(fmt)[low]
    bits = fraction_bits(fmt)
    fixed = round(f32(f32(y - level) * f32(2**bits / gap)))
    return code + ((fixed + (word >> (32 - bits))) >> bits)


@cache
def _evenly(fmt: Any) -> list[tuple[Fraction, int, Fraction]]:
    """Return for each gap the level next to zero of its run of even gaps, that level's code, and the run's mean gap.

    Successive gaps of a run differ by at most 1e-4, and no run crosses zero.
    """
    levels, made = _levels(fmt)[0], []
    gaps = [b - a for a, b in itertools.pairwise(levels)]
    while len(made) < len(gaps):
        first = last = len(made)
        while (
            last + 1 < len(gaps)
            and levels[last + 1] != 0
            and abs(gaps[last + 1] - gaps[last]) <= Fraction(1, 10000) * gaps[last + 1]
        ):
            last += 1
        gap = (levels[last + 1] - levels[first]) / (last + 1 - first)
        code = min((first, last + 1), key=lambda c: abs(levels[c]))
        made += [(levels[code], code, gap)] * (last + 1 - first)
    return made


# ---------------------------------------------------------------- random words


def philox4x32(counter: Sequence[int], key: Sequence[int], rounds: int = 10) -> list[int]:
    """Philox4x32 as in Salmon et al., SC 2011, algorithm on page 6."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & MASK, (a >> 32) ^ c[3] ^ k[1], a & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def random_word(seed: int, parameter: int, slot: str, step: int, element: int, multiplier: int = 0xD35A2D97) -> int:
    """Return the word of an element of a stream in a step."""
    import zlib

    counter = [parameter & MASK, zlib.crc32(slot.encode()), step & MASK, step >> 32]
    k0, k1 = philox4x32(counter, [seed & MASK, seed >> 32 & MASK])[:2]
    x = (element * 0x9E3779B9 & MASK) ^ k0 ^ ((element >> 32) * 0xBB67AE85 & MASK)
    x ^= x >> 16
    x = (x * 0x21F0AAAD + k1) & MASK
    x ^= x >> 15
    x = x * multiplier & MASK
    return x ^ x >> 15


# ---------------------------------------------------------------- blocks


@dataclass
class Stored:
    """One row of a state: codes, the scale of each block as a factor, and the storage."""

    fmt: Any
    block: int
    codes: list[int]
    scales: list[Fraction]
    rounding: str = "nearest"
    zero_floor: bool = False

    def read(self) -> list[Fraction]:
        values = [value(self.fmt, c) for c in self.codes]
        assert all(v is not None for v in values)
        if not self.fmt.scaled:
            return [v for v in values if v is not None]
        return [f32(v * self.scales[i // self.block]) for i, v in enumerate(values) if v is not None]

    def write(self, row: Sequence[Fraction], word: Callable[[int], int]) -> None:
        """Encode a new row with power-of-two scales; `word` gives the random word of an element."""
        draw = word if self.rounding == "stochastic" else lambda i: None
        if not self.fmt.scaled:
            self.codes = [encode(self.fmt, float(x), draw(i), self.zero_floor) for i, x in enumerate(row)]
            return
        top = magnitudes(self.fmt)[-1][0] if self.fmt.kind != "codebook" else Fraction(self.fmt.levels[-1])
        self.scales, self.codes = [], []
        for start in range(0, len(row), self.block):
            block = row[start : start + self.block]
            scale = pow2_scale(max(abs(x) for x in block), top)
            self.scales.append(scale)
            for i, x in enumerate(block, start):
                y = f32(x / scale) if scale else ZERO
                self.codes.append(encode(self.fmt, float(y), draw(i), self.zero_floor))


def pow2_scale(absmax: Fraction, top: Fraction) -> Fraction:
    """Return the smallest power of two in [2**-126, 2**126] that scales a magnitude to `top` or below; 0 for 0."""
    if absmax == 0:
        return ZERO
    ratio = absmax / top  # between 2**(length - 1) and 2**(length + 1)
    length = ratio.numerator.bit_length() - ratio.denominator.bit_length()
    scale = Fraction(2) ** max(-126, min(126, length - 2))
    while absmax / scale > top and scale < Fraction(2) ** 126:
        scale *= 2
    return scale


# ---------------------------------------------------------------- one step of each rule


def adam_step(p: Fraction, g: Fraction, m: Fraction, v: Fraction, c: dict[str, Fraction]) -> tuple[Fraction, ...]:
    """Do an Adam or AdamW step on one element, rounding every operation to fp32. Return parameter and both moments."""
    if c["l2"]:
        g = f32(g + f32(p * c["l2"]))
    m = f32(m + f32(f32(g - m) * c["weight1"]))
    v = f32(f32(v * c["beta2"]) + f32(f32(g * g) * c["weight2"]))
    denominator = f32(f32(f32_sqrt(v) * c["inv_sqrt_correction2"]) + c["eps"])
    ratio = f32(m / denominator)
    ratio = max(min(ratio, c["bound"]), -c["bound"])
    return f32(f32(p * c["keep"]) - f32(ratio * c["step_size"])), m, v


def sgd_step(p: Fraction, g: Fraction, b: Fraction, c: dict[str, Fraction]) -> tuple[Fraction, ...]:
    """Do an SGD step with momentum on one element. Return parameter and buffer."""
    if c["l2"]:
        g = f32(g + f32(p * c["l2"]))
    b = f32(f32(b * c["momentum"]) + f32(g * c["gain"]))
    step = f32(g + f32(b * c["nesterov"])) if c["nesterov"] else b
    return f32(p - f32(step * c["lr"])), b


def lion_step(p: Fraction, g: Fraction, m: Fraction, c: dict[str, Fraction]) -> tuple[Fraction, ...]:
    """Do a Lion step on one element. Return parameter and moment."""
    difference = f32(g - m)
    mixed = f32(m + f32(difference * c["weight1"]))
    direction = (mixed > 0) - (mixed < 0)
    return f32(f32(p * c["keep"]) - f32(direction * c["lr"])), f32(m + f32(difference * c["weight2"]))
