"""Code generated for CPUs: it is current, and has the bits of the reference, as has the vector machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from halfulp.kernels import compiled, cpu, cpu_sums, generate, native, reference
from halfulp.kernels.binding import Step
from halfulp.rules.tracing import ProgramError
from halfulp.rules.transforms import clip_global, compose
from support.kernel_cases import assert_same_bits
from support.program_cases import PROGRAMS, combined, make_program_step
from support.rules import Variant

needs_library = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
KINDS = [("8bit", "stochastic", False), ("fp4", "nearest", False), ("bf16", "stochastic", True)]


def test_generated_files_are_fresh() -> None:
    for name, text in generate.files().items():
        assert (generate.FOLDER / name).read_text() == text, f"{name}: run python -m halfulp.kernels.generate"


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No generated code is found: everything runs on the machine."""
    compiled.programs_of.cache_clear()
    monkeypatch.setattr(compiled, "_compiled", lambda program, on_machine: MACHINE(program, True))
    yield
    compiled.programs_of.cache_clear()


MACHINE = compiled._compiled


def assert_program_has_the_bits(variant: Variant, generated: bool) -> None:
    for form, rounding, odd in KINDS:
        for age in (1, 7):
            got, expected = (make_program_step(variant, form, rounding, age=age, odd=odd) for _ in range(2))
            done: list[list[Step]] = [combined(got), combined(expected)]
            assert len(done[0]) == len(done[1])
            if done[0]:
                assert cpu.supports(variant.rule, got) is None
                programs = got.binding.plan.programs
                assert programs is not None
                chosen = programs.choose(got.scalars)
                passes = (*chosen.rounds, chosen.update) if isinstance(chosen, compiled.Passes) else (chosen,)
                assert {one.number >= 0 for one in passes} == {generated}
                cpu.step(variant.rule, done[0])
                reference.step(variant.rule, done[1])
            assert_same_bits(got, expected)
            assert torch.equal(got.counts, expected.counts)


@needs_library
@pytest.mark.parametrize("variant", PROGRAMS, ids=lambda v: v.name)
def test_generated_code_has_the_bits_of_the_reference(variant: Variant) -> None:
    assert_program_has_the_bits(variant, generated=True)


@needs_library
@pytest.mark.parametrize("variant", PROGRAMS[::2], ids=lambda v: v.name)
def test_the_machine_has_the_bits_of_the_reference(variant: Variant, on_machine: None) -> None:
    assert_program_has_the_bits(variant, generated=False)


@needs_library
@pytest.mark.parametrize("name", ["AMAdamW", "SWATS"])
def test_an_empty_tensor_leaves_the_numbers_of_its_rule(name: str) -> None:
    variant = next(v for v in PROGRAMS if v.name == name)
    got, expected = (make_program_step(variant, "8bit", "nearest", (0, 4)) for _ in range(2))
    given = [state.codes.clone() for state in got.binding.states]
    (one,), (other,) = combined(got), combined(expected)
    assert cpu.supports(variant.rule, one) is None
    cpu.step(variant.rule, [one])
    reference.step(variant.rule, [other])
    assert_same_bits(got, expected)
    assert all(torch.equal(x, state.codes) for x, state in zip(given, got.binding.states, strict=True))


SUMMED = [next(v for v in PROGRAMS if v.name == name) for name in ("AMSGD", "AdamW")]


@needs_library
@pytest.mark.parametrize("shape", [(), (0, 5), (7,), (5, 3), (3, 2049), (2, 1024), (70, 33)])
@pytest.mark.parametrize("machine", [False, True])
def test_sums_in_c_are_those_of_the_reference(
    shape: tuple[int, ...], machine: bool, request: pytest.FixtureRequest
) -> None:
    if machine:
        request.getfixturevalue("on_machine")
    for variant in SUMMED:
        for form, rounding, odd in KINDS:
            step = make_program_step(variant, form, rounding, shape, odd=odd)
            rule = compose(variant.rule, () if variant.rule.measure else (clip_global(0.5),))
            step.binding.rule = rule
            for maximize in (False, True):
                step.maximize = maximize
                (got,), (want,) = cpu_sums.measure(rule, [step]), reference.measure(rule, [step])
                assert got is not None
                assert got.keys() == want.keys()
                assert all(got[k] == want[k] or (math.isnan(got[k]) and math.isnan(want[k])) for k in want)


@needs_library
def test_a_rule_that_hides_something_from_its_symbols_is_found_out() -> None:
    step = make_program_step(PROGRAMS[0], "8bit", "nearest")
    rule = step.binding.rule

    def hidden(param, grad, states, c):  # type: ignore[no-untyped-def]
        new, updated = rule.update(param, grad, states, c)
        return (new + 1.0 if isinstance(new, torch.Tensor) else new), updated

    odd = replace(rule, name="odd", update=hidden)
    step.binding.rule = odd
    step.scalars = {**step.scalars}
    with pytest.raises(ProgramError, match="looks at more"):
        cpu._plan(odd, step)
