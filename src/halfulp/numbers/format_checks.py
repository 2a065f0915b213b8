"""Checks of the arguments of a number format."""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halfulp.numbers.formats import Format

__all__ = ["check_format"]

FINEST = 24
"""The most bits beyond the mantissa that stochastic rounding uses (``F`` of :mod:`halfulp.numbers.rounding`)."""
WIDE = {"float32": (8, 23, 127), "bfloat16": (8, 7, 127), "float16": (5, 10, 15)}
"""The formats of more than 8 bits: their exponent bits, mantissa bits and bias."""
INTEGERS = ("bits", "exponent_bits", "mantissa_bits", "bias")


def check_format(fmt: Format) -> None:
    """Raise ``ValueError`` if the arguments of a format have a wrong type or contradict each other."""
    _check_types(fmt)
    if fmt.bits not in (4, 8, 16, 32):
        raise ValueError(f"{fmt.name}: a code has 4, 8, 16 or 32 bits, got {fmt.bits}")
    if fmt.bits > 8 and fmt.name not in WIDE:
        raise ValueError(f"{fmt.name}: a format of your own has 4 or 8 bits, got {fmt.bits}")
    numbers = (fmt.exponent_bits, fmt.mantissa_bits, fmt.bias)
    if fmt.name in WIDE and (fmt.kind, fmt.special, *numbers) != ("float", "ieee", *WIDE[fmt.name]):
        raise ValueError(f"there is another format {fmt.name!r}; give yours a name of its own")
    if fmt.kind == "float":
        _check_float(fmt)
    elif any(numbers):
        raise ValueError(f"{fmt.name}: only floats have exponent_bits, mantissa_bits and a bias, got {numbers}")
    if fmt.kind == "codebook":
        _check_levels(fmt)
    elif fmt.levels:
        raise ValueError(f"{fmt.name}: only a codebook has levels, this is of kind {fmt.kind!r}")


def _check_types(fmt: Format) -> None:
    if not isinstance(fmt.name, str) or not re.fullmatch(r"[\w.+-]+", fmt.name):
        raise ValueError(f"the name of a format consists of letters, digits, '_', '.', '+' and '-', got {fmt.name!r}")
    if fmt.kind not in ("float", "int", "codebook"):
        raise ValueError(f"{fmt.name}: kind is 'float', 'int' or 'codebook', got {fmt.kind!r}")
    if fmt.special not in ("ieee", "fn", "none"):
        raise ValueError(f"{fmt.name}: special is 'ieee', 'fn' or 'none', got {fmt.special!r}")
    if fmt.signed not in (True, False):
        raise ValueError(f"{fmt.name}: signed is True or False, got {fmt.signed!r}")
    for field in INTEGERS:
        value = getattr(fmt, field)
        if not isinstance(value, int) or isinstance(value, bool) or (value < 0 and field != "bias"):
            raise ValueError(f"{fmt.name}: {field} is an integer{'' if field == 'bias' else ' >= 0'}, got {value!r}")
    if not isinstance(fmt.levels, tuple) or not all(isinstance(level, (int, float)) for level in fmt.levels):
        raise ValueError(f"{fmt.name}: levels are a tuple of Python numbers, such as tuple(values.tolist())")


def _check_float(fmt: Format) -> None:
    if fmt.signed + fmt.exponent_bits + fmt.mantissa_bits != fmt.bits:
        raise ValueError(
            f"{fmt.name}: sign, exponent and mantissa are {fmt.signed + 0} + {fmt.exponent_bits} + "
            f"{fmt.mantissa_bits} bits, not {fmt.bits}"
        )
    if fmt.exponent_bits < 1 or (fmt.special == "ieee" and fmt.mantissa_bits < 1):
        raise ValueError(f"{fmt.name}: a float has an exponent bit, and a mantissa bit where 'ieee' tells NaN by it")
    smallest, largest = fmt.mantissa_bits + FINEST - 127, (1 << fmt.exponent_bits) - 1 - fmt.bias
    if fmt.scaled and (fmt.min_exponent < smallest or largest > 126):
        raise ValueError(
            f"{fmt.name}: with bias {fmt.bias} its exponents go from {fmt.min_exponent} to {largest}; "
            f"rounding in fp32 needs them between {smallest} and 126. Scales move numbers to where they are needed"
        )


def _check_levels(fmt: Format) -> None:
    levels = fmt.levels
    if len(levels) != 1 << fmt.bits:
        raise ValueError(f"{fmt.name}: {fmt.bits} bits name {1 << fmt.bits} levels, got {len(levels)}")
    if not all(a < b < math.inf for a, b in itertools.pairwise((-math.inf, *levels))):
        raise ValueError(f"{fmt.name}: levels must be finite and strictly increasing")
    if 0.0 not in levels or levels[-1] <= 0 or math.copysign(1.0, levels[levels.index(0.0)]) < 0:
        raise ValueError(f"{fmt.name}: levels must contain zero (0.0, not -0.0) and a positive number")
    if levels[0] < 0 and not fmt.signed:
        raise ValueError(f"{fmt.name}: negative levels need signed=True")
