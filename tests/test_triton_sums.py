"""Sums over tensors by Triton kernels, in the interpreter, with the bits of ``halfulp.rules.base``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import halfulp
from halfulp.kernels import reference
from halfulp.kernels import triton as backend
from halfulp.numbers.scaling import Scaling
from halfulp.rules.base import largest, total
from support.kernel_cases import TRITON_DEVICE, Case, bound_anew, make_step, on_device
from support.marks import INTERPRETED

pytestmark = INTERPRETED


def measure(param: Tensor, grad: Tensor, states: Mapping[str, Tensor], c: Mapping[str, float]) -> dict[str, Any]:
    exp_avg = states["exp_avg"]
    return {
        "norm": total(grad, grad), "kept": total(param * c["keep"]), "inner": total(exp_avg, grad),
        "largest": largest(exp_avg - grad),
    }  # fmt: skip


def compare(*cases: Case) -> None:
    steps = [make_step(case) for case in cases]
    rule = replace(steps[0].binding.rule, measure=measure, elementwise=False)
    steps = [bound_anew(step, rule=rule) for step in steps]
    found = backend.measure(rule, [on_device(step, TRITON_DEVICE) for step in steps])
    for got, want in zip(found, reference.measure(rule, steps), strict=True):
        assert got is not None
        assert {name: repr(value) for name, value in got.items()} == {name: repr(value) for name, value in want.items()}


def test_several_tensors() -> None:
    shapes = [(3, 200), (5, 1500), (4100,), (2, 1025), (1,), (7, 3)]
    compare(*(Case(formats=("8bit", "fp4"), shape=shape) for shape in shapes))


@pytest.mark.parametrize("data", ["specials", "tiny", "huge"])
def test_values(data: str) -> None:
    compare(Case(shape=(2, 1100), data=data, grad_dtype=torch.bfloat16, maximize=True))


def test_blocks_that_are_no_power_of_two() -> None:
    compare(Case(formats=("fp8", "fp8"), scaling=(Scaling("fp32", "block", 192), Scaling()), shape=(2, 3200)))


def test_one_scale_for_a_matrix_is_left_to_the_reference() -> None:
    """Its kernel takes the matrix as one row, whose segments are not those of the rows."""
    step = make_step(Case(scaling=Scaling("fp32", "tensor")))
    rule = replace(step.binding.rule, measure=measure)
    assert backend.measure(rule, [on_device(bound_anew(step, rule=rule), TRITON_DEVICE)]) == [None]


def test_whole_optimizers() -> None:
    """A rule with sums, and clipping by a norm of the model: bits of the reference."""

    def train(name: str, make: Any, **options: Any) -> list[Tensor]:
        torch.manual_seed(0)
        device = TRITON_DEVICE if name == "triton" else "cpu"
        params = [torch.randn(shape).to(device).requires_grad_() for shape in [(9, 130), (33,)]]
        optimizer = make(params, lr=1e-2, backend=name, min_size=8, **options)
        for _ in range(2):
            for p in params:
                p.grad = torch.randn(p.shape).to(device)
            optimizer.step()
        return [*params, *(e for p in params for e in optimizer.state[p].values() if isinstance(e, Tensor))]

    clip = {"transforms": [halfulp.clip_global(0.5)]}
    for make, options in ((halfulp.AdamW, clip), (halfulp.Lion, clip)):
        for got, want in zip(train("triton", make, **options), train("reference", make, **options), strict=True):
            assert torch.equal(got.cpu(), want)
