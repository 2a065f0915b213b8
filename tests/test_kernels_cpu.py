"""The C kernels against the reference, bit for bit."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from halfulp.kernels import cpu, native, reference
from halfulp.kernels.binding import Stored
from halfulp.kernels.cpu_codec import CODEC
from halfulp.numbers.formats import FORMATS, Format
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.scaling import Scaling
from halfulp.rules.adam import ADAM
from halfulp.rules.base import Rule, Scalars, States
from halfulp.testing.subject import thread_count
from support.cpu_runs import FEW, assert_cpu_has_the_bits
from support.kernel_cases import AVERAGES, CASES, Case, assert_same_bits, bound_anew, make_step, next_grad, set_step
from support.processes import python

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))


@pytest.mark.parametrize("case", [*CASES, *AVERAGES], ids=lambda c: c.id)
def test_same_bits_as_the_reference(case: Case) -> None:
    assert_cpu_has_the_bits(case)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_many_tensors_and_any_number_of_threads(threads: int) -> None:
    cases = [c for c in CASES if c.rule == "adam"][::5]
    got, expected = [make_step(c) for c in cases], [make_step(c) for c in cases]
    assert all(cpu.supports(w.binding.rule, w) is None for w in got)
    with thread_count(threads):
        cpu.step(got[0].binding.rule, got)
    reference.step(expected[0].binding.rule, expected)
    for mine, theirs in zip(got, expected, strict=True):
        assert_same_bits(mine, theirs)


@pytest.mark.parametrize("isa", native.isas()[1:] if native.why_not() is None else [])
def test_every_instruction_set(isa: str) -> None:
    code = f"""
from halfulp.kernels import backends
from support.cpu_runs import FEW, assert_cpu_has_the_bits
from support.kernel_cases import CASES
assert backends()["cpu"] == "available ({isa})"
chosen = [*FEW, *CASES[::9]]
for case in chosen:
    assert_cpu_has_the_bits(case)
print(len(chosen))
"""
    assert int(python(code, HALFULP_ISA=isa)) > 50


def test_an_instruction_set_that_is_not_there_is_named() -> None:
    code = "from halfulp.kernels import backends; print(backends()['cpu'])"
    assert "HALFULP_ISA=mmx is not available" in python(code, HALFULP_ISA="mmx")


def test_a_library_with_other_structs_is_refused() -> None:
    code = """
import numpy
from halfulp.kernels import backends, native
native.FORMAT = numpy.dtype([*native.FORMAT.descr, ("new", "i8")])
print(backends()["cpu"])
"""
    assert "another version of halfulp: build it again" in python(code)


def test_missing_kernels_are_told_without_being_asked_for() -> None:
    code = """
import pathlib, sys, torch, halfulp
from halfulp.kernels import native
native.PATH = pathlib.Path("nowhere.so")
sys.stderr = sys.stdout  # what a program shows that has set up no logging
parameters = [torch.nn.Parameter(torch.ones(64, 64)) for _ in range(2)]
optimizer = halfulp.AdamW(parameters)
for _ in range(2):
    for p in parameters:
        p.grad = torch.ones(64, 64)
    optimizer.step()
"""
    lines = python(code).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("kernel 'cpu' not used: there are no compiled kernels")


def test_a_library_of_other_sources_is_refused(tmp_path: Path) -> None:
    """After a pull the struct sizes may be the same and the bits others."""
    kernels = Path(native.__file__).parent
    (tmp_path / "csrc").mkdir()
    for source in (kernels / "csrc").glob("*.[ch]"):
        (tmp_path / "csrc" / source.name).write_bytes(source.read_bytes())
    shutil.copy(native.PATH, tmp_path)
    with (tmp_path / "csrc" / "loop.h").open("a") as file:
        file.write("/* later */")
    code = f"""
from pathlib import Path
from halfulp.kernels import backends, native
native.PATH = Path({str(tmp_path)!r}, native.PATH.name)
print(backends()["cpu"])
"""
    assert "other sources than are beside it: run python hatch_build.py" in python(code)


def test_without_the_library_the_reference_runs_and_says_so() -> None:
    code = """
import logging, pathlib, torch, halfulp
from halfulp.kernels import backends, native
logging.basicConfig(level=logging.INFO)
native.PATH = pathlib.Path("/nonexistent/_cpu.so")
p = torch.nn.Parameter(torch.ones(64, 64))
p.grad = torch.ones(64, 64)
halfulp.AdamW([p]).step()
assert bool((p != 1).all())
try:
    halfulp.AdamW([p], backend="cpu").step()
except RuntimeError as error:
    print(error)
print(backends()["cpu"])
"""
    lines = python(code).splitlines()
    assert "cannot do this step" in lines[0]
    assert "install a C compiler" in lines[1]


def _scaled(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    average = states["exp_avg"] + (grad - states["exp_avg"]) * c["weight1"]
    square = states["exp_avg_sq"] * c["beta2"] + grad * grad * c["weight2"]
    return param - average * c["step_size"], {"exp_avg": average, "exp_avg_sq": square}


def _copied(param: Tensor, grad: Tensor, states: States, c: Scalars) -> tuple[Tensor, States]:
    return _scaled(param.clone(), grad, states, c)  # not expressible as a program


OWN = {"program": Rule("own", ADAM.slots, ADAM.scalars, _scaled), "no": Rule("no", ADAM.slots, ADAM.scalars, _copied)}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("case", [c for c in [*FEW, *CASES[::5]] if c.rule == "adam"], ids=lambda c: c.id)
def test_states_of_any_rule_are_coded_in_c(case: Case, name: str) -> None:
    rule = OWN[name]
    got, expected = (bound_anew(make_step(case), rule=rule) for _ in range(2))
    assert cpu.supports(rule, got) is None
    assert (got.binding.plan.programs is None) == (name == "no")
    cpu.step(rule, [got])
    reference.step(rule, [expected])
    assert_same_bits(got, expected)


def test_formats_with_long_fractions() -> None:
    """Floats of 8 bits with six mantissa bits keep fewer fraction bits than all others do."""
    fine = Format("ufloat8_e2m6", "float", 8, False, 2, 6, 1, "none")
    for rounding in ("nearest", "stochastic"):
        works = []
        for step in (cpu.step, reference.step):
            work = make_step(Case(formats=("float8_e3m4", "ufloat8_e4m4"), rounding=rounding))
            first, second = work.binding.states
            quantizer = replace(second.quantizer, format=fine)
            state = Stored(second.slot, quantizer, second.shape, *quantizer.zeros(second.shape, torch.device("cpu")))
            work = bound_anew(work, states=(first, state))
            assert cpu.supports(work.binding.rule, work) is None
            step(work.binding.rule, [work])
            works.append(work)
        assert_same_bits(*works)


NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
BOOKS = [
    FORMATS["dynamic8"],
    FORMATS["udynamic8"],
    Format("normal_floats", "codebook", 4, True, levels=NF4),
    Format("uneven8", "codebook", 8, False, levels=tuple(k**3 / 255**3 for k in range(256))),
    Format("lopsided8", "codebook", 8, True, levels=tuple((k - 64) / 128 for k in range(256))),
]


@pytest.mark.parametrize("isa", native.isas() if native.why_not() is None else [])
@pytest.mark.parametrize("fmt", BOOKS, ids=str)
def test_codebooks_at_their_levels_and_middles_and_beside_them(fmt: Format, isa: str) -> None:
    levels = torch.tensor(fmt.levels)
    levels = levels[levels.abs() <= fmt.reach]
    points = torch.cat([levels, (levels[1:] + levels[:-1]) / 2, torch.linspace(-1, 1, 4096) * fmt.reach])
    away = torch.tensor(
        [k * side for k in (1, 2, 3, 5, 10, 50, 100, 1000, 10000) for side in (-1, 1)], dtype=torch.int32
    )
    points = torch.cat([points, (points.view(torch.int32) + away[:, None]).view(torch.float32).flatten()])  # in units
    points = points[points.isfinite()]
    points = points[(points.abs() <= fmt.reach) & (points >= fmt.levels[0])]
    points[0] = fmt.reach  # so that the scale is one
    work = make_step(Case())
    chosen = native.chosen()
    native.library().hu_choose(isa.encode())
    try:
        for rounding in ("nearest", "stochastic"):
            for zero_floor in (False, True):
                quantizer = Quantizer(fmt, Scaling("fp32", "tensor"), rounding, zero_floor=zero_floor)
                state = Stored(
                    work.binding.states[0].slot, quantizer, points.shape, *quantizer.zeros(points.shape, points.device)
                )
                for key in ((1, 2, 3), (3, 4, 5), (5, 6, 7)):
                    codes, scale = CODEC.quantize(state, points, key, work)
                    expected, same = reference.TORCH.quantize(state, points, key, work)
                    assert torch.equal(codes, expected)
                    assert torch.equal(scale, same)
                    assert float(scale) == 1
    finally:
        native.library().hu_choose(chosen.encode())


@pytest.mark.parametrize("case", [*FEW, Case(scaling=Scaling("fp32", "tensor"), shape=(3, 1500))], ids=lambda c: c.id)
def test_counts_of_due_and_stalled_updates(case: Case) -> None:
    works = [make_step(case), make_step(case)]
    for work, backend in zip(works, (cpu, reference), strict=True):
        work.counts = torch.zeros(len(work.binding.states), 2, dtype=torch.int64)
        assert backend.supports(work.binding.rule, work) is None
        backend.step(work.binding.rule, [work])
    assert works[0].counts is not None
    assert works[1].counts is not None
    assert works[0].counts.tolist() == works[1].counts.tolist()
    assert works[0].counts[:, 0].min() > 0
    assert_same_bits(*works)


@pytest.mark.parametrize("stride", [200, 333])
def test_shards_of_columns_draw_the_words_of_the_whole(stride: int) -> None:
    works = [make_step(Case()), make_step(Case())]
    for work, backend in zip(works, (cpu, reference), strict=True):
        work = bound_anew(work, first_element=77, row_stride=stride)
        assert backend.supports(work.binding.rule, work) is None
        backend.step(work.binding.rule, [work])
    assert_same_bits(*works)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_unaligned_and_strided_inputs(offset: int) -> None:
    got, expected = make_step(Case(shape=(5, 301))), make_step(Case(shape=(5, 301)))
    param, grad = (
        torch.empty(old.numel() + offset)[offset:].view_as(old).copy_(old) for old in (got.binding.param, *got.inputs)
    )
    got = replace(bound_anew(got, param=param), inputs=(grad,))
    got.inputs = (got.inputs[0].t().contiguous().t(),)
    assert cpu.supports(got.binding.rule, got) is None
    cpu.step(got.binding.rule, [got])
    reference.step(expected.binding.rule, [expected])
    assert_same_bits(got, expected)
    got = bound_anew(got, param=torch.empty(301, 5).t())
    assert cpu.supports(got.binding.rule, got) == "the parameter is not contiguous"


def test_flush_to_zero_of_the_caller_changes_nothing() -> None:
    got, expected = make_step(Case(data="tiny")), make_step(Case(data="tiny"))
    reference.step(expected.binding.rule, [expected])
    assert torch.set_flush_denormal(True)
    try:
        assert cpu.supports(got.binding.rule, got) is None
        cpu.step(got.binding.rule, [got])
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(got, expected)


def test_tensors_that_move_between_steps() -> None:
    """Parameters, gradients and states may be other tensors in the next step; their places are looked up each time."""
    got, expected = make_step(Case()), make_step(Case())
    for step in range(3):
        assert cpu.supports(got.binding.rule, got) is None
        cpu.step(got.binding.rule, [got])
        reference.step(expected.binding.rule, [expected])
        assert_same_bits(got, expected)
        states = tuple(
            replace(s, codes=s.codes.clone(), scale=None if s.scale is None else s.scale.clone())
            for s in got.binding.states
        )
        got = bound_anew(got, param=got.binding.param.clone(), states=states)
        for work in (got, expected):
            next_grad(Case(), work, step + 1)
            set_step(Case(), work, 8 + step)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_step_takes_no_memory_to_speak_of() -> None:
    code = """
import pathlib, torch, halfulp
def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
torch.set_num_threads(2)
p = torch.nn.Parameter(torch.ones(4096, 1024))
p.grad = torch.ones(4096, 1024)
optimizer = halfulp.AdamW([p], state="fp8", backend="cpu")
optimizer.step()
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
optimizer.step()
print(status("VmHWM") - before)
"""
    assert int(python(code)) <= 1024 + 2 * 64


def test_a_process_forked_after_a_step_can_step() -> None:
    code = """
import os, torch, halfulp
torch.set_num_threads(2)
p = torch.nn.Parameter(torch.ones(512, 512))
p.grad = torch.ones(512, 512)
optimizer = halfulp.AdamW([p], state="fp8", backend="cpu")
optimizer.step()
child = os.fork()
if child == 0:
    optimizer.step()
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    assert python(code) == "0"
