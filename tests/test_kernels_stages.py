"""Rules with sums within their update, in C over several passes, with the bits of the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import halfulp
from halfulp.kernels import native
from halfulp.testing.subject import thread_count
from support.staged import STORED, spied, trained, trained_by_rule

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))

SHAPES = [
    (5, 3), (64, 1024), (65, 1030), (130, 70), (3, 2100), (7,), (1500,), (4, 3, 3, 3), (1, 5), (3, 1), (0, 4), (),
    (5, 3), (130, 70), (7,), (), (5, 3), (3, 2100),
]  # fmt: skip
"""Whole groups of 64 rows and stretches of 1024 columns, and less; other dimensions; several tensors of one shape."""


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(
    ("name", "options"),
    [("Adafactor", {}), ("Adafactor", {"momentum": 0.9, "weight_decay": 0.1}), ("CAME", {}), ("AdamP", {})],
)
def test_every_thread_and_shape_has_the_bits_of_the_reference(
    name: str, options: dict[str, Any], stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, how = STORED[stored]
    make = getattr(halfulp, name)
    expected = trained(lambda ps: make(ps, backend="reference", **options, **how), SHAPES, dtype)
    in_torch = spied(monkeypatch)
    for count in (1, 3):
        with thread_count(count):
            got = trained(lambda ps: make(ps, backend="cpu", **options, **how), SHAPES, dtype)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert {step.binding.shape.numel() for step in in_torch} == {0}  # an empty tensor has nothing to measure


@pytest.mark.parametrize("name", ["Adafactor", "CAME"])
def test_a_gradient_that_is_not_finite_leaves_the_whole_tensor_alone(name: str) -> None:
    make = getattr(halfulp, name)
    got, expected = (
        trained(lambda ps, b=backend: make(ps, backend=b, state="8bit"), SHAPES, torch.float32, odd=True)
        for backend in ("cpu", "reference")
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", ["Adafactor", "CAME", "AdamP", "LAMB", "AMAdamW", "SWATS"])
@pytest.mark.parametrize("odd", [math.inf, math.nan])
def test_of_tensors_of_one_shape_only_the_one_that_is_not_finite_is_left_alone(name: str, odd: float) -> None:
    def run(backend: str) -> tuple[list[torch.Tensor], list[int]]:
        generator = torch.Generator().manual_seed(3)
        params = [torch.nn.Parameter(torch.randn(6, 50, generator=generator)) for _ in range(3)]
        optimizer = getattr(halfulp, name)(params, backend=backend, state="8bit", min_size=0)
        for t in range(4):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator) * 0.01
            if t == 2:
                params[1].grad[4, 3] = odd  # type: ignore[index]
            optimizer.step()
        stored = [x for p in params for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)]
        return [x.detach() for x in (*params, *stored)], [*optimizer.skipped.values()]

    (got, skipped), (expected, wanted) = run("cpu"), run("reference")
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert sum(skipped) == sum(wanted) == (900 if name == "SWATS" else 300)  # SWATS measures the whole model


def test_a_users_own_rule_runs_in_c_and_leaves_a_tensor_alone_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, in_torch = trained_by_rule("reference"), spied(monkeypatch)
    got = trained_by_rule("cpu")
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert len(in_torch) == 1  # the last step, whose sums do not locate the non-finite values
