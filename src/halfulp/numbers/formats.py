"""Number formats for optimizer states, as data.

Each format is one frozen, hashable :class:`Format`. There are three kinds:

``float``
    sign, exponent and mantissa bits, named as in ``ml_dtypes``. The ``ufloat`` formats have one more mantissa bit
    instead of a sign, and no codes for NaN and infinity, which no stored state is.
``int``
    a linear grid in two's complement. Signed formats never use the most negative code, so that the grid is symmetric.
``codebook``
    any sorted list of levels.

To add a format, add a row to :data:`FORMATS` (see ``CONTRIBUTING.md``). Users register their own with
:func:`register_format`.
"""

from __future__ import annotations

import difflib
import itertools
import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import torch

from halfulp.numbers.format_checks import check_format
from halfulp.numbers.single import all_of_fp32

__all__ = ["FORMATS", "FRIENDLY", "Format", "get_format", "register_format", "resolve_name"]

Kind = Literal["float", "int", "codebook"]
Special = Literal["ieee", "fn", "none"]


@dataclass(frozen=True)
class Format:
    """A number format, which gives the value of each code.

    Parameters
    ----------
    name
        The name, as in ``ml_dtypes`` if that has the format.
    kind
        ``"float"``, ``"int"`` or ``"codebook"``.
    bits
        The width of a code: 4, 8, 16 or 32. Four-bit codes are packed two to a byte.
    signed
        Whether there are negative values.
    exponent_bits, mantissa_bits, bias
        For floats. ``mantissa_bits`` counts the explicit bits; the relative spacing is ``2**-mantissa_bits``.
    special
        ``"ieee"``: the last exponent holds infinity and NaN. ``"fn"``: only the all-ones code is NaN. ``"none"``: every
        code is a finite number.
    levels
        For codebooks: the values of codes 0, 1, 2, ... in increasing order, including zero.

    Raises
    ------
    ValueError
        If an argument has a wrong type, or the arguments contradict each other.

    Examples
    --------
    >>> from halfulp.numbers.formats import get_format
    >>> get_format("float8_e4m3fn").max
    448.0
    >>> get_format("ufloat4_e2m2").grid()[:5]
    (0.0, 0.25, 0.5, 0.75, 1.0)
    """

    name: str
    kind: Kind
    bits: int
    signed: bool
    exponent_bits: int = 0
    mantissa_bits: int = 0
    bias: int = 0
    special: Special = "none"
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_format(self)

    @property
    def is_float32(self) -> bool:
        """Whether this is single precision, so that nothing is rounded."""
        return self.name == "float32"

    @property
    def scaled(self) -> bool:
        """Whether states in this format have scales. Floats of 16 and 32 bits have enough range without."""
        return self.bits <= 8

    @property
    def packed(self) -> bool:
        """Whether two codes share a byte."""
        return self.bits == 4

    @property
    def epsilon(self) -> float:
        """The spacing of the grid just above a power of two, relative to it: ``2**-mantissa_bits`` (floats only)."""
        if self.kind != "float":
            raise ValueError(f"{self.name} is not a float format: its grid has no relative spacing")
        return math.ldexp(1.0, -self.mantissa_bits)

    @property
    def min_exponent(self) -> int:
        """The exponent of the smallest normal number (floats only)."""
        return 1 - self.bias

    @property
    def value_bits(self) -> int:
        """The number of bits of a code without the sign."""
        return self.bits - 1 if self.signed else self.bits

    @cached_property
    def max(self) -> float:
        """The largest finite value."""
        return self.decode(self.max_code)

    @cached_property
    def reach(self) -> float:
        """The largest magnitude available with either sign, to which scales map a block's largest element at most.

        It differs from :attr:`max` for codebooks with a shorter negative side. If blocks were scaled by their maximum,
        a slowly growing negative element would be clipped in each step and could never leave its power of two.
        """
        return min(self.max, -self.levels[0]) if self.kind == "codebook" and self.signed else self.max

    @cached_property
    def max_code(self) -> int:
        """The code of the largest finite value."""
        if self.kind == "codebook":
            return len(self.levels) - 1
        top = (1 << self.value_bits) - 1
        if self.special == "ieee":
            return top - (1 << self.mantissa_bits)
        return top - 1 if self.special == "fn" else top

    @cached_property
    def smallest(self) -> float:
        """The smallest positive value (subnormal for floats)."""
        if self.kind == "codebook":
            return min(v for v in self.levels if v > 0)
        return self.decode(1)

    @property
    def nan_code(self) -> int:
        """The code for NaN. Formats without NaN store zero, as ``ml_dtypes`` does."""
        if self.kind != "float":
            return self.encode_exact(0.0)
        top = (1 << self.value_bits) - 1
        if self.special == "fn":
            return top
        if self.special == "ieee":
            return top - (1 << (self.mantissa_bits - 1)) + 1
        return 1 << self.value_bits if self.signed else 0

    def decode(self, code: int) -> float:
        """Return the exact value of one code in ``O(1)``. For tensors, see :mod:`halfulp.numbers.rounding`."""
        if not 0 <= code < 1 << self.bits:
            raise ValueError(f"{self.name} has codes 0 to {(1 << self.bits) - 1}, got {code}")
        if self.kind == "codebook":
            return self.levels[code]
        if self.kind == "int":
            return float(code - (1 << self.bits) if self.signed and code >> (self.bits - 1) else code)
        magnitude = code & ((1 << self.value_bits) - 1)
        sign = -1.0 if self.signed and code >> self.value_bits else 1.0
        exponent, mantissa = magnitude >> self.mantissa_bits, magnitude & ((1 << self.mantissa_bits) - 1)
        if self.special == "ieee" and exponent == (1 << self.exponent_bits) - 1:
            return sign * math.inf if mantissa == 0 else math.nan
        if self.special == "fn" and magnitude == (1 << self.value_bits) - 1:
            return math.nan
        if exponent == 0:
            return sign * math.ldexp(mantissa, self.min_exponent - self.mantissa_bits)
        return sign * math.ldexp((1 << self.mantissa_bits) + mantissa, exponent - self.bias - self.mantissa_bits)

    def encode_exact(self, value: float) -> int:
        """Return the code of a value on the grid. Raise ``ValueError`` for any other. For tests and tables."""
        for code in range(1 << self.bits):
            if self.decode(code) == value and math.copysign(1, self.decode(code)) == math.copysign(1, value):
                return code
        raise ValueError(f"{value!r} is not a value of {self.name}")

    @cache  # noqa: B019 - rows are module constants, and hashable
    def grid(self) -> tuple[float, ...]:
        """Return every finite value once, in increasing order. Raise ``ValueError`` for float32."""
        if self.bits > 16:
            raise ValueError(f"{self.name} has too many values to list")
        values = {self.decode(c) + 0.0 for c in range(1 << self.bits)}
        if self.kind == "int" and self.signed:
            values.discard(-float(1 << (self.bits - 1)))
        return tuple(sorted(v for v in values if math.isfinite(v)))

    def __str__(self) -> str:
        return self.name


def dynamic_levels(signed: bool) -> tuple[float, ...]:
    """Return the levels of the 8-bit dynamic map of Dettmers et al., arXiv 2110.02861 (block-wise in bitsandbytes).

    There are seven decades below 1. Each has twice the levels of the next lower one, at the middles of equal parts of
    [0.1, 1] of the decade. 0 and 1 are levels too.
    """
    levels = [0.0, 1.0]
    for decade in range(7):
        parts = 2**decade if signed else 2 ** (decade + 1)
        edges = [0.1 + 0.9 * i / parts for i in range(parts + 1)]
        scale = 10.0 ** (decade - 6)
        for low, high in itertools.pairwise(edges):
            levels.append(scale * (low + high) / 2)
            if signed:
                levels.append(-scale * (low + high) / 2)
    return all_of_fp32(sorted(levels))


def _float(name: str, signed: bool, e: int, m: int, bias: int, special: Special) -> Format:
    return Format(name, "float", e + m + signed, signed, e, m, bias, special)


_ROWS = (
    _float("float32", True, 8, 23, 127, "ieee"),
    _float("bfloat16", True, 8, 7, 127, "ieee"),
    _float("float16", True, 5, 10, 15, "ieee"),
    _float("float8_e5m2", True, 5, 2, 15, "ieee"),
    _float("float8_e4m3fn", True, 4, 3, 7, "fn"),
    _float("float8_e3m4", True, 3, 4, 3, "ieee"),
    _float("float4_e2m1fn", True, 2, 1, 1, "none"),
    _float("ufloat8_e5m3", False, 5, 3, 15, "none"),
    _float("ufloat8_e4m4", False, 4, 4, 7, "none"),
    _float("ufloat4_e2m2", False, 2, 2, 1, "none"),
    _float("ufloat4_e3m1", False, 3, 1, 3, "none"),
    _float("ufloat4_e4m0", False, 4, 0, 7, "none"),
    Format("linear8", "int", 8, True),
    Format("ulinear8", "int", 8, False),
    Format("int4", "int", 4, True),
    Format("uint4", "int", 4, False),
    Format("dynamic8", "codebook", 8, True, levels=dynamic_levels(True)),
    Format("udynamic8", "codebook", 8, False, levels=dynamic_levels(False)),
)

FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}
"""Every format by its full name."""

BUILT_IN = frozenset(_ROWS)
"""Formats whose name alone determines the values of codes, in every process."""


def register_format(fmt: Format) -> Format:
    """Register your own format by name for ``state=``, conversion, ``halfulp check`` and the monitor.

    An unregistered :class:`Format` can be passed as a state, but is not recognized in files or in the states of another
    optimizer. Files name your own format with a fingerprint of its values.

    Parameters
    ----------
    fmt
        The format. It is returned.

    Raises
    ------
    TypeError
        If `fmt` is not a :class:`Format`.
    ValueError
        If another format has this name.

    Examples
    --------
    >>> eighths = Format("eighths", "codebook", 4, True, levels=tuple(i / 8 for i in range(-7, 9)))
    >>> register_format(eighths) is get_format("eighths")
    True
    >>> _ = FORMATS.pop("eighths")  # as it was
    """
    if not isinstance(fmt, Format):
        raise TypeError(f"a Format is registered, got {fmt!r}")
    known = FORMATS.get(fmt.name)
    if fmt.name in FRIENDLY or (known is not None and known != fmt):
        raise ValueError(f"there is another format {fmt.name!r}; give yours a name of its own")
    return FORMATS.setdefault(fmt.name, fmt)


FRIENDLY: dict[str, tuple[str, str]] = {
    "fp32": ("float32", "float32"),
    "bf16": ("bfloat16", "bfloat16"),
    "fp16": ("float16", "float16"),
    "fp8": ("float8_e4m3fn", "float8_e4m3fn"),
    "fp4": ("float4_e2m1fn", "ufloat4_e2m2"),
    "int8": ("dynamic8", "udynamic8"),
    "int4": ("int4", "uint4"),
    "8bit": ("float8_e4m3fn", "ufloat8_e5m3"),
    "4bit": ("float4_e2m1fn", "ufloat4_e4m0"),
}
"""Short names, as (signed slot, non-negative slot). ``fp8`` and ``fp4`` are the published choices, ``int8`` is the
dynamic codebook, and ``8bit`` and ``4bit`` are the formats that lose least in measurements (see ``docs/formats.md``).
"""


def resolve_name(name: str, *, signed: bool) -> str:
    """Return the full name of a format, from a full or a short name.

    Parameters
    ----------
    name
        A key of :data:`FRIENDLY` or :data:`FORMATS`.
    signed
        Whether the slot holds negative values.

    Raises
    ------
    ValueError
        For an unknown name. The message lists the known names and the closest one.

    Examples
    --------
    >>> resolve_name("8bit", signed=True), resolve_name("8bit", signed=False)
    ('float8_e4m3fn', 'ufloat8_e5m3')
    """
    if name in FRIENDLY:
        return FRIENDLY[name][0 if signed else 1]
    if name in FORMATS:
        return name
    known = [*FRIENDLY, *(f for f in FORMATS if f not in FRIENDLY)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown state format {name!r}.{hint} Known: {', '.join(known)}")


def get_format(name: str | Format | torch.dtype, *, signed: bool = True) -> Format:
    """Look up a format by its full name, a short name or a torch dtype. A :class:`Format` is returned as it is.

    Parameters
    ----------
    name
        A name, a dtype or a format.
    signed
        Whether the state has negative values. If not, short names stand for other formats.

    Raises
    ------
    ValueError
        If there is no such format, or a dtype is not a state format (``torch.int8``; the name ``"int8"`` is a
        codebook).

    Examples
    --------
    >>> get_format("fp4", signed=False).name
    'ufloat4_e2m2'
    """
    if isinstance(name, Format):
        return name
    if isinstance(name, torch.dtype):
        of_dtype = FORMATS.get(str(name).removeprefix("torch."))
        if of_dtype is None:
            raise ValueError(f"{name} is no state format; dtypes that are: {', '.join(_dtypes())}; others go by name")
        return of_dtype
    if not isinstance(name, str):
        raise ValueError(f"a format is given by name, as a Format or as a torch dtype; got {name!r}")
    return FORMATS[resolve_name(name, signed=signed)]


def _dtypes() -> list[str]:
    return [f"torch.{name}" for name in FORMATS if isinstance(getattr(torch, name, None), torch.dtype)]
