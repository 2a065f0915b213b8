"""From what was counted to figures: of the last counted step, and over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from halfulp.monitor.group import GroupWatch
from halfulp.monitor.prediction import predicted
from halfulp.monitor.sample import Bucket
from halfulp.monitor.table import Row

__all__ = ["Measure", "measures", "rows"]


@dataclass
class Measure:
    """What one slot looked like in one step, over the sample of the whole model; see the package for the terms.

    Parameters
    ----------
    slot, format, rounding
        Of the states: most of the sample is stored so.
    beta, drive
        Decay, and what is averaged: ``"grad"``, ``"grad_sq"`` or ``"other"``.
    age
        Of the states that the update met, the median over the parameters.
    stalled, lag, ratio, off_2x
        As the package says.
    predictable
        Whether theory has an answer.

    Examples
    --------
    >>> found = Measure("exp_avg_sq", "bfloat16", "nearest", 0.999, "grad_sq", 300, 0.67, 0.0, 1.0, 0.0)
    >>> round(found.predicted, 2)
    0.68
    """

    slot: str
    format: str
    rounding: str
    beta: float
    drive: str
    age: int
    stalled: float
    lag: float
    ratio: float
    off_2x: float
    predictable: bool = True

    @property
    def predicted(self) -> float | None:
        """Stalled fraction that theory gives at this age; ``None`` where it has no answer."""
        if not self.predictable:
            return None
        return predicted(self.format, self.beta, self.rounding, self.drive, self.age)


def distance(stored: Tensor, shadow: Tensor) -> tuple[float, float, float]:
    """Lag, ratio of means and share off by more than 2x, of magnitudes; values that are not finite are left out."""
    stored, shadow = stored.abs(), shadow.abs()
    alive = ((shadow > 0) | (stored > 0)) & torch.isfinite(shadow) & torch.isfinite(stored)
    if not bool(alive.any()):
        return 0.0, 1.0, 0.0
    stored, shadow = stored[alive], shadow[alive]
    quotient = stored / shadow
    off = ((quotient > 2) | (quotient < 0.5)).to(stored.dtype).mean()
    mean = float(shadow.mean())
    both = quotient[(quotient > 0) & torch.isfinite(quotient)]
    lag = float(both.log().median()) if both.numel() else math.inf
    return lag, float(stored.mean()) / mean if mean > 0 else math.inf, float(off)


def beta_of(bucket: Bucket, watch: GroupWatch) -> float:
    """Decay of a state; 1 for a plain sum."""
    law = bucket.law
    return float(law.coefficients(watch.group, 2)[0] if law.decay is None else law.decay(watch.group))


def measures(watches: Iterable[GroupWatch]) -> list[Measure]:
    """Figures of each slot in the last counted step.

    Summed over the states that are stored alike: the low format of most of the sample, float32 only where all are.
    """
    by_slot: dict[str, list[tuple[Bucket, GroupWatch]]] = {}
    for watch in watches:
        for bucket in watch.buckets:
            if bucket.last is not None:
                by_slot.setdefault(bucket.slot, []).append((bucket, watch))
    return [_measure(slot, found) for slot, found in by_slot.items()]


def _measure(slot: str, found: list[tuple[Bucket, GroupWatch]]) -> Measure:
    sizes: dict[str, int] = {}
    for bucket, _ in found:
        sizes[bucket.codec.format] = sizes.get(bucket.codec.format, 0) + bucket.shadow.numel()
    low = {name: n for name, n in sizes.items() if name != "float32"}
    chosen = max(low or sizes, key=lambda name: sizes[name])
    mine = [(b, w) for b, w in found if b.codec.format == chosen]
    first, watch = mine[0]
    ages = sorted(age for b, _ in mine for age in b.met)
    updates, stalled = (sum(float(b.last[:, i].sum()) for b, _ in mine if b.last is not None) for i in (0, 1))
    lag, ratio, off = distance(
        torch.cat([b.after.cpu() for b, _ in mine if b.after is not None]),
        torch.cat([b.reference.cpu() for b, _ in mine if b.reference is not None]),
    )
    return Measure(
        slot=slot,
        format=chosen,
        rounding=first.codec.rounding,
        beta=beta_of(first, watch),
        drive=first.law.drive,
        age=ages[len(ages) // 2],
        stalled=stalled / max(updates, 1),
        lag=lag,
        ratio=ratio,
        off_2x=off,
        predictable=first.law.predictable,
    )


def rows(watches: Iterable[GroupWatch]) -> list[Row]:
    """Figures of every slot of every parameter over all counted steps."""
    found = []
    for watch in watches:
        weights = [] if watch.weight_counts is None else watch.weight_counts.tolist()
        for bucket in watch.buckets:
            if bucket.after is None or bucket.reference is None:
                continue
            bucket.flush()
            known = bucket.law.decay if bucket.law.predictable else None
            decay = None if known is None else known(watch.group)
            for i, piece in enumerate(bucket.slices()):
                member, tally = watch.members[bucket.members[i]], bucket.tallies[i]
                lag, ratio, off = distance(bucket.after[piece], bucket.reference[piece])
                expected = tally.ages.mean_prediction(
                    bucket.codec.format, decay, bucket.codec.rounding, bucket.law.drive
                )
                due, lost, intended, moved = weights[bucket.members[i]] if weights else (0, 0, 0, 0)
                found.append(
                    Row(
                        parameter=member.name,
                        slot=bucket.slot,
                        format=bucket.codec.format,
                        rounding=bucket.codec.rounding,
                        beta=beta_of(bucket, watch),
                        updates=round(tally.updates),
                        stalled=tally.stalled / tally.updates if tally.updates else 0.0,
                        predicted=math.nan if expected is None else expected,
                        lag=lag,
                        ratio=ratio,
                        off_2x=off,
                        weights_lost=lost / due if due and member.low else None,
                        weights_moved=moved / intended if intended and member.low else None,
                    )
                )
    return found
