"""Cases of the distributed tests: an optimizer and its arguments, a model with uneven shapes, gradients by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    optimizer: str = "AdamW"
    arguments: dict[str, Any] = field(default_factory=dict)


COMMON = {"lr": 1e-2, "rounding": "stochastic", "min_size": 64, "seed": 3}
CASES = {
    "fp32": Case(arguments={**COMMON, "state": "fp32"}),
    "bf16": Case(arguments={**COMMON, "state": "bf16"}),
    "8bit": Case(arguments={**COMMON, "state": "8bit", "block_size": 32, "reset": 3}),
    "4bit": Case(arguments={**COMMON, "state": "4bit", "block_size": 32}),
    "int8": Case(arguments={**COMMON, "state": "int8", "block_size": 32}),
    "fp8": Case(arguments={**COMMON, "state": "fp8"}),
    "lion": Case("Lion", {**COMMON, "lr": 1e-3, "state": "fp8"}),
    "sgd": Case("SGD", {**COMMON, "momentum": 0.9, "state": "fp8", "rounding": "nearest"}),
}


def build_model() -> torch.nn.Sequential:
    """Rows that do not divide by the number of ranks, and columns of whole blocks of 32."""
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 37))


def gradients(step: int) -> list[torch.Tensor]:
    """The same on every rank."""
    generator = torch.Generator().manual_seed(100 + step)
    return [0.1 * torch.randn(p.shape, generator=generator) for p in build_model().parameters()]
