"""Predictions of theory over the ages that a state's updates met."""

from __future__ import annotations

from collections import Counter

from halfulp.numbers.formats import FORMATS
from halfulp.rules.drives import Drive

__all__ = ["Ages", "predicted"]

Average = tuple[Drive, float, float]
"""Drive, decay and age of an average, see :meth:`halfulp.rules.slots.StateSlot.average`."""


def predicted(fmt: str, rounding: str, average: Average | None) -> float | None:
    """Predicted stalled fraction of the update that meets an average; ``None`` where theory has no answer.

    Beyond some windows ``1 / (1 - beta)`` an age is given the prediction there: a signed state has settled by then; a
    second moment rounded to nearest never does, but its curve has gone flat.
    """
    if average is None or fmt not in FORMATS:
        return None
    from halfulp.theory.predict import predict

    drive, beta, age = average
    if not 0.0 <= beta < 1.0:
        return None
    least, windows = (1 << 14, 8.0) if drive.nonnegative else (64, 16.0)
    return predict(FORMATS[fmt], rounding, drive, beta, min(age, max(least, int(windows / (1 - beta))) - 1))


class Ages:
    """How often each average was met: ages exact below 64, then in 32 bins an octave, so that long runs stay small."""

    def __init__(self) -> None:
        self._counts: Counter[Average | None] = Counter()

    def add(self, average: Average | None) -> None:
        """Count one; ``None`` for what has no theory."""
        if average is not None:
            drive, beta, age = average
            shift = max(int(age).bit_length() - 6, 0)
            average = drive, beta, int(age) >> shift << shift if shift else age
        self._counts[average] += 1

    def mean_prediction(self, fmt: str, rounding: str) -> float | None:
        """Predicted stalled fraction, averaged over what was met; ``None`` without any, or without an answer."""
        total = weighted = 0.0
        for average, count in self._counts.items():
            expected = predicted(fmt, rounding, average)
            if expected is None:
                return None
            total, weighted = total + count, weighted + count * expected
        return weighted / total if total else None
