"""What theory predicts for a state of a given age, from one curve a format and decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from halfulp.numbers.formats import FORMATS
from halfulp.rules.slots import Likeness

if TYPE_CHECKING:
    from halfulp.theory.drive import Drive

__all__ = ["AgeBins", "predicted", "predicted_like"]

HORIZON = {"exp_avg_sq": (1 << 14, 8.0), "exp_avg": (64, 16.0)}
"""Ages beyond so many steps, or so many windows ``1 / (1 - beta)`` if that is more, are given the prediction there.

A signed state has settled by then. A second moment rounded to nearest never does, but its curve has gone flat.
"""


def predicted(fmt: str, beta: float | None, rounding: str, drive: str, age: int) -> float | None:
    """Predicted stalled fraction of the update that meets a state of an age; ``None`` where theory has no answer."""
    if drive not in ("grad", "grad_sq") or beta is None or not 0.0 < beta < 1.0 or fmt not in FORMATS:
        return None
    slot = "exp_avg_sq" if drive == "grad_sq" else "exp_avg"
    least, windows = HORIZON[slot]
    steps = min(1 << max(age, 63).bit_length(), max(least, int(windows / (1 - beta))))
    curve = _curve(fmt, beta, rounding, slot, steps)
    return None if curve is None else float(curve[min(age, steps - 1)])


def predicted_like(fmt: str, rounding: str, like: Likeness) -> float | None:
    """Predicted stalled fraction of an update that meets a state like this; ``None`` where theory has no answer.

    Parameters
    ----------
    fmt, rounding
        How the state is stored.
    like
        What it is like: see :meth:`halfulp.rules.slots.StateSlot.likeness`.

    Examples
    --------
    >>> round(predicted_like("bfloat16", "nearest", Likeness("grad_sq", 0.999, 300, shared=64)), 2)
    0.63
    """
    format_ = FORMATS[fmt]
    if format_.is_float32 or like.decay >= 1.0:
        return None
    if like.shared == 1 and like.ratio == 0 and like.decay > 0 and not like.whole_first:
        low = math.floor(like.age)
        pair = [predicted(fmt, like.decay, rounding, like.drive, age) for age in (low, low + 1)]
        return None if pair[0] is None or pair[1] is None else pair[0] + (pair[1] - pair[0]) * (like.age - low)
    if format_.kind != "float":
        return None
    from halfulp.theory.chain import Chain
    from halfulp.theory.drive import Drive
    from halfulp.theory.transient import transient

    drive = Drive("square", dof=like.shared) if like.drive == "grad_sq" else Drive("normal", ratio=like.ratio)
    chain = Chain(format_, max(like.decay, 1e-6), rounding, drive)
    starts, age = ([0.0], like.age) if not like.whole_first else (_quantiles(drive), max(like.age - 1, 0))
    laws = [transient(chain, math.ceil(age), start=start) for start in starts]
    return float(np.mean([np.interp(age, law.ages, law.stalled) for law in laws]))


def _quantiles(drive: Drive, count: int = 8) -> list[float]:
    """As many equally likely inputs, the middle of each part of its law."""
    from scipy.special import gammaincinv, ndtri

    shares = (np.arange(count) + 0.5) / count
    if drive.kind == "square":
        return [float(w) for w in 2 / drive.dof * gammaincinv(drive.dof / 2, shares)]
    return [float(w) for w in drive.ratio + ndtri(shares)]


@lru_cache(maxsize=256)
def _curve(fmt: str, beta: float, rounding: str, slot: str, steps: int) -> npt.NDArray[np.float64] | None:
    from halfulp.theory.stall import stall_curve

    try:
        return stall_curve(FORMATS[fmt], beta=beta, rounding=rounding, steps=steps, slot=slot)  # type: ignore[arg-type]
    except ValueError:
        return None


class AgeBins:
    """How often each age was met: exact below 64, then in 32 bins an octave, so that long runs stay small."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, age: int) -> None:
        """Count an age."""
        shift = max(age.bit_length() - 6, 0)
        key = age >> shift << shift
        self._counts[key] = self._counts.get(key, 0) + 1

    def items(self) -> Mapping[int, int]:
        """Lower end of each bin -> how often."""
        return self._counts

    def mean_prediction(self, fmt: str, beta: float | None, rounding: str, drive: str) -> float | None:
        """Predicted stalled fraction, averaged over the ages met; ``None`` without any, or without an answer."""
        total, weighted = 0, 0.0
        for age, count in self._counts.items():
            expected = predicted(fmt, beta, rounding, drive, age)
            if expected is None:
                return None
            total, weighted = total + count, weighted + count * expected
        return weighted / total if total else None
