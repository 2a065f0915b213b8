"""Rows of states: reset separately, and carried over to parameters that grow or are pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp

STATES = ["fp32", "bf16", "fp8", "8bit", "int8", "4bit", "fp4", "int4"]
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {}, "SGD": {"momentum": 0.9}, "Lion": {}, "AdEMAMix": {}, "Adafactor": {"momentum": 0.9}, "LAMB": {},
    "MADGRAD": {}, "AdaBelief": {},
}  # fmt: skip


def stepped(name: str, state: str, shape: tuple[int, ...] = (24, 70), **more: Any) -> tuple[Any, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = getattr(halfulp, name)([("w", p)], lr=1e-2, state=state, min_size=0, **OPTIMIZERS.get(name, {}), **more)
    for _ in range(3):
        p.grad = torch.randn(shape, generator=generator)
        optimizer.step()
    return optimizer, p


def by_rows(optimizer: Any, p: Tensor) -> dict[str, Tensor]:
    """States that have a row for each row of the parameter, decoded."""
    found = {}
    for s in optimizer.states(p):
        if s.shape == p.shape or (s.shape.numel() == p.shape[0] and s.shape[0] == p.shape[0]):
            found[s.slot.name] = s.read().clone()
    return found


def initial(optimizer: Any, p: Tensor) -> dict[str, Tensor]:
    fresh = type(optimizer)([("w", nn.Parameter(p.detach().clone()))], **_arguments(optimizer))
    (q,) = fresh.param_groups[0]["params"]
    q.grad = torch.zeros_like(q)
    fresh.step()
    fresh.reset_state()
    return {s.slot.name: s.read() for s in fresh.states(q)}


def _arguments(optimizer: Any) -> dict[str, Any]:
    taken = {k: v for k, v in optimizer.defaults.items() if k != "decoupled_weight_decay"}
    return {**taken, "min_size": 0}


CHOICES: dict[str, Callable[[int], Any]] = {
    "numbers": lambda n: [0, 7, 3],
    "tensor": lambda n: torch.tensor([5, -1]),
    "mask": lambda n: torch.arange(n) % 3 == 0,
    "slice": lambda n: slice(4, 9),
    "none of them": lambda n: [],
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("state", STATES)
def test_some_rows_are_set_back_and_others_keep_their_bits(state: str, choice: str) -> None:
    optimizer, p = stepped("AdamW", state)
    before, ages = by_rows(optimizer, p), {s.slot.name: s.age for s in optimizer.states(p)}
    rows = CHOICES[choice](24)
    optimizer.reset_state(rows=rows)
    chosen = torch.zeros(24, dtype=torch.bool)
    chosen[rows] = True
    for name, values in by_rows(optimizer, p).items():
        assert not values[chosen].any()
        assert torch.equal(values[~chosen], before[name][~chosen])
        assert before[name][chosen].any() or not chosen.any()
    assert {s.slot.name: s.age for s in optimizer.states(p)} == ages
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.isfinite(p).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_of_every_kind_of_optimizer(name: str) -> None:
    optimizer, p = stepped(name, "8bit")
    before, start = by_rows(optimizer, p), initial(optimizer, p)
    assert before
    optimizer.reset_state(rows=[2, 11], params=[p])
    rest = [i for i in range(24) if i not in (2, 11)]
    for key, values in by_rows(optimizer, p).items():
        assert torch.equal(values[[2, 11]], start[key][[2, 11]])
        assert torch.equal(values[rest], before[key][rest])


def test_one_state_alone() -> None:
    optimizer, p = stepped("AdamW", "8bit")
    before = by_rows(optimizer, p)
    optimizer.reset_state("exp_avg", rows=slice(0, 4))
    after = by_rows(optimizer, p)
    assert not after["exp_avg"][:4].any()
    assert torch.equal(after["exp_avg_sq"], before["exp_avg_sq"])


@pytest.mark.parametrize("state", ["fp32", "8bit", "4bit"])
def test_elements_of_a_vector(state: str) -> None:
    optimizer, p = stepped("AdamW", state, (300,))
    optimizer.reset_state(rows=slice(0, 100))
    for values in by_rows(optimizer, p).values():
        assert not values[:100].any()
        assert values[100:].any()


BAD: dict[str, tuple[Callable[[Any, Tensor], None], str]] = {
    "too far": (lambda o, p: o.reset_state(rows=[24]), "numbers below 24"),
    "fractions": (lambda o, p: o.reset_state(rows=[0.5]), "numbers below 24"),
    "mask of another length": (lambda o, p: o.reset_state(rows=torch.ones(3, dtype=torch.bool)), r"shape \(24,\)"),
    "stranger": (lambda o, p: halfulp.resize_states(o, nn.Parameter(p.detach()), p), "is not a parameter"),
    "itself": (lambda o, p: halfulp.resize_states(o, p, p), "is already in this optimizer"),
    "other columns": (lambda o, p: halfulp.resize_states(o, p, nn.Parameter(torch.ones(24, 3))), "only in their rows"),
    "other dtype": (lambda o, p: halfulp.resize_states(o, p, nn.Parameter(p.detach().half())), "only in their rows"),
    "pruned without rows": (lambda o, p: halfulp.resize_states(o, p, nn.Parameter(p.detach()[:3])), "21 rows are"),
    "other number": (lambda o, p: halfulp.resize_states(o, p, nn.Parameter(p.detach()), [0]), "each of 24 rows"),
    "rows that are not there": (
        lambda o, p: halfulp.resize_states(o, p, nn.Parameter(p.detach()[:1]), [24]), "one of 24 old rows",
    ),
    "computed": (lambda o, p: halfulp.resize_states(o, p, p * 2), "computed from others"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_row_is_refused_and_changes_nothing(name: str) -> None:
    ask, message = BAD[name]
    optimizer, p = stepped("AdamW", "8bit")
    before = by_rows(optimizer, p)
    with pytest.raises(ValueError, match=message):
        ask(optimizer, p)
    assert optimizer.param_groups[0]["params"][0] is p
    for key, values in by_rows(optimizer, p).items():
        assert torch.equal(values, before[key])


def test_states_that_mix_rows_are_refused() -> None:
    optimizer, p = stepped("SOAP", "8bit")
    with pytest.raises(ValueError, match="mixes the rows"):
        optimizer.reset_state(rows=[0])
    with pytest.raises(ValueError, match="mixes the rows"):
        halfulp.resize_states(optimizer, p, nn.Parameter(torch.ones(30, 70)))
    assert optimizer.param_groups[0]["params"][0] is p


@pytest.mark.parametrize("rows", [None, [3, -1, 0, 23], list(range(23, -1, -1)), [-1, -1], []], ids=str)
@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "SGD"])
@pytest.mark.parametrize("state", ["fp32", "8bit", "4bit"])
def test_states_follow_rows(state: str, name: str, rows: list[int] | None) -> None:
    optimizer, p = stepped(name, state)
    before, step = by_rows(optimizer, p), optimizer.state[p]["step"]
    if rows is None:
        new = nn.Parameter(torch.cat([p.detach(), torch.zeros(6, 70)]))
        sources = [*range(24), *[-1] * 6]
    else:
        new = nn.Parameter(torch.stack([p.detach()[max(r, 0)] for r in rows]) if rows else torch.zeros(0, 70))
        sources = rows
    halfulp.resize_states(optimizer, p, new, rows)
    assert optimizer.param_groups[0]["params"] == [new]
    assert p not in optimizer.state
    assert optimizer.state[new]["step"] == step
    for key, values in by_rows(optimizer, new).items():
        for i, source in enumerate(sources):
            expected = before[key][source] if source >= 0 else torch.zeros_like(values[i])
            assert torch.equal(values[i], expected)
    new.grad = torch.ones_like(new)
    optimizer.step()
    assert torch.isfinite(new).all()
    halfulp.check_roundtrip(optimizer)
    saved = optimizer.state_dict()
    assert list(saved["state"]) == [0]


def test_a_parameter_that_outgrows_fp32_is_quantized() -> None:
    p = nn.Parameter(torch.ones(10, 64))
    optimizer = halfulp.AdamW([p], state="8bit")  # fewer than min_size elements
    p.grad = torch.randn(10, 64)
    optimizer.step()
    before = optimizer.state_tensor(p, "exp_avg")
    new = nn.Parameter(torch.ones(100, 64))
    halfulp.resize_states(optimizer, p, new)
    (state, _) = optimizer.states(new)
    expected = state.quantizer.with_rounding("nearest").quantize(torch.cat([before, torch.zeros(90, 64)]))
    assert torch.equal(state.codes, expected[0])
    assert state.scale is not None
    assert torch.equal(state.scale, expected[1])  # type: ignore[arg-type]


def test_before_the_first_step_there_is_nothing_to_carry() -> None:
    p, new = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(6, 4))
    optimizer = halfulp.AdamW([p])
    halfulp.resize_states(optimizer, p, new)
    new.grad = torch.ones_like(new)
    optimizer.step()
    assert optimizer.state[new]["step"] == 1
