"""Predicted stalling of an arm from a recorded sample of its own gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from halfulp.engine.storage import StorageOptions
from halfulp.lab.config import CompareConfig, RunSpec
from halfulp.monitor import GradientSample
from halfulp.optim import AdamW

__all__ = ["own_prediction", "sample_gradients"]

LONGEST = 2000
"""Largest number of recorded steps."""
SMALLEST = StorageOptions.min_size
"""Number of elements of the smallest parameter whose states are rounded."""


def sample_gradients(optimizer: AdamW, config: CompareConfig, spec: RunSpec) -> GradientSample | None:
    """Return the gradient sample of an arm, or ``None`` if nothing is rounded or no sample is wanted."""
    rounded = any(p.numel() >= SMALLEST for group in optimizer.param_groups for p in group["params"])
    if spec.arm.is_fp32 or config.gradient_blocks == 0 or config.steps < 2 or not rounded:
        return None
    steps = min(config.steps, LONGEST)
    return GradientSample(optimizer, blocks=config.gradient_blocks, steps=steps, min_size=SMALLEST)


def own_prediction(sample: GradientSample, optimizer: AdamW, spec: RunSpec) -> dict[str, list[float]]:
    """Return the stalled fraction of the update at each recorded step, by slot, with the optimizer's storage."""
    stored: dict[str, Any] = {}
    for group in optimizer.param_groups:
        for param in group["params"]:
            for state in optimizer.states(param):
                if not state.quantizer.format.is_float32:
                    stored.setdefault(state.slot.name, (state.quantizer, state.slot.coefficients(group)[0]))
    out = {}
    for slot, (quantizer, beta) in stored.items():
        stalled = sample.stalled(
            quantizer.format, beta=beta, rounding=quantizer.rounding, slot=slot,
            scale_kind=quantizer.scaling.kind, period=spec.period,
        )  # fmt: skip
        out[slot] = np.round(stalled, 4).tolist()
    return out
