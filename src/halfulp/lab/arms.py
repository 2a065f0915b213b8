"""Arms: names for how the optimizer states of a training run are stored.

An arm is written ``FORMAT-ROUNDING[-reset[PERIOD]]``: ``bf16-nearest``, ``fp8-stochastic``, ``fp8-nearest-reset``,
``fp4-stochastic-reset200``. ``fp32`` and ``fp32-reset`` have no rounding. ``A+B`` as the format stores the first moment
as A and the second as B: ``bf16+fp8-nearest``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from halfulp.numbers.formats import Format, get_format

__all__ = ["DEFAULT_ARMS", "PUBLISHED_PERIODS", "Arm", "parse_arm", "published_period", "reset_period"]

DEFAULT_ARMS = (
    "fp32",
    "fp32-reset",
    "bf16-nearest",
    "bf16-stochastic",
    "fp8-nearest",
    "fp8-nearest-reset",
    "fp8-stochastic",
    "fp4-nearest",
    "fp4-stochastic",
)

PUBLISHED_PERIODS = {16: 1000, 8: 300, 4: 200}
"""Reset periods by bits of the format, from arXiv 2603.16731."""

_SHAPE = "FORMAT-ROUNDING[-reset[PERIOD]], for example fp8-nearest, fp8-stochastic, fp8-nearest-reset300; or fp32"


@dataclass(frozen=True)
class Arm:
    """One way to store the two moments of AdamW: their formats (short or full names), rounding and resets.

    `reset` is ``None`` for never, 0 for the published period (see :func:`reset_period`), or the period in steps.
    """

    exp_avg: str
    exp_avg_sq: str
    rounding: str
    reset: int | None = None

    @property
    def is_fp32(self) -> bool:
        """Whether nothing is rounded."""
        return all(get_format(f).is_float32 for f in (self.exp_avg, self.exp_avg_sq))

    @property
    def formats(self) -> str:
        """The format part of the name."""
        return self.exp_avg if self.exp_avg == self.exp_avg_sq else f"{self.exp_avg}+{self.exp_avg_sq}"

    @property
    def name(self) -> str:
        """The arm's name."""
        parts = [self.formats] if self.is_fp32 else [self.formats, self.rounding]
        if self.reset is not None:
            parts.append(f"reset{self.reset or ''}")
        return "-".join(parts)

    @property
    def label(self) -> str:
        """The arm in words."""
        words = self.formats if self.is_fp32 else f"{self.formats} {self.rounding}"
        return words if self.reset is None else f"{words} + reset"


def parse_arm(text: str) -> Arm:
    """Parse an arm's name. An error shows it and the syntax.

    Examples
    --------
    >>> parse_arm("fp8-nearest-reset300")
    Arm(exp_avg='fp8', exp_avg_sq='fp8', rounding='nearest', reset=300)
    >>> parse_arm("fp32-reset").label
    'fp32 + reset'
    """
    words = text.strip().split("-")
    reset: int | None = None
    if len(words) > 1 and words[-1].startswith("reset"):
        match = re.fullmatch(r"reset(\d*)", words.pop())
        if match is None or match[1] == "0":
            raise ValueError(f"arm {text!r}: a reset is 'reset' or 'reset' and a period, as in reset300")
        reset = int(match[1] or 0)
    formats = words[0].split("+")
    if not words[0] or len(formats) > 2:
        raise ValueError(f"arm {text!r}: an arm is {_SHAPE}")
    try:
        fp32 = all(get_format(f).is_float32 for f in formats)
    except ValueError as error:
        raise ValueError(f"arm {text!r}: {error}") from error
    if fp32 and len(words) == 1:
        words.append("nearest")
    elif fp32:
        raise ValueError(f"arm {text!r}: fp32 states are not rounded; write fp32 or fp32-reset")
    if not get_format(formats[0]).signed:
        raise ValueError(f"arm {text!r}: the first moment takes negative values, and {formats[0]} has no sign")
    if len(words) == 1:
        raise ValueError(f"arm {text!r} names no rounding; write {text}-nearest or {text}-stochastic")
    if len(words) > 2 or words[1] not in ("nearest", "stochastic"):
        raise ValueError(f"arm {text!r}: {'-'.join(words[1:])!r} is no rounding; an arm is {_SHAPE}")
    return Arm(formats[0], formats[-1], words[1], reset)


def reset_period(arm: Arm, arms: tuple[Arm, ...]) -> int | None:
    """Return the steps between resets of an arm, or ``None`` for never.

    An arm without a number uses the published period for its second moment, since planned periods exceed a short run.
    fp32 needs no reset. As a control, it uses the period of the first low-precision arm with resets, or 300.
    """
    if arm.reset is None or arm.reset > 0:
        return arm.reset
    others = [a for a in arms if a.reset is not None and not a.is_fp32]
    if arm.is_fp32:
        return reset_period(others[0], arms) if others else PUBLISHED_PERIODS[8]
    return published_period(get_format(arm.exp_avg_sq, signed=False))


def published_period(fmt: Format) -> int:
    """Return the paper's reset period for a format: that of the next smaller size in :data:`PUBLISHED_PERIODS`."""
    return PUBLISHED_PERIODS[max(bits for bits in PUBLISHED_PERIODS if bits <= fmt.bits)]
