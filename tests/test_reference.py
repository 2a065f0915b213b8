"""The reference on devices on which torch's operations have other bits."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from halfulp.kernels import reference
from halfulp.kernels.binding import Step
from support.program_cases import PROGRAMS, combined, make_program_step
from support.rules import Variant


class Divisions(TorchFunctionMode):
    """Counts divisions of tensors, and those by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.by_numbers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.strip("_") in ("div", "true_divide", "truediv", "itruediv"):
            self.all += 1
            self.by_numbers += not isinstance(args[1], Tensor)
        return func(*args, **(kwargs or {}))


def divisions(step: Step, device: str, monkeypatch: pytest.MonkeyPatch) -> Divisions:
    """Count those of a step that is done as if on a device."""
    exact = reference.exact
    with monkeypatch.context() as patched, Divisions() as found:
        patched.setattr(reference, "exact", lambda _: exact(device))
        reference.step(step.binding.rule, [step])
    return found


@pytest.mark.parametrize(
    "divide", [torch.div, torch.true_divide, operator.truediv, operator.itruediv, Tensor.div_, Tensor.true_divide_]
)
def test_every_division_by_a_number(divide: Any) -> None:
    with Divisions() as found, reference.exact("cuda"):
        result = divide(torch.ones(3), 3.0)
    assert found.all > found.by_numbers == 0
    assert torch.equal(result, torch.ones(3) / torch.full((), 3.0))


DIVIDING = ("Adafactor", "LAMB", "SWATS")
"""Optimizers whose update divides by a number."""


@pytest.mark.parametrize("variant", [next(v for v in PROGRAMS if v.name == n) for n in DIVIDING], ids=DIVIDING)
def test_a_gpu_divides_by_tensors(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU has other bits where torch divides by a number: it multiplies by the rounded inverse."""
    (step,), (other,) = (combined(make_program_step(variant, "int8", "nearest")) for _ in range(2))
    assert divisions(other, "cpu", monkeypatch).by_numbers > 0
    found = divisions(step, "cuda", monkeypatch)
    assert found.all > found.by_numbers == 0
    for got, expected in zip(step.binding.states, other.binding.states, strict=True):
        assert torch.equal(got.codes, expected.codes)
