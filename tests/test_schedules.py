"""Schedules and the scaling rule."""

from __future__ import annotations

import math

import pytest
import torch

import halfulp


def test_linear_to_zero_is_an_average_of_updates() -> None:
    """AdamW under D2Z is an EMA of its updates: coefficients and what is left of the start sum to 1."""
    factor, rate = halfulp.linear_to_zero(100), 0.05
    assert [factor(s) for s in (0, 5, 10, 55, 100, 120)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    alphas = [rate * factor(s) for s in range(1, 101)]
    coefficients = [a * math.prod(1 - b for b in alphas[i + 1 :]) for i, a in enumerate(alphas)]
    assert sum(coefficients) + math.prod(1 - a for a in alphas) == pytest.approx(1.0)
    assert coefficients[-1] == 0.0


def test_schedules_drive_an_optimizer() -> None:
    optimizer = halfulp.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, halfulp.warmup_stable_decay(10, 0.2, 0.5))
    rates = []
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02, 0.0])
    with pytest.raises(ValueError, match="together at most 1"):
        halfulp.warmup_stable_decay(10, 0.6, 0.6)


def test_square_root_scaling() -> None:
    found = halfulp.scale_adam(16, lr=2e-3, betas=(0.99, 0.995))
    assert found["lr"] == pytest.approx(8e-3)
    assert found["betas"] == pytest.approx((0.84, 0.92))
    assert found["eps"] == pytest.approx(2.5e-9)
    with pytest.raises(ValueError, match="kappa"):
        halfulp.scale_adam(16, lr=1e-3, betas=(0.9, 0.99))
