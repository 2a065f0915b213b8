"""Sums over the model, which some rules need before any parameter is updated."""

from __future__ import annotations

import math

from halfulp.kernels import dispatch
from halfulp.kernels.binding import Step
from halfulp.rules.base import Rule, Scalars
from halfulp.rules.checks import as_scalars

__all__ = ["combine"]


def combine(rule: Rule, steps: list[Step], backend: str | None = None) -> list[Step]:
    """Add up what the rule measures over all parameters, in order, and give each step the resulting scalars.

    A rule that measures ``per_tensor`` gets the sums of each parameter alone. The steps that can be done are returned.
    A step whose sums are NaN or infinite is left out, and its elements are counted as skipped.
    """
    assert rule.combine is not None
    sums: dict[str, float] = {}
    measured = dispatch.measure(rule, steps, backend)
    for own in measured:
        for name, value in own.items():
            sums[name] = sums.get(name, 0.0) + value
    able = []
    known: dict[tuple[int, int], Scalars] = {}
    for step, own in zip(steps, measured, strict=True):
        found = own if rule.per_tensor else sums
        if not all(map(math.isfinite, found.values())):
            step.skipped += step.binding.shape.numel()
            continue
        key = id(found), id(step.scalars)
        if key not in known:
            known[key] = {**step.scalars, **as_scalars(rule.name, rule.combine(found, step.scalars))}
        step.scalars = known[key]
        able.append(step)
    return able
