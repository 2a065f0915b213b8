"""Quick end-to-end checks that every other test depends on."""

from __future__ import annotations

import pytest
import torch

import halfulp

STATES = ["fp32", "bf16", "fp16", "fp8", "fp4", "int8", "int4", "8bit", "4bit"]


@pytest.mark.parametrize("state", STATES)
def test_adamw_descends_a_quadratic(state: str) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(64, 64, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = halfulp.AdamW([weight], lr=0.02, weight_decay=0.0, state=state, min_size=0)
    start = float((weight.detach() - target).square().mean())
    for _ in range(150):
        weight.grad = weight.detach() - target
        optimizer.step()
    assert float((weight.detach() - target).square().mean()) < 0.05 * start


def test_every_public_name_resolves() -> None:
    assert all(getattr(halfulp, name) is not None for name in halfulp.__all__)
