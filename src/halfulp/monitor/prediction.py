"""Theoretical predictions, averaged over the ages of a state's updates."""

from __future__ import annotations

from collections import Counter

from halfulp.numbers.formats import FORMATS
from halfulp.rules.drives import Drive

__all__ = ["Ages", "predicted"]

Average = tuple[Drive, float, float]
"""Drive, decay and age of an average; see :meth:`halfulp.rules.slots.StateSlot.average`."""


def predicted(fmt: str, rounding: str, average: Average | None) -> float | None:
    """Return the predicted stalled fraction of the update that meets an average, or ``None`` if there is no theory."""
    if average is None or fmt not in FORMATS or not 0.0 <= average[1] < 1.0:
        return None
    from halfulp.theory.predict import OLDEST, predict

    drive, beta, age = average
    age = min(max(age, 0.0), OLDEST)  # below 0 for a state that has not stepped, beside others that have
    return predict(FORMATS[fmt], rounding, drive, beta, age)


class Ages:
    """Number of times each average was met. Ages are exact below 64, then in 32 bins per octave to bound the memory."""

    def __init__(self) -> None:
        self._counts: Counter[Average | None] = Counter()

    def add(self, average: Average | None) -> None:
        """Count one average; ``None`` if theory does not cover it."""
        if average is not None:
            drive, beta, age = average
            shift = max(int(age).bit_length() - 6, 0)
            average = drive, beta, int(age) >> shift << shift if shift else age
        self._counts[average] += 1

    def mean_prediction(self, fmt: str, rounding: str) -> float | None:
        """Return the mean predicted stalled fraction of the counted averages, or ``None`` if there is none."""
        total = weighted = 0.0
        for average, count in self._counts.items():
            expected = predicted(fmt, rounding, average)
            if expected is None:
                return None
            total, weighted = total + count, weighted + count * expected
        return weighted / total if total else None
