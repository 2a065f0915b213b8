"""Which format and rounding each Adam state should have, given the betas and a memory budget.

Each candidate is ranked by what rounding does to its moment in the long run, as the theory gives it: the relative mean
squared error of the stored value about the exact one, bias and added noise together, in units that a first and a second
moment share (what it adds to the relative error of the update; a relative error of ``v`` counts half).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from halfulp.formats import FORMATS, Format, get_format
from halfulp.scaling import Scaling

__all__ = ["Advice", "Choice", "advise", "rate"]

SIGNED = ("bfloat16", "float8_e4m3fn", "float8_e3m4", "float8_e5m2", "dynamic8", "float4_e2m1fn")
UNSIGNED = (
    "bfloat16", "ufloat8_e4m4", "ufloat8_e5m3", "float8_e4m3fn", "udynamic8", "ufloat4_e4m0", "ufloat4_e3m1",
    "ufloat4_e2m2",
)  # fmt: skip
SAFE = 0.015
"""Relative mean squared error up to which a choice is called safe."""


@dataclass(frozen=True)
class Choice:
    """One way to store one slot.

    Parameters
    ----------
    slot, format, rounding
        What is stored, and how.
    error
        Relative mean squared error it brings to the update.
    stalled
        Stalled fraction at age ``3 / (1 - beta)``.
    bytes
        Bytes a parameter, scales included.
    """

    slot: str
    format: str
    rounding: str
    error: float
    stalled: float
    bytes: float

    @property
    def safe(self) -> bool:
        """Whether the error is small beside the update's own noise."""
        return self.error <= SAFE

    def __str__(self) -> str:
        word = "safe" if self.safe else "not safe"
        return (
            f"{self.slot}: {self.format}, {self.rounding} ({word}: relative error {self.error:.2g}, "
            f"{self.stalled:.0%} of updates stall, {self.bytes:.2f} bytes)"
        )


@dataclass(frozen=True)
class Advice:
    """The best choice of each slot within the budget, and all candidates in order of error."""

    exp_avg: Choice
    exp_avg_sq: Choice
    candidates: tuple[Choice, ...]

    @property
    def state(self) -> dict[str, str]:
        """For ``state=``."""
        return {"exp_avg": self.exp_avg.format, "exp_avg_sq": self.exp_avg_sq.format}

    @property
    def rounding(self) -> dict[str, str]:
        """For ``rounding=``."""
        return {"exp_avg": self.exp_avg.rounding, "exp_avg_sq": self.exp_avg_sq.rounding}

    def __str__(self) -> str:
        total = self.exp_avg.bytes + self.exp_avg_sq.bytes
        return f"{self.exp_avg}\n{self.exp_avg_sq}\n{total:.2f} bytes a parameter"


def stored_bytes(fmt: Format, block_size: int = 128) -> float:
    """Bytes a parameter, with one power-of-two scale a block where the format needs one."""
    scale = Scaling("pow2", "block", block_size).dtype.itemsize / block_size if fmt.scaled else 0.0
    return fmt.bits / 8 + scale


@lru_cache(maxsize=512)
def rate(fmt: str | Format, *, slot: str, beta: float, rounding: str, spread: float = 1.0) -> Choice:
    """What a format costs in a slot.

    Parameters
    ----------
    fmt
        Format or name.
    slot
        ``"exp_avg"`` or ``"exp_avg_sq"``.
    beta
        Decay.
    rounding
        ``"nearest"`` or ``"stochastic"``.
    spread
        Deviation of the logarithm of the gradient's scale within a block. What lies below the smallest code of a block
        counts: its update is wrong altogether. 0 for none.

    Examples
    --------
    >>> rate("bf16", slot="exp_avg_sq", beta=0.95, rounding="nearest").safe
    True
    >>> rate("float8_e4m3fn", slot="exp_avg_sq", beta=0.95, rounding="nearest").safe
    False
    """
    from halfulp.theory.stall import check_slot, stall_probability

    check_slot(slot)
    resolved = get_format(fmt, signed=slot == "exp_avg")
    window = round(max(3 / (1 - beta), 3000))  # nearest rounding creeps on after the average has settled
    stalled = stall_probability(resolved, beta=beta, rounding=rounding, slot=slot)  # type: ignore[arg-type]
    error = 0.0
    if not resolved.is_float32:
        error = _rounding_error(resolved, slot, beta, rounding, window) + _underflow(resolved, slot, spread)
    return Choice(slot, resolved.name, rounding, error, stalled, stored_bytes(resolved))


def _rounding_error(fmt: Format, slot: str, beta: float, rounding: str, window: int) -> float:
    from halfulp.theory.chain import Chain
    from halfulp.theory.drive import GRADIENT, SQUARE
    from halfulp.theory.transient import transient

    if fmt.kind != "float":  # the same spacing at the place where most values are
        levels = np.array([v for v in fmt.grid() if v > 0])
        ratio = np.median(np.diff(levels) / levels[:-1])
        bits = -math.log2(ratio)
        floats = [f for f in FORMATS.values() if f.kind == "float" and f.signed and not f.is_float32]
        fmt = min(floats, key=lambda f: abs(f.mantissa_bits - bits))
    drive = SQUARE if slot == "exp_avg_sq" else GRADIENT
    law = transient(Chain(fmt, beta, rounding, drive), window)
    if slot == "exp_avg_sq":  # error of 1/sqrt(v): bias, and noise beyond that of the exact average
        bias = law.mean[-1] / law.exact_mean[-1]
        noise = max(law.deviation[-1] ** 2 - law.exact_deviation[-1] ** 2, 0.0) / law.mean[-1] ** 2
        return float((bias**-0.5 - 1) ** 2 + noise / 4)
    return float(abs(law.moment("square")[-1] / law.exact_deviation[-1] ** 2 - 1))


def _underflow(fmt: Format, slot: str, spread: float) -> float:
    """Share of the elements of a block that lie below half its smallest code, for log-normal sizes."""
    if not fmt.scaled or spread == 0:
        return 0.0
    from scipy.special import ndtr

    power = 2 if slot == "exp_avg_sq" else 1
    largest = 2.6 * spread * power  # of 128 normal logarithms
    reach = np.log(fmt.max / fmt.smallest) + np.log(2) * 0.5  # scales are rounded up by half an octave on average
    return float(ndtr((largest - reach) / (spread * power)))


def advise(
    betas: tuple[float, float] = (0.9, 0.999), *, bytes_per_parameter: float = 2.1, spread: float = 1.0
) -> Advice:
    """Formats and roundings of Adam's moments that lose least within a memory budget.

    Parameters
    ----------
    betas
        Decays of the first and second moment.
    bytes_per_parameter
        Budget for both together, scales included: 4 for bf16, about 2 for 8 bits, about 1 for 4 bits.
    spread
        See :func:`rate`.

    Raises
    ------
    ValueError
        If no pair of formats fits the budget.

    Examples
    --------
    >>> advice = advise((0.9, 0.9), bytes_per_parameter=2.1)
    >>> advice.exp_avg.bytes + advice.exp_avg_sq.bytes <= 2.1
    True
    """
    rated = {
        slot: [
            rate(name, slot=slot, beta=beta, rounding=how, spread=spread)
            for name in names
            for how in ("nearest", "stochastic")
        ]
        for slot, names, beta in (("exp_avg", SIGNED, betas[0]), ("exp_avg_sq", UNSIGNED, betas[1]))
    }
    pairs = [
        (m, v)
        for m, v in itertools.product(rated["exp_avg"], rated["exp_avg_sq"])
        if m.bytes + v.bytes <= bytes_per_parameter
    ]
    if not pairs:
        least = min(m.bytes for m in rated["exp_avg"]) + min(v.bytes for v in rated["exp_avg_sq"])
        raise ValueError(f"no formats fit {bytes_per_parameter} bytes a parameter; the smallest pair takes {least:.2f}")
    m, v = min(pairs, key=lambda pair: (pair[0].error + pair[1].error, pair[0].bytes + pair[1].bytes))
    everything = sorted(itertools.chain.from_iterable(rated.values()), key=lambda c: (c.slot, c.error))
    return Advice(m, v, tuple(everything))
