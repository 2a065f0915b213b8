"""Programs: the same bits as the rules they were traced from, and errors that name the line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from halfulp.numbers.single import fp32
from halfulp.rules import base
from halfulp.rules.program import Program, evaluate
from halfulp.rules.stages import work_out
from halfulp.rules.tracing import ProgramError, trace
from support.kernel_cases import specials
from support.rules import VARIANTS, Variant

NO_PROGRAM = {
    "SMMF": "Tensor.numel", "Muon": "Tensor.reshape", "SOAP": "torch.lerp",
    "Conda": "Tensor.shape", "MicroAdam": "Tensor.shape", "SubsetNorm": "Tensor.reshape",
    "SubspaceMomentum": "Tensor.reshape", "FRUGAL": "Tensor.reshape",
}  # fmt: skip
"""Optimizers whose rule runs in torch operations, and the first of these that a program cannot say."""
FROM_SUMS = {"momentum": 0.5, "memory": 0.5, "largest": 0.25, "rate": 0.01, "trust": 0.75}
"""Scalars that rules with sums have from these."""
SIZE = 1500


def inputs(variant: Variant, seed: int) -> dict[str, Tensor]:
    """Parameter, gradient and states; everything that fp32 has is somewhere among them."""
    generator = torch.Generator().manual_seed(seed)
    found = {"param": torch.randn(SIZE, generator=generator), "grad": torch.randn(SIZE, generator=generator) * 0.1}
    for slot in variant.slots:
        x = torch.randn(SIZE, generator=generator) * 0.01
        found[slot.name] = x if slot.signed else x * x
    for name in variant.numbers:
        found[name] = torch.rand((), generator=generator)
    special = specials(SIZE)
    for k, name in enumerate(("param", "grad", *variant.states)):
        odd = special.roll(37 * k)
        mask = (odd != 1.0) & ((name in ("param", "grad")) | (odd >= 0))
        found[name] = torch.where(mask, odd, found[name]).reshape(3, -1)
    return found


def values(program: Program, found: dict[str, Tensor], c: dict[str, float]) -> dict[str, Any]:
    return {
        "param": found["param"].numpy(), "grad": found["grad"].numpy(),
        "state": [found[n].numpy() for n in program.states], "number": [found[n].item() for n in program.numbers],
        "scalar": program.scalar_values(c),
    }  # fmt: skip


def same(got: Any, want: Tensor) -> bool:
    """Equal bits; any NaN for a NaN."""
    a, b = np.broadcast_to(np.float32(got), want.shape), want.numpy()
    return bool(((a.view(np.int32) == b.view(np.int32)) | (np.isnan(a) & np.isnan(b))).all())


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_program_has_the_bits_of_its_rule(variant: Variant) -> None:
    if variant.name in NO_PROGRAM:
        with pytest.raises(ProgramError, match=NO_PROGRAM[variant.name]) as caught:
            _ = variant.programs
        assert "rules" in str(caught.value)
        return
    branches = variant.programs
    if not variant.rule.elementwise:
        assert_staged_bits(variant)
        return
    for age in (1, 2, 10):
        c = {**FROM_SUMS, **variant.scalars(age)}
        program = branches.choose(c)
        found = inputs(variant, age)
        states = {name: found[name] for name in (*variant.states, *variant.numbers)}
        inputs_of = (found["grad"], found["param"])[: len(variant.rule.inputs)]
        param, new = variant.rule.apply(found["param"] if variant.rule.has_param else None, inputs_of, states, c)
        got = evaluate(program, values(program, found, c))
        if variant.rule.has_param:
            assert same(found["param"].numpy() if program.param is None else got[program.param], param)
        for name, index in zip(program.states, program.new_states, strict=True):
            assert same(got[index], new[name]), name
        for name, index in zip(program.numbers, program.new_numbers, strict=True):
            assert same(got[index], new[name]), name
        uniform = evaluate(program, values(program, found, c), only_uniform=True)
        assert [x is not None for x in uniform] == list(program.uniform)
        assert all(np.array_equal(uniform[i], got[i], equal_nan=True) for i in program.uniforms)


def assert_staged_bits(variant: Variant) -> None:
    """Passes with sums between them give what the rule gives; their sums must be finite, and so are the values."""
    for age in (1, 2, 10):
        c, generator = variant.scalars(age), torch.Generator().manual_seed(age)
        shapes = {slot.name: slot.shape((30, 50)) or () for slot in variant.slots}
        found = {name: torch.randn(shape, generator=generator).square() * 1e-3 for name, shape in shapes.items()}
        given = {name: torch.randn(30, 50, generator=generator) * 0.1 for name in ("param", "grad")}
        given["grad"].view(-1)[::7] = 0.0
        arrays = {name: x.numpy() for name, x in (given | found).items()}
        got = work_out(variant.programs.choose(c), arrays, c)
        param, new = variant.rule.update(given["param"], given["grad"], dict(found), c)
        assert got.keys() == {"param", *new}
        assert all(same(got[name], want) for name, want in {"param": param, **new}.items())


def test_every_branch_of_a_rule_is_found_and_chosen() -> None:
    sgd = next(v for v in VARIANTS if v.name == "SGD" and v.states)
    branches = trace(sgd.rule.update, sgd.states)
    assert len(branches.programs) == 4
    zero = {"l2": 0.0, "momentum": 0.9, "gain": 1.0, "nesterov": 0.0, "lr": 0.1}
    chosen = {branches.number({**zero, "l2": l2, "nesterov": n}) for l2 in (0.0, 0.1) for n in (0.0, 0.9)}
    assert chosen == {0, 1, 2, 3}
    assert branches.choose(zero).scalars == ("c['momentum']", "c['gain']", "c['lr']")


def update_of(change: Callable[[Tensor, Tensor, Any], Tensor]) -> Any:
    return lambda param, grad, states, c: (change(param, grad, c), {})


WRONG: dict[str, tuple[Any, str]] = {
    "function": (update_of(lambda p, g, c: torch.sqrt(p)), "torch.sqrt .*test_program.py:.*base.sqrt"),
    "method": (update_of(lambda p, g, c: p.cumsum(0)), "Tensor.cumsum"),
    "wide": (update_of(lambda p, g, c: p.double().sqrt().float()), "Tensor.double"),
    "lerp": (update_of(lambda p, g, c: torch.lerp(p, g, 0.1)), "torch.lerp"),
    "sum": (update_of(lambda p, g, c: p * base.total(g)), "a sum over the tensor"),
    "norm": (update_of(lambda p, g, c: p * base.norm(g)), "a sum over the tensor within an elementwise update"),
    "branch": (update_of(lambda p, g, c: p if p > 0 else g), "a branch on the values"),
    "value": (update_of(lambda p, g, c: p * float(g)), "the value of a tensor"),
    "math": (update_of(lambda p, g, c: p * math.sqrt(c["lr"])), "a NaN"),
    "math branch": (update_of(lambda p, g, c: p if math.sqrt(c["step"]) > 2 else g), "reads the value of a scalar"),
    "scalar": (update_of(lambda p, g, c: p * float(c["lr"])), "the value of a scalar"),
    "floor": (update_of(lambda p, g, c: p if math.floor(c["step"]) > 2 else g), "the value of a scalar"),
    "in place": (update_of(lambda p, g, c: p.__iadd__(g)), "in place"),
    "tensor": (update_of(lambda p, g, c: p + torch.ones(3)), "Tensor"),
    "mask returned": (update_of(lambda p, g, c: p > g), "value of type mask .*test_program.py:"),
    "no tuple": (lambda p, g, s, c: [p, {}], "does not return"),
    "new state": (lambda p, g, s, c: (p, {"m": g}), r"returns the states \['m'\]"),
    "lost state": (lambda p, g, s, c: (p, {}), "returns no new m"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_program_cannot_say_is_named(name: str) -> None:
    update, message = WRONG[name]
    with pytest.raises(ProgramError, match=message):
        trace(update, ("m",) if name == "lost state" else ())


def test_every_scalar_operator_decides_anew_in_each_step() -> None:
    def update(param: Tensor, grad: Tensor, states: Any, c: Any) -> Any:
        return (param if c["step"] % 2 == 0 and c["step"] // 4 < 1 else grad), {}

    branches = trace(update, ())
    assert [branches.number({"step": float(n)}) for n in (1, 2, 3, 4)] == [1, 0, 1, 1]


ACCURACY = {
    "exp": (base.exp, np.exp, 1.0, torch.linspace(-104, 89, 500_001)),
    "sigmoid": (base.sigmoid, lambda x: 1 / (1 + np.exp(-x)), 2.5, torch.linspace(-104, 104, 500_001)),
    "cbrt": (base.cbrt, np.cbrt, 1.0, torch.arange(0, 0x7F800000, 4001, dtype=torch.int32).view(torch.float32)),
}


@pytest.mark.parametrize("name", ACCURACY)
def test_fixed_sequences_are_as_accurate_as_they_say(name: str) -> None:
    ours, exact, units, x = ACCURACY[name]
    x = torch.cat([x, -x])
    got, want = ours(x).double().numpy(), exact(x.double().numpy())
    limit = np.float64(np.finfo(np.float32).max)
    inside = np.abs(want) <= limit
    unit = np.spacing(np.abs(want[inside]).astype(np.float32)).astype(np.float64)
    assert (np.abs(got[inside] - want[inside]) / unit).max() <= units
    assert np.isinf(got[~inside]).all()


def test_fixed_sequences_of_special_values() -> None:
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])
    assert base.cbrt(x)[:4].tolist() == [0.0, 0.0, math.inf, -math.inf]
    assert base.cbrt(x)[1].signbit()
    assert base.exp(x)[:4].tolist() == [1.0, 1.0, math.inf, 0.0]
    assert base.sigmoid(x)[:4].tolist() == [0.5, 0.5, 1.0, 0.0]
    assert all(f(x)[4].isnan() for f in (base.cbrt, base.exp, base.sigmoid))
    assert base.sqrt(torch.tensor([-1.0, float("nan")])).isnan().all()  # as torch, without numpy's warning


SPREAD: dict[str, tuple[Any, str]] = {
    "vector and tensor": (lambda p, g, v: p * base.row_means(g), "an operation on rows and tensor .*base.by_row"),
    "both vectors": (lambda p, g, v: p * (base.row_means(g) + base.column_means(g)), "on columns and rows"),
    "wrong way": (lambda p, g, v: p * base.by_column(base.row_means(g), p), "base.by_column of a rows"),
    "norm of a vector": (lambda p, g, v: p * base.norm(base.row_means(g)), "base.norm of a rows"),
    "new state": (lambda p, g, v: (p, {"v": base.column_means(g)}), "the new v has values of the columns"),
}


@pytest.mark.parametrize("name", SPREAD)
def test_what_has_other_values_is_named(name: str) -> None:
    change, message = SPREAD[name]

    def update(param: Any, grad: Any, states: Any, c: Any) -> Any:
        found = change(param, grad, states["v"])
        return found if isinstance(found, tuple) else (found, states)

    with pytest.raises(ProgramError, match=message):
        trace(update, (), (), 2, ("param", "grad"), (("v", "rows"),), elementwise=False)


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (1,), (7,), (1024,), (1025,), (3, 1), (5, 2049), (2100, 3)])
def test_totals_add_up_in_the_order_that_is_promised(shape: tuple[int, ...]) -> None:
    x, y = torch.randn(shape), torch.randn(shape)
    rows, cols = (1, x.numel()) if x.ndim < 2 else shape

    def halved(numbers: list[float]) -> float:
        numbers = numbers + [0.0] * (1024 - len(numbers))
        while len(numbers) > 1:
            half = len(numbers) // 2
            numbers = [a + b for a, b in zip(numbers[:half], numbers[half:], strict=True)]
        return numbers[0]

    products = (x.double() * y.double()).reshape(-1).tolist()
    rows_of = [products[r * cols : (r + 1) * cols] for r in range(rows)]
    sums = [halved(row[i : i + 1024]) for row in rows_of for i in range(0, cols, 1024)]
    while len(sums) > 1:
        sums = [halved(sums[i : i + 1024]) for i in range(0, len(sums), 1024)]
    assert base.total(x, y).item() == (sums[0] if sums else 0.0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1), (5, 2049), (64, 3), (131, 2)])
def test_means_add_up_in_the_order_that_is_promised(shape: tuple[int, int]) -> None:
    x = torch.randn(shape)
    rows, cols = shape

    def in_pairs(numbers: list[float]) -> float:
        while len(numbers) > 1:
            pairs = zip(numbers[::2], numbers[1::2], strict=False)
            numbers = [a + b for a, b in pairs] + numbers[len(numbers) // 2 * 2 :]
        return numbers[0]

    assert base.row_means(x).tolist() == [fp32(base.total(x[k]).item() / cols) for k in range(rows)]
    columns = x.double().T.tolist()
    assert base.column_means(x).tolist() == [fp32(in_pairs(column) / rows) for column in columns]
    assert base.mean(x[0]).item() == fp32(base.total(x[0]).item() / cols)
    assert base.rms(x).item() == (base.norm(x) / math.sqrt(x.numel())).item()
    matrix = x.reshape(rows, cols, 1)
    assert base.by_row(x[:, 0], matrix).shape == (rows, 1, 1)
    assert base.by_column(x[0], matrix).shape == (cols, 1)
