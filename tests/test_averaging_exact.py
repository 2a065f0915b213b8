"""Averages of 16-bit parameters with master weights are averages of the fp32 weights behind them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

import halfulp
from halfulp.averaging import EMA, LAWA, SWA, AveragedModel, EMAModel, EMAPytorch
from halfulp.training import offload
from support.copies import Late

AVERAGES: dict[str, Callable[[nn.Module], Any]] = {
    "EMA in fp32": lambda net: EMA(net, 0.9, state="fp32"),
    "EMA in 8 bits": lambda net: EMA(net, 0.9, state="8bit", min_size=0),
    "EMA that starts late": lambda net: EMA(net, 0.9, state="bf16", min_size=0, update_after_step=2),
    "SWA": lambda net: SWA(net, state="fp32"),
    "LAWA": lambda net: LAWA(net, 3, state="8bit", min_size=0),
}


def model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4)).bfloat16().to(dtype)


def train(net: nn.Module, optimizer: Any, average: Any, steps: int = 6) -> None:
    """With gradients that have 16 bits; the average is attached, or follows and is updated here."""
    attached = hasattr(average, "attach")
    if attached:
        average.attach(optimizer)
    else:
        average.follow(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator).bfloat16().to(p.dtype)
        optimizer.step()
        if not attached:
            average.update()


@pytest.mark.parametrize("together", [1, 1 << 30])
@pytest.mark.parametrize("away", [False, True], ids=["here", "offloaded"])
@pytest.mark.parametrize("case", AVERAGES)
def test_the_average_has_the_bits_of_that_of_fp32_weights(
    case: str, away: bool, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the averages of a model step in several parts."""
    monkeypatch.setattr("halfulp.averaging.store.TOGETHER", together)
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        net = model(dtype)
        optimizer: Any = halfulp.AdamW(net.parameters(), lr=1e-3, master_weights="remainder16")
        if away:
            optimizer = offload(optimizer, copies=Late())
        average = AVERAGES[case](net)
        train(net, optimizer, average)
        found.append({name: average.value(name) for name, _ in net.named_parameters()})
    for name, values in found[0].items():
        assert torch.equal(values, found[1][name])


@pytest.mark.parametrize("kind", ["fp32", "remainder8"])
def test_the_average_is_of_what_the_kind_of_master_weights_keeps(kind: str) -> None:
    net = model(torch.bfloat16)
    optimizer = halfulp.AdamW(net.parameters(), lr=1e-3, master_weights=kind)
    expected = {name: p.detach().float() for name, p in net.named_parameters()}
    average = EMA(net, 0.5, state="fp32")
    for _ in range(4):
        train(net, optimizer, average, 1)
        average.detach()
        for name, x in halfulp.fp32_state_dict(net, optimizer).items():
            expected[name] = expected[name] + (x - expected[name]) * 0.5
    for name, values in expected.items():
        assert torch.allclose(average.store.read(name), values, rtol=0, atol=1e-7)
        assert not torch.equal(values, values.bfloat16().float())


def _torchs(net: nn.Module) -> Any:
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), state="fp32")


DROPINS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any, nn.Module], None], Callable[[Any], list[Any]]]] = {
    "torch's": (_torchs, lambda a, net: a.update_parameters(net), lambda a: [a.ema.value(n) for n in a.ema.store]),
    "ema-pytorch's": (
        lambda net: EMAPytorch(net, beta=0.9, update_after_step=0, update_every=1, state="fp32"),
        lambda a, net: a.update(), lambda a: [a.ema.value(n) for n in a.ema.store],
    ),
    "diffusers'": (
        lambda net: EMAModel(net.parameters(), decay=0.9, state="fp32"),
        lambda a, net: a.step(net.parameters()), lambda a: a.shadow_params,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DROPINS)
def test_drop_ins_follow_too(case: str) -> None:
    make, update, read = DROPINS[case]
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        net = model(dtype)
        optimizer = halfulp.AdamW(net.parameters(), lr=1e-3, master_weights="remainder16")
        average = make(net)
        average.follow(optimizer)
        average.follow(optimizer)  # a second time changes nothing
        generator = torch.Generator().manual_seed(1)
        for _ in range(6):
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=generator).bfloat16().to(p.dtype)
            optimizer.step()
            update(average, net)
        found.append(read(average))
    assert any(not torch.equal(x, x.bfloat16().float()) for x in found[0])
    for low, exact in zip(*found, strict=True):
        assert torch.equal(low, exact)


def test_a_difference_says_that_it_follows_rounded_weights(caplog: pytest.LogCaptureFixture) -> None:
    net = model(torch.bfloat16)
    average = EMA(net, 0.9, state="fp32", difference=True)
    average.attach(halfulp.AdamW(net.parameters(), lr=1e-3))
    assert "difference" not in caplog.text
    average.follow(halfulp.AdamW(net.parameters(), lr=1e-3, master_weights="remainder16"))
    assert "difference=False averages those" in caplog.text


def test_without_master_weights_and_as_a_difference_it_is_of_the_parameters() -> None:
    values = []
    for kind, difference in ((None, False), (None, True), ("remainder16", True)):
        net = model(torch.bfloat16)
        optimizer = halfulp.AdamW(net.parameters(), lr=1e-3, master_weights=kind, param_rounding="nearest")
        average = EMA(net, 0.0, state="fp32", difference=difference)
        train(net, optimizer, average)
        values.append((average.value("0.weight"), net[0].weight.detach().float()))
    for average_value, live in values:
        torch.testing.assert_close(average_value, live, rtol=0, atol=1e-7)


def test_a_copy_of_an_average_follows_no_optimizer() -> None:
    net = model(torch.bfloat16)
    optimizer = halfulp.AdamW(net.parameters(), lr=1e-3, master_weights="remainder16")
    average = EMA(net, 0.0, state="fp32")
    train(net, optimizer, average, 2)
    assert torch.equal(average.value("0.weight"), halfulp.fp32_params(optimizer)[0])
    other = copy.deepcopy(average)
    other.update(net)
    assert torch.equal(other.value("0.weight"), net[0].weight.detach().float())
    ema = EMAModel(net.parameters(), decay=0.9, state="fp32")
    ema.follow(optimizer)
    ema.step(net.parameters())  # copies the weights
    assert torch.equal(ema.shadow_params[0], halfulp.fp32_params(optimizer)[0])
    ema = copy.deepcopy(ema)
    ema.optimization_step = 0
    ema.step(net.parameters())
    assert torch.equal(ema.shadow_params[0], net[0].weight.detach().float())
