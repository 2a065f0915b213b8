"""Choice of format, scale and rounding for each Adam state, given the betas and a memory budget.

Candidates are ranked by the error that storing the moment causes in AdamW's update while the other moment is exact. The
error is the mean squared difference relative to the exact update's mean square (:mod:`halfulp.theory.update`). A second
moment of zero has the effect that the library's next update gives it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from halfulp.numbers.formats import Format, get_format
from halfulp.numbers.quantizer import Quantizer, Rounding
from halfulp.numbers.scaling import Scaling
from halfulp.numbers.show import Shown
from halfulp.rules.drives import as_drive
from halfulp.theory.arguments import check_beta, check_spread

__all__ = ["Advice", "Choice", "advise", "rate"]

SIGNED = ("bfloat16", "float8_e4m3fn", "float8_e3m4", "float8_e5m2", "dynamic8", "float4_e2m1fn")
UNSIGNED = (
    "bfloat16", "ufloat8_e4m4", "ufloat8_e5m3", "float8_e4m3fn", "udynamic8", "ufloat4_e4m0", "ufloat4_e3m1",
    "ufloat4_e2m2",
)  # fmt: skip
SAFE = 0.015
"""Largest relative mean squared error of a choice that is called safe."""
LONG = 3000
"""Steps after which a second moment under nearest rounding must still be safe, since its error keeps growing."""


@dataclass(frozen=True)
class Choice:
    """One way to store a slot.

    Parameters
    ----------
    scale_kind
        ``"pow2"`` or ``"fp32"`` for blocks of 128; ``"none"`` for formats without scales.
    error
        Relative mean squared error that it causes in the update.
    stalled
        Stalled fraction of values over steps 100 to 400. Under fp32 scales, values move with their block.
    bytes
        Bytes per parameter, including scales.
    """

    slot: str
    format: str
    rounding: Rounding
    scale_kind: Literal["none", "pow2", "fp32"]
    error: float
    stalled: float
    bytes: float

    @property
    def safe(self) -> bool:
        """Whether the error is small compared with the update's own noise."""
        return self.error <= SAFE

    @property
    def storage(self) -> str | Quantizer:
        """Value for ``state=``: the format's name, or a quantizer if the scales differ from the optimizers' default."""
        if self.scale_kind != "fp32":
            return self.format
        return Quantizer(
            get_format(self.format), Scaling("fp32"), self.rounding, zero_floor=as_drive(self.slot).nonnegative
        )

    def __str__(self) -> str:
        word = "safe" if self.safe else "not safe"
        scales = "" if self.scale_kind == "none" else f", {self.scale_kind} scales"
        return (
            f"{self.slot}: {self.format}{scales}, {self.rounding} ({word}: relative error {self.error:.2g}, "
            f"{self.stalled:.0%} of updates stall, {self.bytes:.2f} bytes)"
        )


@dataclass(frozen=True, repr=False)
class Advice(Shown):
    """The best choice of each slot within the budget, and all candidates in order of error."""

    exp_avg: Choice
    exp_avg_sq: Choice
    candidates: tuple[Choice, ...]

    @property
    def state(self) -> dict[str, str | Quantizer]:
        """Value for ``state=``."""
        return {"exp_avg": self.exp_avg.storage, "exp_avg_sq": self.exp_avg_sq.storage}

    @property
    def rounding(self) -> dict[str, Rounding]:
        """Value for ``rounding=``. Quantizers in :attr:`state` have the same rounding."""
        return {"exp_avg": self.exp_avg.rounding, "exp_avg_sq": self.exp_avg_sq.rounding}

    def in_short(self) -> str:
        """The formats and their bytes."""
        total = self.exp_avg.bytes + self.exp_avg_sq.bytes
        return f"exp_avg={self.exp_avg.format}, exp_avg_sq={self.exp_avg_sq.format}, {total:.2f} bytes a parameter"

    def __str__(self) -> str:
        total = self.exp_avg.bytes + self.exp_avg_sq.bytes
        return f"{self.exp_avg}\n{self.exp_avg_sq}\n{total:.2f} bytes a parameter"


@lru_cache(maxsize=512)
def rate(
    fmt: str | Format,
    *,
    slot: str,
    beta: float,
    rounding: Rounding,
    scale_kind: Literal["pow2", "fp32"] = "pow2",
    spread: float = 1.0,
    beta_other: float | None = None,
) -> Choice:
    """Return the cost of a format in a slot.

    Parameters
    ----------
    rounding
        ``"nearest"`` (for a second moment with the floor, as in the optimizers) or ``"stochastic"``.
    scale_kind
        ``"pow2"`` or ``"fp32"``; ignored for formats without scales.
    spread
        Standard deviation of the logarithm of the gradient's scale within a block; 0 for even blocks.
    beta_other
        Decay of the other moment. Default: 0.999 for a first, 0.9 for a second moment.

    Examples
    --------
    >>> rate("bf16", slot="exp_avg_sq", beta=0.95, rounding="nearest").safe
    True
    >>> rate("float8_e4m3fn", slot="exp_avg_sq", beta=0.95, rounding="nearest").safe
    False
    >>> rate("ufloat4_e4m0", slot="exp_avg_sq", beta=0.999, rounding="stochastic").error > 1  # a few zeros
    True
    """
    from halfulp.theory.blocks import Blocks
    from halfulp.theory.update import update_law

    drive = as_drive(slot)
    second = drive.nonnegative
    resolved = get_format(fmt, signed=not second)
    if resolved.is_float32:
        return Choice(slot, resolved.name, rounding, "none", 0.0, 0.0, 4.0)
    stored = Quantizer(resolved, Scaling(scale_kind), rounding, second)
    blocks = Blocks(resolved, beta, rounding, drive, scale_kind, spread=spread)
    if beta_other is None:
        beta_other = 0.9 if second else 0.999
    law = update_law(blocks, beta_other)
    error = law.error
    if second and rounding == "nearest" and error <= SAFE:
        error = max(error, update_law(blocks, beta_other, LONG, paths=4).error)
    size = stored.bytes((1, blocks.block_size)) / blocks.block_size
    return Choice(slot, resolved.name, rounding, scale_kind if resolved.scaled else "none", error, law.stalled, size)


def advise(
    betas: tuple[float, float] = (0.9, 0.999), *, bytes_per_parameter: float = 2.1, spread: float = 1.0
) -> Advice:
    """Return the formats, scales and roundings of Adam's moments with the least error within a memory budget.

    Parameters
    ----------
    betas
        Decays of the first and second moment.
    bytes_per_parameter
        Budget for both moments, including scales: 4 for bf16, about 2 for 8 bits, about 1 for 4 bits.
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
    >>> second = advise(bytes_per_parameter=1.1).exp_avg_sq
    >>> second.format, second.scale_kind, second.rounding
    ('ufloat4_e4m0', 'fp32', 'nearest')
    """
    scales: tuple[Literal["pow2", "fp32"], ...] = ("pow2", "fp32")
    roundings: tuple[Rounding, ...] = ("nearest", "stochastic")
    check_spread(spread)
    for beta in betas:
        check_beta(beta, "each of betas")
    rated = {
        slot: [
            rate(name, slot=slot, beta=beta, rounding=how, scale_kind=kind, spread=spread, beta_other=other)
            for name in names
            for kind in (scales if get_format(name).scaled else scales[:1])
            for how in roundings
        ]
        for slot, names, beta, other in (("exp_avg", SIGNED, *betas), ("exp_avg_sq", UNSIGNED, *betas[::-1]))
    }
    pairs = [
        (m, v)
        for m, v in itertools.product(rated["exp_avg"], rated["exp_avg_sq"])
        if m.bytes + v.bytes <= bytes_per_parameter
    ]
    if not pairs:
        least = min(m.bytes for m in rated["exp_avg"]) + min(v.bytes for v in rated["exp_avg_sq"])
        raise ValueError(
            f"no formats fit {bytes_per_parameter} bytes per parameter; the smallest pair takes {least:.2f}"
        )
    m, v = min(pairs, key=lambda pair: (pair[0].error + pair[1].error, pair[0].bytes + pair[1].bytes))
    everything = sorted(itertools.chain.from_iterable(rated.values()), key=lambda c: (c.slot, c.error))
    return Advice(m, v, tuple(everything))
