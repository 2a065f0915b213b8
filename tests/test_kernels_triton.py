"""The Triton step against the reference, bit for bit, in Triton's interpreter; and its PTX, compiled without a GPU.

With a GPU, ``TRITON_INTERPRET=0 python -m pytest tests/test_kernels_triton.py`` compares the same cases there.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfulp import SGD, AdamW, Lion
from halfulp.kernels import dispatch, reference
from halfulp.kernels import triton as backend
from halfulp.kernels.binding import Step
from halfulp.kernels.triton_launch import Launch, Member
from halfulp.kernels.triton_plan import LARGEST_TILE, Line, tiling
from halfulp.numbers import log as _log
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.scaling import Scaling, rows_and_cols
from support.kernel_cases import (
    AVERAGES,
    CASES,
    FORMAT_PAIRS,
    MAIN_PAIRS,
    RULES,
    SHAPES,
    Case,
    assert_same_bits,
    bound_anew,
    make_step,
    next_grad,
    on_device,
    set_step,
)
from support.kernel_cases import TRITON_DEVICE as DEVICE
from support.marks import INTERPRETED
from support.rules import ELEMENTWISE, Variant

pytestmark = INTERPRETED
BASE = Case()
EVERY = "HALFULP_EVERY_CASE" in os.environ
"""The interpreter is slow: without this variable a part of the cases is compared."""
REFUSED = {
    "adam-fp4+4bit-fp32_tensor-2x2049-specials",
    "adam-int4+int4-fp32_tensor-2x2049-specials",
}
"""Cases left to the reference: one scale over rows of 4-bit codes of odd length."""


SOME_CASES = [c for c in [*CASES, *AVERAGES] if c.id not in REFUSED][:: 1 if EVERY else 3]


def member_of(step: Step) -> Member:
    """What the backend has found out about a step."""
    found = backend._notes(step).update.look(step.binding.rule, step)
    assert isinstance(found, Member), found
    return found


def compare(*cases: Case, works: tuple[list[Step], list[Step]] | None = None) -> list[Step]:
    """One step of all cases together, on both backends; returns what the kernel made."""
    got, expected = works or ([make_step(c, device=DEVICE) for c in cases], [make_step(c) for c in cases])
    for work in got:
        assert backend.supports(work.binding.rule, work) is None
    backend.step(got[0].binding.rule, got)
    reference.step(expected[0].binding.rule, expected)
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(on_device(a, "cpu"), b)
    return got


@pytest.mark.parametrize("case", SOME_CASES, ids=lambda c: c.id)
def test_case(case: Case) -> None:
    compare(case)


@pytest.mark.parametrize("variant", ELEMENTWISE if EVERY else ELEMENTWISE[::3], ids=lambda v: v.name)
def test_every_rule(variant: Variant) -> None:
    """The kernel that is generated from any rule: in the first step, which may take another branch, and later."""
    got, expected = ([variant.step((3, 150), age=age) for age in (1, 7)] for _ in range(2))
    for step in got:
        assert backend.supports(variant.rule, step) is None
    backend.step(variant.rule, got)
    reference.step(variant.rule, expected)
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(a, b)


def test_the_refused_cases_are_those() -> None:
    refused = {c.id for c in CASES if backend.supports(RULES[c.rule], make_step(c, device=DEVICE)) is not None}
    assert refused == REFUSED


@pytest.mark.parametrize("rule", ["adam", "lion", "sgd"])
def test_several_steps(rule: str) -> None:
    case = replace(BASE, rule=rule, formats=("fp4", "8bit") if rule == "adam" else ("fp4",), shape=(3, 129))
    got, expected = make_step(case, device=DEVICE), make_step(case)
    for step in range(1, 5):
        for work in (got, expected):
            set_step(case, work, step)
            next_grad(case, work, step)
        compare(works=([got], [expected]))


def test_many_tensors_are_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []
    start = Launch.start
    monkeypatch.setattr(Launch, "start", lambda self: launches.append(len(self.members)) or start(self))
    compare(*(replace(BASE, shape=s, data=d, age=a) for s in SHAPES for d, a in (("normal", 3), ("specials", 9))))
    full = [torch.Size(s) for s in SHAPES if torch.Size(s).numel()]
    aligned = [s for s in full if rows_and_cols(s)[1] % 32 == 0]
    assert sorted(launches) == sorted([2 * (len(full) - len(aligned)), 2 * len(aligned)])


def test_tensors_of_different_kinds() -> None:
    compare(*(replace(BASE, formats=pair, shape=s) for pair in MAIN_PAIRS for s in [(2, 130), (5,)]))


@settings(max_examples=40)
@given(st.data())
def test_any_storage(data: st.DataObject) -> None:
    """Shapes, formats, scalings and dtypes that no list foresaw."""
    sizes = st.sampled_from([2, 6, 16, 32, 48, 64, 128, 130, 256])
    scalings = st.builds(Scaling, st.sampled_from(["pow2", "fp32"]), st.sampled_from(["block", "block", "row"]), sizes)
    dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
    rounding = st.sampled_from(["nearest", "stochastic"])
    case = Case(
        formats=data.draw(st.sampled_from(FORMAT_PAIRS)),
        scaling=(data.draw(scalings), data.draw(scalings)),
        shape=data.draw(st.tuples(st.integers(1, 6), st.integers(1, 300))),
        rounding=(data.draw(rounding), data.draw(rounding)),
        data=data.draw(st.sampled_from(["normal", "wide", "specials", "tiny", "huge"])),
        param_dtype=data.draw(dtypes),
        param_rounding=data.draw(rounding),
        grad_dtype=data.draw(dtypes),
        first_element=data.draw(st.sampled_from([0, 128, (1 << 32) - 5, (1 << 33) + 1])),
        maximize=data.draw(st.booleans()),
    )
    work = make_step(case, device=DEVICE)
    if backend.supports(work.binding.rule, work) is None:
        compare(case)
    else:
        assert not all(s.per == "row" for s in case.scaling), "rows as short as these always fit a program"


@pytest.mark.parametrize("formats", FORMAT_PAIRS, ids="+".join)
def test_any_stored_bytes(formats: tuple[str, str]) -> None:
    """Codes and scales that no step of ours writes: NaN codes, the lowest integer, infinite scales."""
    case = replace(BASE, formats=formats, shape=(8, 300))
    got, expected = make_step(case, device=DEVICE), make_step(case)
    for work in (got, expected):
        generator = torch.Generator().manual_seed(7)
        for stored in (t for s in work.binding.states for t in (s.codes, s.scale) if t is not None):
            old = stored.view(torch.uint8)
            old.copy_(torch.randint(0, 256, old.shape, generator=generator, dtype=torch.uint8))
    compare(works=([got], [expected]))


def test_strided_gradient() -> None:
    case = replace(BASE, shape=(64, 96))
    got, expected = make_step(case, device=DEVICE), make_step(case)
    got.inputs = (got.inputs[0].t().contiguous().t(),)
    assert not got.inputs[0].is_contiguous()
    compare(works=([got], [expected]))


@pytest.mark.parametrize("formats", MAIN_PAIRS, ids="+".join)
def test_alignment_changes_no_bit(formats: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that start anywhere; the promise to the compiler is only made where it holds."""
    case = replace(BASE, formats=formats, shape=(4, 256))
    shifted, expected = make_step(case, device=DEVICE), make_step(case)
    buffer = torch.zeros(shifted.binding.param.numel() + 1, device=DEVICE)
    param = buffer[1:].view(case.shape)
    shifted = bound_anew(shifted, param=param.copy_(shifted.binding.param))
    assert [member_of(w).kind.plan.aligned for w in (shifted, make_step(case, device=DEVICE))] == [False, True]
    compare(works=([shifted], [expected]))


@pytest.mark.parametrize("formats", [("fp8", "8bit"), ("fp4", "4bit"), ("bf16", "int8")], ids="+".join)
@pytest.mark.parametrize("before", [1 << 31, (1 << 33) + 1024])
@pytest.mark.parametrize("shape", [(2, 1024), (2048,)], ids=["rows", "one row"])
def test_places_beyond_32_bits(formats: tuple[str, str], before: int, shape: tuple[int, ...]) -> None:
    """The end of a tensor with more than 2**31 elements, of which only that end exists.

    Every address is given as if the elements `before` it were there, and the program's number as if they were done.
    """
    case = replace(BASE, formats=formats, shape=shape)
    got, expected = make_step(case, device=DEVICE), make_step(case)
    expected = bound_anew(expected, first_element=before)
    reference.step(expected.binding.rule, [expected])
    whole = (before // 1024 + 2, 1024) if len(shape) == 2 else (before + 2048,)
    cut = tiling(torch.Size(whole), got.binding.quantizers)
    assert not isinstance(cut, str)
    found = member_of(got)
    kind = replace(found.kind, plan=replace(found.kind.plan, far=True))
    member = replace(found, kind=kind, cut=replace(cut, rows=1, cols=2048))  # programs only for the end
    place, line = Line(2), member.line
    line[1:4] = (cut.rows, cut.cols, cut.tiles_a_row)
    line[place.FIRST_ELEMENT], line[place.ROW_STRIDE] = 0, cut.cols
    line[place.PARAM] -= before * 4
    for i, state in enumerate(got.binding.states):
        line[place.state(i)] -= before * state.codes.nbytes // 2048
        line[place.state(i) + 1] -= before * state.scale.nbytes // 2048 if state.scale is not None else 0
    launch = Launch([member], [0])
    launch.lines[0, place.FIRST_PROGRAM] = -before // (cut.tile * cut.tiles_a_program)
    launch.fill([got])
    launch.lines[0, place.GRAD] -= before * 4
    launch.line_table.update(launch.lines.reshape(-1))
    launch.start()
    assert_same_bits(on_device(got, "cpu"), expected)


def _make(**changes: Any) -> Step:
    return make_step(replace(BASE, **changes), device=DEVICE)


def _columns_first() -> Step:
    work = _make(shape=(6, 8))
    return bound_anew(work, param=work.binding.param.t().contiguous().t())


def _double_gradient() -> Step:
    work = _make()
    return replace(work, inputs=(work.inputs[0].double(),))


def _meta() -> Step:
    work = _make()
    return bound_anew(work, param=work.binding.param.to("meta"))


REASONS = [
    (lambda: _make(scaling=Scaling("pow2", "row"), shape=(1, LARGEST_TILE + 1)), "more than the 8192 of one program"),
    (lambda: _make(scaling=(Scaling(per="tensor"), Scaling())), "beside scales of blocks"),
    (lambda: _make(formats=("fp4", "4bit"), scaling=Scaling(per="tensor"), shape=(3, 7)), "odd length"),
    (lambda: _make(scaling=(Scaling("pow2", "block", 6), Scaling("pow2", "block", 128))), "not a power of two"),
    (lambda: _make(scaling=Scaling("pow2", "block", 16384)), "16384 elements in the least common multiple"),
    (_columns_first, "not contiguous"),
    (_double_gradient, "parameter or gradient in torch.float64"),
    (_meta, "tensor on 'meta'"),
]


@pytest.mark.parametrize(("make", "reason"), REASONS, ids=[r for _, r in REASONS])
def test_reasons(make: Any, reason: str) -> None:
    work = make()
    assert reason in (backend.supports(work.binding.rule, work) or "")


def test_a_binding_is_looked_at_once() -> None:
    step = make_step(BASE, device=DEVICE)
    first = member_of(step)
    next_grad(BASE, step, 1)
    assert member_of(step) is first
    step.maximize = True
    second = member_of(step)
    assert second is not first
    other = bound_anew(step, states=tuple(replace(s, codes=s.codes.clone()) for s in step.binding.states))
    assert member_of(other) is not second


def test_what_is_no_program_and_too_many_tiles() -> None:
    step = make_step(BASE, device=DEVICE)
    odd = replace(step.binding.rule, update=lambda param, grad, states, c: (param.cumsum(0), states))
    step = bound_anew(step, rule=odd)
    assert "has no program: a program cannot say Tensor.cumsum" in str(backend.supports(odd, step))
    small = tuple(replace(q, scaling=Scaling("pow2", "block", 2)) for q in step.binding.quantizers)
    assert "at most 2**31" in str(tiling(torch.Size((1 << 16, 1 << 17)), small))
    assert not isinstance(tiling(torch.Size((1 << 16, 1 << 17)), (Quantizer("fp8"),)), str)


def test_old_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    monkeypatch.setattr(triton, "__version__", "3.5.1")
    backend._no_device.cache_clear()
    try:
        assert "triton 3.5.1 flushes subnormal numbers" in backend.status()
    finally:
        backend._no_device.cache_clear()


def test_short_rows_share_the_scale_of_a_row() -> None:
    compare(replace(BASE, scaling=Scaling("fp32", "row"), shape=(2, 3000), formats=("fp4", "int8")))


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (AdamW, {"state": "8bit", "weight_decay": 0.1}),
        (AdamW, {"state": {"exp_avg": "fp4"}, "param_rounding": "stochastic", "reset": 2}),
        (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "state": "fp4"}),
        (Lion, {"state": "int8", "maximize": True}),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else "-".join(x),
)
def test_optimizers(cls: Any, options: dict[str, Any]) -> None:
    def train(name: str, device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        dtype = torch.bfloat16 if "param_rounding" in options else torch.float32
        shapes = [(40, 130), (33,), (4, 7)]
        params = [torch.randn(s, dtype=dtype).to(device).requires_grad_() for s in shapes]
        optimizer = cls(params, backend=name, min_size=100, **options)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, dtype=dtype).to(device)
            params[0].grad[0, 5] = float("inf")
            optimizer.step()
        assert optimizer.skipped == {0: 3 * 128}
        entries = [e for p in params for e in optimizer.state[p].values() if isinstance(e, torch.Tensor)]
        return [*params, *entries]

    for got, want in zip(train("triton", DEVICE), train("reference", "cpu"), strict=True):
        assert torch.equal(got.cpu(), want)


def test_tensors_on_the_cpu_come_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "step", lambda *_: pytest.fail("the Triton backend was not asked for"))
    work, expected = make_step(BASE), make_step(BASE)
    dispatch.step(work.binding.rule, [work], None)
    reference.step(expected.binding.rule, [expected])
    assert_same_bits(work, expected)


def test_what_it_cannot_do_goes_to_the_reference(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a GPU: tried first, and what it refuses is done by the reference, said once."""
    monkeypatch.setattr(dispatch, "DEVICES", {"triton": DEVICE})
    monkeypatch.setattr(dispatch, "BACKENDS", ("triton", "reference"))
    monkeypatch.setattr(_log, "_said", set())
    refused = replace(BASE, scaling=Scaling("pow2", "row"), shape=(1, LARGEST_TILE + 1))
    got, expected = ([make_step(c, device=d) for c in (BASE, refused, refused)] for d in (DEVICE, "cpu"))
    with caplog.at_level(logging.INFO, "halfulp"):
        dispatch.step(got[0].binding.rule, got, None)
    reference.step(expected[0].binding.rule, expected)
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(on_device(a, "cpu"), b)
    assert [r.message for r in caplog.records] == [
        "kernel 'triton' not used: 8193 elements that share a scale, more than the 8192 of one program"
    ]


def _run(code: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


STEP = """
import sys, torch
from halfulp import AdamW
p = torch.zeros(64, 128, requires_grad=True)
p.grad = torch.ones_like(p)
try:
    AdamW([p], backend={backend!r}).step()
except RuntimeError as error:
    print(error)
print(sorted(m for m in sys.modules if m.startswith("halfulp.kernels.triton")))
"""


def test_nothing_is_imported_without_need() -> None:
    # torch itself imports triton, if installed, when an optimizer is made
    assert _run(STEP.format(backend=None)).strip() == "[]"


def test_without_the_interpreter() -> None:
    said = _run(STEP.format(backend="triton"))
    assert "TRITON_INTERPRET=1" in said
    assert "halfulp.kernels.triton'" in said
    assert "halfulp.kernels.triton_tiles" not in said
