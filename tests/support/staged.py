"""Training by optimizers whose update contains sums, to compare backends, and such a rule of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import halfulp
from halfulp.kernels import reference
from halfulp.kernels.binding import Step
from halfulp.rules.base import Rule, by_row, norm, row_means
from halfulp.rules.hyper import HyperParameters
from halfulp.rules.slots import StateSlot

__all__ = ["RULE", "STORED", "spied", "trained", "trained_by_rule"]

STORED: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "8bit": (torch.float32, {"state": "8bit"}),
    "fp4": (torch.float32, {"state": "fp4", "rounding": "nearest"}),
    "remainder": (torch.bfloat16, {"state": "8bit", "master_weights": "remainder16"}),
    "bfloat16": (torch.bfloat16, {"state": "fp32", "param_rounding": "stochastic", "maximize": True}),
}


def spied(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Return a list of the steps that will have run in torch operations, on any backend."""
    done: list[Step] = []
    run = reference.step

    def step(rule: Rule, steps: list[Step], *codec: Any) -> None:
        done.extend(steps)
        run(rule, steps, *codec)

    monkeypatch.setattr(reference, "step", step)
    return done


def trained(
    make: Callable[[list[Tensor]], Any], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, odd: bool = False,
    device: str = "cpu", steps: int = 4,
) -> list[Tensor]:  # fmt: skip
    """Return parameters and states after some steps; `odd`: one of them with a NaN in each gradient."""
    generator = torch.Generator().manual_seed(7)
    drawn = [(torch.randn(s, generator=generator) * 0.1).to(dtype) for s in shapes]
    params: list[Tensor] = [torch.nn.Parameter(x.to(device)) for x in drawn]
    optimizer = make(params)
    for t in range(steps):
        for p in params:
            p.grad = (torch.randn(p.shape, generator=generator) * 0.01).to(dtype).to(device)
            if odd and t == steps // 2 and p.numel():
                p.grad.view(-1)[p.numel() // 2] = float("nan")
        optimizer.step()
    assert sum(optimizer.skipped.values()) == (sum(p.numel() for p in params) if odd else 0)
    stored = [x for p in params for x in optimizer.state[p].values() if isinstance(x, Tensor)]
    return [x.detach().cpu() for x in (*params, *stored)]


@dataclass(frozen=True)
class NormedHyper(HyperParameters):
    """Of the rule below."""


def normed(param: Tensor, grad: Tensor, states: dict[str, Tensor], c: dict[str, float]) -> Any:
    step = grad / (norm(grad) + 1e-8)
    rows = states["rows"] * 0.9 + row_means(step.abs()) * 0.1
    total = states["total"] + grad * 1e38
    return param - (step + by_row(rows, step)) * c["lr"], {"rows": rows, "total": total}


RULE = Rule(
    "normed",
    lambda hyper: (
        StateSlot("rows", signed=False, shape=lambda shape: shape[:1] if len(shape) > 1 else None),
        StateSlot("total", signed=True),
    ),
    lambda hyper, ages: {"lr": float(hyper["lr"])},
    normed,
    elementwise=False,
    title="Normed",
    hyper=NormedHyper,
    summary="a user's own",
)


def trained_by_rule(backend: str, device: str = "cpu") -> list[Tensor]:
    """Return a parameter and its states after three steps of the rule above, the last of which overflows a state."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 6 * 700).reshape(6, 700).to(device))
    optimizer = halfulp.optimizer(RULE)([weight], lr=0.1, state="fp32", backend=backend)
    for t in range(3):
        weight.grad = torch.linspace(1e-4, 2e-3, 6 * 700).reshape(6, 700).to(device)
        weight.grad[1, 1] = 10.0 if t == 2 else 0.0
        before = weight.detach().clone()
        optimizer.step()
        assert torch.equal(weight, before) == (t == 2)
    assert sum(optimizer.skipped.values()) == 6 * 700
    return [weight.detach().cpu(), *(torch.as_tensor(x).cpu() for x in optimizer.state[weight].values())]
