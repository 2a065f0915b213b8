"""The C kernels against the reference, bit for bit."""

from __future__ import annotations

import pytest
import torch

from halfulp.kernels import cpu, native, reference
from kernel_cases import AVERAGES, CASES, Case, assert_same_bits, make_work, next_grad, set_step

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))


def run(case: Case, steps: int = 2) -> None:
    got, expected = make_work(case), make_work(case)
    assert cpu.supports(got.rule, got) is None
    assert got.plan.row is not None
    for step in range(steps):
        cpu.step(got.rule, [got])
        reference.step(expected.rule, [expected])
        assert_same_bits(got, expected)
        for work in (got, expected):
            next_grad(case, work, step + 1)
            set_step(case, work, case.age + step + 1)


@pytest.mark.parametrize("case", [*CASES, *AVERAGES], ids=lambda c: c.id)
def test_same_bits_as_the_reference(case: Case) -> None:
    run(case)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_many_tensors_and_any_number_of_threads(threads: int) -> None:
    cases = [c for c in CASES if c.rule == "adam"][::5]
    got, expected = [make_work(c) for c in cases], [make_work(c) for c in cases]
    assert all(cpu.supports(w.rule, w) is None for w in got)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cpu.step(got[0].rule, got)
    finally:
        torch.set_num_threads(before)
    reference.step(expected[0].rule, expected)
    for mine, theirs in zip(got, expected, strict=True):
        assert_same_bits(mine, theirs)
