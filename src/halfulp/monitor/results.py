"""Measurements computed from the counters, for the last counted step and over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from halfulp.monitor.counts import Seen
from halfulp.monitor.group import GroupWatch
from halfulp.monitor.prediction import Average, predicted
from halfulp.monitor.table import Row, Weights

__all__ = ["Measure", "measures", "rows", "weights"]


@dataclass
class Measure:
    """Measurements of one slot in one step, over the sample of the whole model.

    Parameters
    ----------
    slot, format, rounding
        Slot, and storage of most of the sample.
    beta, drive
        Decay, and what is averaged: ``"gradient"`` or ``"square"``.
    age
        Median over the parameters of the age that the update met.
    stalled, lag, ratio, off_2x
        See :mod:`halfulp.monitor`.
    average
        Drive, decay and age of the average that the update met, as input to the theory. ``None`` if it does not apply.
    factor, residual
        See :mod:`halfulp.monitor`. ``None`` unless squares are averaged.

    Examples
    --------
    >>> from halfulp.rules.slots import SQUARE
    >>> met = SQUARE, 0.999, 300
    >>> found = Measure("exp_avg_sq", "bfloat16", "nearest", 0.999, "square", 300, 0.67, 0.0, 1.0, 0.0, met)
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
    average: Average | None = None
    factor: float | None = None
    residual: float | None = None

    @property
    def predicted(self) -> float | None:
        """Stalled fraction predicted at this age, or ``None`` if theory has no answer."""
        return predicted(self.format, self.rounding, self.average)


def distance(stored: Tensor, shadow: Tensor) -> tuple[float, float, float]:
    """Return lag, ratio of means and share off by more than 2x, for magnitudes.

    Values that are not finite are skipped.
    """
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


def step_error(stored: Tensor, shadow: Tensor) -> tuple[float, float]:
    """Return the common factor of updates divided by a second moment's root, and the residual error.

    Coordinates that are zero or not finite are skipped: the second moment is not their divisor.
    """
    alive = (stored > 0) & (shadow > 0) & torch.isfinite(shadow) & torch.isfinite(stored)
    if not bool(alive.any()):
        return 1.0, 0.0
    longer = (shadow[alive].double() / stored[alive].double()).sqrt()
    mean, square = float(longer.mean()), float(longer.square().mean())
    return square / mean, max(1 - mean * mean / square, 0.0)


def measures(watches: Iterable[GroupWatch]) -> list[Measure]:
    """Return the measurements of each slot in the last counted step.

    They cover the states stored in the most common low format, or in float32 if all states are.
    """
    by_slot: dict[str, list[Seen]] = {}
    for watch in watches:
        for seen in watch.counts.seen:
            by_slot.setdefault(seen.reader.slot, []).append(seen)
    return [_measure(slot, found) for slot, found in by_slot.items()]


def _measure(slot: str, found: list[Seen]) -> Measure:
    sizes: dict[str, int] = {}
    for seen in found:
        name = seen.reader.codec.format
        sizes[name] = sizes.get(name, 0) + seen.stored.numel()
    low = {name: n for name, n in sizes.items() if name != "float32"}
    chosen = max(low or sizes, key=lambda name: sizes[name])
    mine = [seen for seen in found if seen.reader.codec.format == chosen]
    met = sorted((pair for seen in mine for pair in seen.met.values()), key=lambda pair: pair[1])
    average, age = met[len(met) // 2]
    updates, stalled = (sum(float(seen.updates[:, i].sum()) for seen in mine) for i in (0, 1))
    stored, shadow = (torch.cat([getattr(seen, name).cpu() for seen in mine]) for name in ("stored", "shadow"))
    lag, ratio, off = distance(stored, shadow)
    error = step_error(stored, shadow) if mine[0].kind == "square" else ()
    return Measure(
        slot, chosen, mine[0].reader.codec.rounding, mine[0].beta, mine[0].kind, age,
        stalled / max(updates, 1), lag, ratio, off, average, *error,
    )  # fmt: skip


def weights(watches: Iterable[GroupWatch]) -> Iterator[Weights]:
    """Return the measurements of each 16-bit parameter over all counted steps."""
    for watch in watches:
        watch.counts.flush()
        for member, tally in watch.counts.weights.items():
            if member.low and tally.due:
                moved = tally.moved / tally.intended if tally.intended else None
                yield Weights(member.name, math.prod(member.shape), tally.stalled / tally.due, moved)


def rows(watches: Iterable[GroupWatch]) -> list[Row]:
    """Return the measurements of every slot of every parameter over all counted steps."""
    watches = list(watches)
    moved = {w.parameter: (w.stalled, w.moved) for w in weights(watches)}
    seen = [(watch, seen) for watch in watches for seen in dict.fromkeys(watch.counts.latest.values())]
    return [row for watch, each in seen for row in _rows(watch, each, moved)]


def _rows(watch: GroupWatch, seen: Seen, moved: dict[str, tuple[float, float | None]]) -> Iterator[Row]:
    codec, slot, split = seen.reader.codec, seen.reader.slot, seen.reader.split
    for (member, stored), (_, shadow) in zip(split(seen.stored), split(seen.shadow), strict=True):
        if watch.counts.latest[member, slot] is not seen:
            continue
        tally = watch.counts.tallies[member, slot]
        expected = tally.ages.mean_prediction(codec.format, codec.rounding)
        factor, residual = step_error(stored, shadow) if seen.kind == "square" else (None, None)
        weights_stalled, weights_moved = moved.get(member.name, (None, None))
        yield Row(
            member.name, slot, codec.format, codec.rounding, seen.beta, round(tally.updates),
            tally.stalled / tally.updates if tally.updates else 0.0, math.nan if expected is None else expected,
            *distance(stored, shadow), weights_stalled, weights_moved, math.prod(member.shape), codec.moving, factor,
            residual,
        )  # fmt: skip
