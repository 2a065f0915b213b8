"""BAdam: the order of blocks, frozen parameters, and states that are created and dropped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp


def build(layers: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(32, 32) for _ in range(layers)))


def step(model: nn.Module, optimizer: halfulp.BAdam, seed: int) -> None:
    optimizer.zero_grad()
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()
    optimizer.step()


def moved(model: nn.Module, before: list[Tensor]) -> list[bool]:
    return [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_blocks_take_turns_and_the_others_keep_their_bits(order: str) -> None:
    model = build()
    optimizer = halfulp.BAdam(model.named_parameters(), lr=1e-3, period=3, order=order, state="8bit", min_size=0)
    turns = []
    for n in range(18):
        before = [p.detach().clone() for p in model.parameters()]
        working = [p.requires_grad for p in model.parameters()]
        step(model, optimizer, n)
        assert moved(model, before) == working
        turns.append(working.index(True) // 2)
    assert turns == [turn for turn in turns[::3] for _ in range(3)]
    first, second = turns[:9:3], turns[9::3]
    if order == "random":
        assert sorted(first) == sorted(second) == [0, 1, 2]
    else:
        assert first == second == ([0, 1, 2] if order == "ascending" else [2, 1, 0])


def test_states_are_of_the_block_alone_and_start_anew() -> None:
    model = build()
    optimizer = halfulp.BAdam(model.named_parameters(), lr=1e-3, period=2, order="ascending", min_size=0)
    for n in range(7):
        step(model, optimizer, n)
        stored = [v for entries in optimizer.state.values() for v in entries.values() if torch.is_tensor(v)]
        at_turn = n % 2 == 1
        assert sum(t.untyped_storage().nbytes() for t in stored) == (0 if at_turn else optimizer.memory().total)
    weight = model[0].weight
    assert optimizer.state[weight]["exp_avg_age"] == 1  # a second turn, from zero
    assert optimizer.state[weight]["step"] == 3  # the random bits continue
    assert [s.slot.name for s in optimizer.states(model[1].weight)] == []


def test_each_turn_is_a_fresh_adam() -> None:
    model, twin = build(), build()
    optimizer = halfulp.BAdam(model.named_parameters(), lr=1e-3, period=4, order="ascending", state="fp32")
    for turn in (0, 1, 2, 0):
        fresh = torch.optim.Adam(twin[turn].parameters(), lr=1e-3)
        for n in range(4):
            step(model, optimizer, n)
            twin.zero_grad()
            x = torch.randn(8, 32, generator=torch.Generator().manual_seed(n))
            twin(x).square().mean().backward()
            fresh.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-6)


@pytest.mark.parametrize("steps", [4, 6])
def test_resumes_in_and_between_turns(steps: int) -> None:
    def make(model: nn.Module) -> halfulp.BAdam:
        return halfulp.BAdam(model.named_parameters(), lr=1e-3, period=3, order="random", state="8bit", min_size=0)

    model, other = build(), build()
    optimizer = make(model)
    for n in range(steps):
        step(model, optimizer, n)
    other.load_state_dict(model.state_dict())
    resumed = make(other)
    resumed.load_state_dict(optimizer.state_dict())
    twin_model, twin = copy.deepcopy((model, optimizer))
    for n in range(steps, steps + 8):
        for m, o in ((model, optimizer), (other, resumed), (twin_model, twin)):
            step(m, o, n)
        for p, *others in zip(*(m.parameters() for m in (model, other, twin_model)), strict=True):
            assert all(torch.equal(p, q) for q in others)
            assert all(p.requires_grad == q.requires_grad for q in others)


def test_blocks_are_layers_by_name() -> None:
    names = {
        "model.embed_tokens.weight": "model.embed_tokens", "model.layers.3.mlp.up.weight": "model.layers.3",
        "model.layers.31.norm.weight": "model.layers.31", "0.weight": "0", "lm_head.weight": "lm_head",
        "conv2d.weight": "conv2d", "weight": "",
    }  # fmt: skip
    assert {n: halfulp.BAdam.block_of(n) for n in names} == names


def test_frozen_parameters_and_groups() -> None:
    model: Any = build(4)
    model[0].requires_grad_(False)
    optimizer = halfulp.BAdam(model[:3].named_parameters(), lr=1e-3, period=1)
    optimizer.add_param_group({"params": [(f"3.{n}", p) for n, p in model[3].named_parameters()], "lr": 2e-3})
    assert len(optimizer.blocks) == 3
    assert [p.requires_grad for p in model.parameters()] == [False] * 6 + [True] * 2
    for n in range(3):
        step(model, optimizer, n)
    assert not model[0].weight.requires_grad
    with pytest.raises(ValueError, match="period must be the same in all groups of BAdam, got 5 and 1"):
        optimizer.add_param_group({"params": [("x", nn.Parameter(torch.zeros(2)))], "period": 5})
    with pytest.raises(RuntimeError, match="switches blocks after whole steps"):
        optimizer.step_parameters([model[1].weight])
