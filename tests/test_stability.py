"""Four-bit states train with every seed. Without the floor and the bound, the same training fails."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import halfulp
from halfulp import Quantizer, Scaling, get_format

STEPS = 200
SEEDS = range(5)


def digits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten classes of noisy 8 x 8 pictures: a fixed pattern each, shifted and blurred with noise."""
    patterns = (torch.rand(10, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.6).float()
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (2000,), generator=generator)
    shifts = torch.randint(-1, 2, (2000, 2), generator=generator).tolist()
    pictures = torch.stack([patterns[c].roll(s, (0, 1)) for c, s in zip(labels.tolist(), shifts, strict=True)])
    return (pictures + 0.5 * torch.randn(2000, 8, 8, generator=generator)).flatten(1), labels


def train(seed: int, **options: Any) -> float:
    """Mean loss of the last 30 steps of an MLP; infinite if anything became NaN or infinite."""
    torch.manual_seed(seed)
    x, y = digits(seed)
    net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    optimizer = halfulp.AdamW(net.parameters(), lr=2e-3, seed=seed, min_size=0, **options)
    losses = []
    for step in range(STEPS):
        at = torch.randint(2000, (64,), generator=torch.Generator().manual_seed(1000 * seed + step))
        loss = nn.functional.cross_entropy(net(x[at]), y[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return math.inf
    if optimizer.skipped or not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
        return math.inf
    return sum(losses[-30:]) / 30


@pytest.fixture(scope="module")
def reference() -> list[float]:
    return [train(seed, state="fp32") for seed in SEEDS]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("state", ["fp4", "4bit", "int4"])
def test_four_bit_states_train_every_seed(state: str, rounding: str, reference: list[float]) -> None:
    for seed, goal in zip(SEEDS, reference, strict=True):
        loss = train(seed, state=state, rounding=rounding)
        assert loss < goal + 0.5, (seed, loss, goal)


def coarse(floor: bool) -> dict[str, Quantizer]:
    """One scale for a whole tensor: most of its second moments are far below the smallest value."""
    return {
        "exp_avg": Quantizer(get_format("float4_e2m1fn"), Scaling("pow2", "tensor")),
        "exp_avg_sq": Quantizer(get_format("ufloat4_e2m2"), Scaling("pow2", "tensor"), zero_floor=floor),
    }


def test_floor_and_bound_prevent_a_failure(reference: list[float]) -> None:
    """Per-tensor fp4, nearest: with either the floor or the bound it trains, with neither no seed does."""
    for seed, goal in zip(SEEDS, reference, strict=True):
        lost = train(seed, state=coarse(False), bound_update=False)
        assert lost > 2.0 * max(goal, 1.0), (seed, lost)
        for floor, bound in ((True, True), (True, False), (False, True)):
            loss = train(seed, state=coarse(floor), bound_update=bound)
            assert loss < goal + 0.5, (seed, floor, bound, loss)
