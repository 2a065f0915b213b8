"""Stalled updates of a weight average, measured during training or predicted from the stored values.

The theory is in :mod:`halfulp.theory.walk`. :mod:`halfulp.averaging.pair` checks a saved pair of models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from halfulp.averaging.base import WeightAverage
from halfulp.averaging.ema import EMA
from halfulp.engine.sharding import local_part
from halfulp.theory.walk import SAMPLE, WalkStall, check_walk, constant_spacing, expected, scaled_float_spacing

__all__ = ["Watched", "predict", "watch"]


@dataclass(frozen=True)
class Watched:
    """Measurements of one average by :func:`watch`.

    Parameters
    ----------
    due, stalled
        Updates that would change the stored value in exact arithmetic, and the number of those that did not.
    step
        Standard deviation of one step of the weights: their displacement in the block over the root of the updates.
    predicted
        Stalled fraction that :func:`predict` gives for a random walk with that step: from a copy if the average began
        in the block, else in the long run. ``None`` for averages in fp32 or stored as differences, and if nothing
        moved.
    """

    due: int
    stalled: int
    step: float = 0.0
    predicted: float | None = None

    @property
    def fraction(self) -> float:
        """Stalled fraction; NaN if no update was due."""
        return self.stalled / self.due if self.due else math.nan


def predict(
    average: WeightAverage, decay: float, step: float | Mapping[str, float], updates: int | None = None
) -> dict[str, WalkStall]:
    """Predict the stalling of each tensor of an average from the values stored now. :func:`watch` measures it.

    Tensors kept in fp32 are left out.

    Parameters
    ----------
    average
        An average that stores the weights themselves, not differences.
    decay
        Decay of the updates.
    step
        Absolute standard deviation of a weight's step, or a mapping from the names of interest to it. With Adam and
        mostly noisy gradients it is about the learning rate: momentum spreads a step over several without changing
        their sum.
    updates
        Number of updates from a copy of the weights. Default: the long run.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> ema = halfulp.averaging.EMA(torch.nn.Linear(64, 64), 0.9999, state="bf16", rounding="nearest")
    >>> halfulp.averaging.predict(ema, 0.9999, step=1e-3, updates=1000)["weight"].gone < 0.1
    True
    """
    by_name = step if isinstance(step, Mapping) else dict.fromkeys(average.live, step)
    check_walk(decay, min(by_name.values()), updates)
    if getattr(average, "difference", False):
        raise ValueError(
            "an average stored as a difference has no spacing of its own: only direct averages can be predicted"
        )
    found = {}
    for name in by_name:
        quantizer = average.store.state_of(name).quantizer
        values = average.store.read(name)
        if quantizer.format.is_float32 or not bool(values.any()):
            continue
        every = max(1, values.numel() // SAMPLE)
        weights, units, spacing = (
            x.flatten()[::every].double() for x in (values, quantizer.units(values), quantizer.spacing(values))
        )
        keep = units > 0  # skip blocks of zeros
        weights, units, spacing = weights[keep], units[keep], spacing[keep]
        fmt = quantizer.format
        follow = scaled_float_spacing(fmt, units) if fmt.kind == "float" else constant_spacing(spacing)
        size, steps = weights.square().mean().sqrt(), torch.full_like(weights, by_name[name])
        found[name] = expected(weights, follow, steps, size, 1.0 - decay, quantizer.rounding, updates)
    return found


@contextmanager
def watch(ema: EMA) -> Iterator[dict[str, Watched]]:
    """Count the stalled updates of an average within the ``with`` block, and predict them at its end.

    The kernels count every element. The step of the weights is measured on a sample.

    Parameters
    ----------
    ema
        The average.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> model = torch.nn.Linear(64, 64)
    >>> ema = halfulp.averaging.EMA(model, 0.9999, state="bf16", rounding="nearest")
    >>> with halfulp.averaging.watch(ema) as stalled:
    ...     _ = model.weight.data.add_(1e-3)
    ...     ema.update()
    >>> stalled["weight"].fraction > 0.9
    True
    """
    found: dict[str, Watched] = {}
    ema.counts = {}
    began, before = ema.updates, {name: _sample(live) for name, live in ema.live.items()}
    try:
        yield found
    finally:
        counts, ema.counts = ema.counts, None
        updates = ema.updates - began
        steps = {
            name: float((_sample(live) - before[name]).square().mean().sqrt()) / math.sqrt(max(updates, 1))
            for name, live in ema.live.items()
        }
        predicted = _predicted(ema, steps, None if began else updates)
        for name, count in counts.items():
            due, stalled = (int(n) for n in count[0])
            found[name] = Watched(due, stalled, steps[name], predicted.get(name))


def _sample(live: Tensor) -> Tensor:
    values = local_part(live).tensor.flatten()
    return values[:: max(1, values.numel() // SAMPLE)].double()


def _predicted(ema: EMA, steps: dict[str, float], updates: int | None) -> dict[str, float]:
    moved = {name: step for name, step in steps.items() if step > 0}
    if ema.difference or updates == 0 or not moved:
        return {}
    decay = ema.decay(max(ema.updates, 1))
    if not 0.0 < decay < 1.0:
        return {}
    return {name: one.stalled for name, one in predict(ema, decay, moved, updates).items()}
