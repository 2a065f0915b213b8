"""The fp32 weights of 16-bit parameters: read from an optimizer, loaded into one, and used within a block."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn

import halfulp
from halfulp.numbers import log as _log
from support.optimizers import assert_same, everything, model, run

KINDS = ("fp32", "remainder16", "remainder8")
each_kind = pytest.mark.parametrize("kind", KINDS)


def pair(kind: str | None, **more: Any) -> tuple[nn.Sequential, Any]:
    """A model in bfloat16 that has trained for three steps, and its optimizer."""
    low = model(dtype=torch.bfloat16)
    optimizer = halfulp.AdamW(low.parameters(), lr=1e-3, master_weights=kind, **more)
    run(optimizer, 3)
    return low, optimizer


@each_kind
def test_weights_by_name_are_those_of_the_optimizer(kind: str) -> None:
    low, optimizer = pair(kind)
    low.register_buffer("steps", torch.ones(1, dtype=torch.bfloat16))
    found = halfulp.fp32_state_dict(low, optimizer)
    assert list(found) == list(low.state_dict())
    for (_, p), values in zip(low.named_parameters(), halfulp.fp32_params(optimizer), strict=True):
        assert values.dtype == torch.float32
        assert torch.equal(values, optimizer.state_tensor(p, "master_param"))
        away = [(values - low.float()).abs() for low in (p.detach(), values.bfloat16())]
        assert torch.equal(*away)  # the nearest bfloat16; a tie may go either way
    named = dict(zip(dict(low.named_parameters()), halfulp.fp32_params(optimizer), strict=True))
    assert all(torch.equal(found[name], values) for name, values in named.items())
    assert found["steps"].dtype == torch.bfloat16


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("kind", ["fp32", "remainder16"])
def test_an_fp32_checkpoint_keeps_every_bit(kind: str, steps: int) -> None:
    """Before a first step and after; training then goes on as from fp32 weights, through a checkpoint."""
    exact = model(seed=5)
    low = model(dtype=torch.bfloat16)
    optimizer = halfulp.SGD(low.parameters(), lr=0.1, momentum=0.9, master_weights=kind)
    run(optimizer, steps)
    halfulp.load_fp32_state_dict(low, optimizer, exact.state_dict())
    for mine, wanted in zip(halfulp.fp32_params(optimizer), exact.parameters(), strict=True):
        assert torch.equal(mine, wanted.detach())
    fresh = model(dtype=torch.bfloat16)
    fresh.load_state_dict(low.state_dict())
    resumed = halfulp.SGD(fresh.parameters(), lr=0.1, momentum=0.9, master_weights=kind)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(resumed, 2, first=steps)
    run(optimizer, 2, first=steps)
    assert_same(everything(resumed), everything(optimizer))


def test_part_of_a_checkpoint_is_loaded_where_that_is_asked_for() -> None:
    low, optimizer = pair("remainder16")
    before, exact = halfulp.fp32_state_dict(low, optimizer), model(seed=5).state_dict()
    name, values = next(iter(exact.items()))
    with pytest.raises(RuntimeError, match="Missing key"):
        halfulp.load_fp32_state_dict(low, optimizer, {name: values})
    result = halfulp.load_fp32_state_dict(low, optimizer, {name: values}, strict=False)
    assert name not in result.missing_keys
    assert_same(halfulp.fp32_state_dict(low, optimizer), {**before, name: values})


@each_kind
def test_within_the_block_the_model_is_in_fp32(kind: str) -> None:
    low, optimizer = pair(kind)
    before, grads = everything(optimizer), [p.grad for p in low.parameters()]
    x = torch.randn(3, 12)
    wide = model()
    wide.load_state_dict(halfulp.fp32_state_dict(low, optimizer))
    with halfulp.fp32_weights(low, optimizer):
        assert torch.equal(low(x), wide(x))
        with pytest.raises(RuntimeError, match="end the with block"):
            optimizer.step()
    assert_same(everything(optimizer), before)
    assert all(p.grad is g for p, g in zip(low.parameters(), grads, strict=True))
    run(optimizer, 1)


def test_refused() -> None:
    low, optimizer = pair(None)
    with pytest.raises(ValueError, match="master_weights='remainder16'"):
        halfulp.load_fp32_state_dict(low, optimizer, model().state_dict())
    with pytest.raises(TypeError, match="optimizer of halfulp, got AdamW"):
        halfulp.fp32_params(torch.optim.AdamW(low.parameters()))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("AdamW", {"lr": 1e-5, "param_rounding": "nearest"}, True),
        ("AdamW", {"lr": 1e-2, "param_rounding": "nearest"}, False),
        ("AdamW", {"lr": 1e-5}, False),
        ("AdamW", {"lr": 1e-5, "param_rounding": "nearest", "master_weights": "remainder16"}, False),
        ("SGD", {"lr": 1e-4, "param_rounding": "nearest"}, True),
        ("SGD", {"lr": 1e-1, "param_rounding": "nearest"}, False),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_rate_too_small_to_move_weights_is_said_once(
    name: str, options: dict[str, Any], said: bool, warm: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """By the full rate, not that of the first step of a warm-up."""
    _log._said.clear()
    params = [nn.Parameter((1 + torch.rand(64, 64)).bfloat16()) for _ in range(2)]
    optimizer = getattr(halfulp, name)(params, **options)
    if warm:
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e-6)
    with caplog.at_level(logging.WARNING, logger="halfulp"):
        run(optimizer, 2)
    assert len([m for m in caplog.messages if "would not move" in m]) == said
