"""Rules with numbers, vectors and sums within their update, in Triton's interpreter, with the bits of the reference."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import halfulp
from halfulp.kernels import reference
from halfulp.kernels import triton as backend
from halfulp.kernels.triton_launch import Launch
from halfulp.kernels.triton_stages import StagedLaunch
from halfulp.kernels.triton_sums import ColumnFold, Fold
from halfulp.numbers.scaling import Scaling
from halfulp.rules.base import by_column, by_row, column_means, fold_columns, fold_rows, mean, norm, sides
from support.kernel_cases import TRITON_DEVICE, assert_same_bits, bound_anew, on_device
from support.marks import INTERPRETED
from support.program_cases import PROGRAMS, combined, make_program_step
from support.rules import Variant
from support.staged import RULE, STORED, spied, trained, trained_by_rule

pytestmark = INTERPRETED
EVERY = "HALFULP_EVERY_CASE" in os.environ
SHAPES = [(5, 3), (9, 1030), (70, 70), (7,), (4, 3, 3, 3), (0, 4), ()]
"""Segments of 1024 columns, the rows of several programs, and less; other dimensions."""
WIDE = [(5, 3), (9, 1030), (7,), (0, 4)]
FEW = [(5, 3), (20, 70)]
KINDS = [("8bit", "stochastic", False), ("fp4", "nearest", False), ("bf16", "stochastic", True)]
NAMES = ("AMAdamW", "SWATS", "AdamP", "Adafactor", "AdaLomo", "CAME")
VARIANTS = [v for v in PROGRAMS if v.name in NAMES]
FIRST = [next(v for v in VARIANTS if v.name == name) for name in NAMES]
CASES = [(v, kind) for v in VARIANTS for kind in KINDS] if EVERY else [*zip(FIRST, KINDS + KINDS, strict=True)]
TRAINED: list[tuple[str, dict[str, Any], str]] = [
    ("Adafactor", {"momentum": 0.9, "weight_decay": 0.1, "min_size": 1}, "8bit"),
    ("Adafactor", {}, "fp4"),
    ("CAME", {"min_size": 1}, "remainder"),
    ("AdamP", {}, "bfloat16"),
    ("SWATS", {"tolerance": 1e3}, "8bit"),
    ("AMAdamW", {}, "remainder"),
]
"""Optimizers, options, and how they store. With `min_size`, vectors have few bits, too."""


def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the launches to come: ``course`` or ``kernel``."""
    done: list[str] = []
    for cls, name in ((StagedLaunch, "course"), (Launch, "kernel")):

        def start(self: Any, *args: Any, _run: Any = cls.start, _name: str = name, **given: Any) -> None:
            done.append(_name)
            _run(self, *args, **given)

        monkeypatch.setattr(cls, "start", start)
    return done


@pytest.mark.parametrize(("variant", "kind"), CASES, ids=lambda x: getattr(x, "name", None) or str(x[0]))
def test_every_rule(variant: Variant, kind: tuple[str, str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first step, which may take another branch, and later; `odd` has special values among the gradients."""
    form, rounding, odd = kind
    done = launched(monkeypatch)
    for age in (1, 7):
        got, expected = (
            [make_program_step(variant, form, rounding, shape, age, odd) for shape in ((3, 200), (2, 40))]
            for _ in range(2)
        )
        got = [on_device(step, TRITON_DEVICE) for step in got]
        able, others = ([one for step in steps for one in combined(step)] for steps in (got, expected))
        assert all(backend.supports(variant.rule, one) is None for one in able)
        done.clear()
        backend.step(variant.rule, able)
        assert ("course" in done) == bool(able)
        reference.step(variant.rule, others)
        for a, b in zip(got, expected, strict=True):
            assert_same_bits(on_device(a, "cpu"), b)


@pytest.mark.parametrize(
    ("name", "options", "stored"),
    [(name, options, s) for name, options, _ in TRAINED for s in STORED] if EVERY else TRAINED,
    ids=str,
)
def test_optimizers(name: str, options: dict[str, Any], stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tensors a launch."""
    dtype, how = STORED[stored]
    shapes = SHAPES if EVERY else WIDE if (name, stored) == ("Adafactor", "8bit") else FEW
    make = getattr(halfulp, name)
    expected = trained(lambda ps: make(ps, backend="reference", **options, **how), shapes, dtype, steps=2)
    in_torch, done = spied(monkeypatch), launched(monkeypatch)
    got = trained(lambda ps: make(ps, backend="triton", **options, **how), shapes, dtype, False, TRITON_DEVICE, 2)
    assert not in_torch
    assert "course" in done
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", ["Adafactor", "CAME"])
def test_a_gradient_that_is_not_finite_leaves_the_whole_tensor_alone(name: str) -> None:
    make = getattr(halfulp, name)
    got, expected = (
        trained(
            lambda ps, b=which: make(ps, backend=b, state="8bit"), [(5, 130), (9,), ()], torch.float32, True, device, 2
        )
        for which, device in (("triton", TRITON_DEVICE), ("reference", "cpu"))
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_users_own_rule_whose_sums_do_not_locate_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, in_torch = trained_by_rule("reference"), spied(monkeypatch)
    got = trained_by_rule("triton", TRITON_DEVICE)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert not in_torch


def overflowing(param: Tensor, grad: Tensor, states: dict[str, Tensor], c: dict[str, float]) -> Any:
    """A rule with every kind of value: rows, columns, numbers and masks, and sums that may overflow without harm."""
    huge = norm(grad * 1e30 * 1e30)  # infinite, so that the state below is zero, and the tensor is updated
    rows, cols = sides(param)
    column = column_means(param * grad)
    small = torch.where(mean(column) < cols / rows, huge, huge + 1.0)
    total = states["total"] * 0.5 + grad / small + by_column(column, grad) * 0.1
    kept = torch.where(mean(column) < 0.0, by_row(states["rows"], grad), by_row(states["rows"] * -0.5, grad))
    number = states["number"] + mean(states["rows"])
    return param - kept * c["lr"], {"total": total, "rows": states["rows"] * 1.5, "number": number}


def test_masks_and_sums_that_overflow() -> None:
    total, rows = RULE.slots({})[::-1]
    number = replace(rows, name="number", shape=lambda shape: (), exact=True)
    rule = replace(RULE, name="overflowing", update=overflowing, slots=lambda hyper: (total, rows, number))
    found = []
    for which, device in (("reference", "cpu"), ("triton", TRITON_DEVICE)):
        torch.manual_seed(0)
        params = [torch.randn(shape).to(device).requires_grad_() for shape in [(3, 1030), (6, 50)]]
        optimizer = halfulp.optimizer(rule)(params, lr=0.1, state="8bit", min_size=1, backend=which)
        for t in range(2):
            for p in params:
                p.grad = torch.randn(p.shape).to(device)
            if t == 1:
                optimizer.state[params[0]]["number"].fill_(float("inf"))
            optimizer.step()
        states = [x for p in params for x in optimizer.state[p].values() if isinstance(x, Tensor)]
        assert sum(optimizer.skipped.values()) == params[0].numel()
        found.append([x.cpu() for x in (*params, *states)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_number_that_is_not_finite_leaves_the_whole_tensor_alone() -> None:
    variant = next(v for v in VARIANTS if v.name == "AMAdamW")
    steps = []
    for _ in range(2):
        step = make_program_step(variant, "8bit", "nearest")
        (step,) = combined(step)
        names = [s.slot.name for s in step.binding.states]
        step.binding.states[names.index("momentum_product")].codes.fill_(float("inf"))
        steps.append(step)
    got, expected = on_device(steps[0], TRITON_DEVICE), steps[1]
    backend.step(variant.rule, [got])
    reference.step(variant.rule, [expected])
    assert int(got.skipped) > 0
    assert_same_bits(on_device(got, "cpu"), expected)


def test_one_scale_for_a_matrix_is_left_to_the_reference() -> None:
    """Its tiles are not rows, so that sums over them would have other bits."""
    variant = next(v for v in VARIANTS if v.name == "AdamP")
    step = make_program_step(variant, "8bit", "nearest")
    states = []
    for state in step.binding.states:
        quantizer = replace(state.quantizer, scaling=Scaling("fp32", "tensor"))
        codes, scale = quantizer.quantize(state.read())
        states.append(replace(state, quantizer=quantizer, codes=codes, scale=scale))
    step = on_device(bound_anew(step, states=tuple(states)), TRITON_DEVICE)
    assert "one scale for a whole tensor beside sums" in str(backend.supports(variant.rule, step))


@pytest.mark.parametrize("largest", [False, True])
def test_folding_rows(largest: bool) -> None:
    """Of several tensors at once: one number a row, whole segments and less, and more segments than one program has."""
    sizes = [(3, 1), (2, 1024), (5, 7), (1, 1025)] if not largest else [(1, 5), (1, 2500)]
    for of in (sizes[:1], sizes[:3:2], sizes):
        made = [torch.randn(size, dtype=torch.float64).abs() for size in of]
        firsts = [sum(x.numel() for x in made[:k]) for k in range(len(made))]
        device = torch.device(TRITON_DEVICE)
        fold = Fold(firsts, [r for r, _ in of], [n for _, n in of], device, largest=largest)
        got = fold.start(torch.cat([x.reshape(-1) for x in made]).to(device))
        assert torch.equal(got.cpu(), torch.cat([x.amax(1) if largest else fold_rows(x) for x in made]))


def test_folding_columns() -> None:
    sizes = [(1, 3), (16, 128), (17, 130), (300, 2)]
    made = [torch.randn(size, dtype=torch.float64) for size in sizes]
    firsts = [sum(x.numel() for x in made[:k]) for k in range(len(made))]
    fold = ColumnFold(firsts, [r for r, _ in sizes], [n for _, n in sizes], torch.device(TRITON_DEVICE))
    got = fold.start(torch.cat([x.reshape(-1) for x in made]).to(TRITON_DEVICE))
    assert torch.equal(got.cpu(), torch.cat([fold_columns(x) for x in made]))


def test_a_course_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later steps of the same tensors reuse the tables, and upload only what has changed."""
    params = [torch.randn(shape).to(TRITON_DEVICE).requires_grad_() for shape in [(4, 40), (3, 50)]]
    optimizer = halfulp.Adafactor(params, backend="triton")
    batches: list[Any] = []
    prepare = backend.prepare
    monkeypatch.setattr(backend, "prepare", lambda rule, steps: batches.append(prepare(rule, steps)) or batches[-1])
    for p in params:
        p.grad = torch.ones_like(p)
    uploaded = []
    for _ in range(3):
        optimizer.step()
        (launch,) = batches[-1].launches
        uploaded.append([table.uploaded for table in (launch.last.line_table, launch.rounds[0].line_table)])
    assert len({id(batch) for batch in batches}) == 1
    assert launch.members == [0, 1]
    assert uploaded[0] == uploaded[2] != [0, 0]
