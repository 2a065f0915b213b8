"""Rules with sums within their update, in C over several passes, with the bits of the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import halfulp
from halfulp.kernels import native, reference
from halfulp.kernels.binding import Step
from halfulp.rules.base import Rule, by_row, norm, row_means
from halfulp.rules.hyper import HyperParameters
from halfulp.rules.slots import StateSlot

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))

SHAPES = [(5, 3), (64, 1024), (65, 1030), (130, 70), (3, 2100), (7,), (1500,), (4, 3, 3, 3), (1, 5), (3, 1), (0, 4), ()]
"""Whole groups of 64 rows and stretches of 1024 columns, and less; other dimensions."""
STORED: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "8bit": (torch.float32, {"state": "8bit"}),
    "fp4": (torch.float32, {"state": "fp4", "rounding": "nearest"}),
    "remainder": (torch.bfloat16, {"state": "8bit", "master_weights": "remainder16"}),
    "bfloat16": (torch.bfloat16, {"state": "fp32", "param_rounding": "stochastic", "maximize": True}),
}


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Steps that have run in torch operations, on any backend."""
    done: list[Step] = []
    run = reference.step

    def step(rule: Rule, steps: list[Step], *codec: Any) -> None:
        done.extend(steps)
        run(rule, steps, *codec)

    monkeypatch.setattr(reference, "step", step)
    return done


def trained(make: Callable[[list[Tensor]], Any], dtype: torch.dtype, odd: bool = False) -> list[Tensor]:
    """Parameters and states after four steps; `odd`: one of them with a NaN in each gradient."""
    generator = torch.Generator().manual_seed(7)
    params = [torch.nn.Parameter((torch.randn(s, generator=generator) * 0.1).to(dtype)) for s in SHAPES]
    optimizer = make(params)  # type: ignore[arg-type]
    for t in range(4):
        for p in params:
            p.grad = (torch.randn(p.shape, generator=generator) * 0.01).to(dtype)
            if odd and t == 2 and p.numel():
                p.grad.view(-1)[p.numel() // 2] = float("nan")
        optimizer.step()
    assert sum(optimizer.skipped.values()) == (sum(p.numel() for p in params) if odd else 0)
    stored = [x for p in params for x in optimizer.state[p].values() if isinstance(x, Tensor)]
    return [*(p.detach() for p in params), *stored]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(
    ("name", "options"),
    [("Adafactor", {}), ("Adafactor", {"momentum": 0.9, "weight_decay": 0.1}), ("CAME", {}), ("AdamP", {})],
)
def test_every_thread_and_shape_has_the_bits_of_the_reference(
    name: str, options: dict[str, Any], stored: str, in_torch: list[Step]
) -> None:
    dtype, how = STORED[stored]
    make = getattr(halfulp, name)
    threads = torch.get_num_threads()
    expected = trained(lambda ps: make(ps, backend="reference", **options, **how), dtype)
    in_torch.clear()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            got = trained(lambda ps: make(ps, backend="cpu", **options, **how), dtype)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    finally:
        torch.set_num_threads(threads)
    assert {step.binding.shape.numel() for step in in_torch} == {0}  # an empty tensor has nothing to measure


@pytest.mark.parametrize("name", ["Adafactor", "CAME"])
def test_a_gradient_that_is_not_finite_leaves_the_whole_tensor_alone(name: str) -> None:
    make = getattr(halfulp, name)
    got, expected = (
        trained(lambda ps, b=backend: make(ps, backend=b, state="8bit"), torch.float32, odd=True)
        for backend in ("cpu", "reference")
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


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


def test_a_users_own_rule_runs_in_c_and_leaves_a_tensor_alone_as_a_whole(in_torch: list[Step]) -> None:
    found: list[list[Tensor]] = []
    for backend in ("reference", "cpu"):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 6 * 700).reshape(6, 700))
        optimizer = halfulp.optimizer(RULE)([weight], lr=0.1, state="fp32", backend=backend)
        for t in range(3):
            weight.grad = torch.linspace(1e-4, 2e-3, 6 * 700).reshape(6, 700)
            weight.grad[1, 1] = 10.0 if t == 2 else 0.0  # only its sum overflows fp32
            before = weight.detach().clone()
            optimizer.step()
            assert torch.equal(weight, before) == (t == 2)
        assert sum(optimizer.skipped.values()) == 6 * 700
        found.append([weight.detach(), *(torch.as_tensor(x) for x in optimizer.state[weight].values())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(in_torch) == 3 + 1  # in C except the last step, whose sums do not locate the non-finite values
