"""Cases of :mod:`support.kernel_cases` through the C kernels, step by step against the reference."""

from __future__ import annotations

from halfulp.kernels import cpu, reference
from support.kernel_cases import Case, assert_same_bits, make_step, next_grad, set_step

FEW = [
    Case(formats=pair, rounding=rounding, shape=shape, data=data)
    for pair in (("fp8", "8bit"), ("bf16", "fp16"), ("fp4", "4bit"), ("int8", "int4"))
    for rounding in ("nearest", "stochastic")
    for shape, data in (((3, 200), "normal"), ((2, 2049), "specials"), ((64, 64), "wide"))
]
"""A few cases of every kind of format."""


def assert_cpu_has_the_bits(case: Case, steps: int = 2) -> None:
    """Run a case on both backends. After each step, all results must have the same bits."""
    got, expected = make_step(case), make_step(case)
    assert cpu.supports(got.binding.rule, got) is None
    assert got.binding.plan.row is not None
    for step in range(steps):
        cpu.step(got.binding.rule, [got])
        reference.step(expected.binding.rule, [expected])
        assert_same_bits(got, expected)
        for work in (got, expected):
            next_grad(case, work, step + 1)
            set_step(case, work, case.age + step + 1)
