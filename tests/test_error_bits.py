"""FlashOptim's error bits beside 16-bit weights: what they mean, and conversion from its checkpoints and to them."""

from __future__ import annotations

import copy
import logging
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import halfulp
from halfulp.checkpoint.masters import error_bits, from_error_bits
from halfulp.numbers import log as _log
from support.optimizers import run

LARGEST = {torch.int8: 127, torch.int16: 32767}
SMALLEST, FRACTION = {torch.bfloat16: -126, torch.float16: -14}, {torch.bfloat16: 7, torch.float16: 10}


def spacing(value: float, dtype: torch.dtype) -> Fraction:
    """Of the 16-bit floats at a value, from its exponent."""
    exponent = SMALLEST[dtype]
    while Fraction(2) ** (exponent + 1) <= abs(Fraction(value)):
        exponent += 1
    return Fraction(2) ** (exponent - FRACTION[dtype])


def some(dtype: torch.dtype) -> Tensor:
    """16-bit values: ordinary ones, powers of two, subnormals, zeros and the largest."""
    info = torch.finfo(dtype)
    borders = [0.0, -0.0, 1.0, -2.0, info.max, info.smallest_normal, info.smallest_normal * info.eps, 0.4999]
    drawn = torch.randn(64, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.tensor(borders), drawn, drawn * 100, drawn * info.smallest_normal]).to(dtype)


@pytest.mark.parametrize("bits", LARGEST)
@pytest.mark.parametrize("dtype", SMALLEST)
def test_error_bits_are_shares_of_half_a_spacing(dtype: torch.dtype, bits: torch.dtype) -> None:
    """Against exact fractions; the share, its product with half a spacing, and the sum are rounded once each."""
    visible, most = some(dtype), LARGEST[bits]
    for share in (0, 1, -1, most // 3, -most // 2, most, -most):
        given = torch.full(visible.shape, share, dtype=bits)
        found = from_error_bits(visible, given)
        for v, x in zip(visible.tolist(), found.tolist(), strict=True):
            unit = spacing(v, dtype)
            exact = Fraction(v) + Fraction(share, most) * unit / 2
            assert abs(Fraction(x) - exact) <= abs(exact) / 2**24 + unit / 2**25 + Fraction(1, 2**150)
        if bits == torch.int8 and dtype == torch.bfloat16:
            normal = visible.abs() >= torch.finfo(dtype).smallest_normal
            assert torch.equal(error_bits(visible, found, bits)[normal], given[normal])
    assert from_error_bits(torch.tensor([float("inf")], dtype=dtype), torch.ones(1, dtype=bits)).tolist() == [torch.inf]


class FlashAdamW(torch.optim.Optimizer):
    """FlashOptim's layout: error bits beside the states, the number of bytes of the whole in the group.

    ``state_dict`` gives the error bits in the dtype of the weights: 8 bits as values, 16 bits as bits.
    """

    names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(self, params: Any, width: int) -> None:
        super().__init__(params, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1})
        self.param_groups[0]["master_bytewidth"] = width

    def fill(self, values: list[Tensor]) -> None:
        """States, and error bits towards fp32 weights."""
        self.wanted = values
        for p, x in zip(self.param_groups[0]["params"], values, strict=True):
            self.state[p] = {name: x.abs() for name in self.names} | {"error_bits": self.rounded(p.detach(), x)}
            if "exp_avg_sq" in self.names:
                self.state[p]["step"] = torch.tensor(7)

    def rounded(self, p: Tensor, x: Tensor) -> Tensor:
        """By fractions, as the definition says."""
        dtype = {3: torch.int8, 4: torch.int16}[self.param_groups[0]["master_bytewidth"]]
        shares = [
            (Fraction(b) - Fraction(a)) / spacing(a, p.dtype) * 2
            for a, b in zip(p.reshape(-1).tolist(), x.reshape(-1).tolist(), strict=True)
        ]
        return torch.tensor([round(float(s * LARGEST[dtype])) for s in shares], dtype=dtype).view(p.shape)

    def state_dict(self) -> dict[str, Any]:
        saved = copy.deepcopy(super().state_dict())
        for entries, p in zip(saved["state"].values(), self.param_groups[0]["params"], strict=False):
            bits = entries["error_bits"]
            entries["error_bits"] = bits.to(p.dtype) if bits.dtype == torch.int8 else bits.view(p.dtype)
        return saved


class FlashLion(FlashAdamW):
    """One state, and no step."""

    names = ("exp_avg",)


for kind in (FlashAdamW, FlashLion):
    kind.__module__ = "flashoptim.optimizers"


def weights(dtype: torch.dtype) -> tuple[list[torch.nn.Parameter], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(shape, generator=generator) for shape in ((6, 16), (3, 11))]
    return [torch.nn.Parameter(x.to(dtype)) for x in exact], exact


@pytest.mark.parametrize(("width", "unit"), [(3, 2.0**-16), (4, 2.0**-24)])
@pytest.mark.parametrize("master", ["fp32", "remainder16", "remainder8"])
@pytest.mark.parametrize(("flash", "ours"), [(FlashAdamW, halfulp.AdamW), (FlashLion, halfulp.Lion)])
def test_error_bits_become_master_weights(flash: Any, ours: Any, master: str, width: int, unit: float) -> None:
    """As exact as the coarser of the two kinds."""
    params, exact = weights(torch.bfloat16)
    source = flash(params, width)
    source.fill(exact)
    optimizer = ours(params, state="fp32", master_weights=master)
    optimizer.load_state_dict(halfulp.convert_state_dict(source.state_dict(), to=optimizer))
    coarser = max(unit, 2.0**-16 if master == "remainder8" else 0.0)
    for p, x in zip(params, exact, strict=True):
        found = optimizer.state_tensor(p, "master_param")
        assert bool(((found - x).abs() <= 2 * coarser * x.abs() * 1.01).all())
        assert float((found - x).abs().mean()) < 0.02 * float((p.detach().float() - x).abs().mean())
        assert torch.equal(optimizer.state_tensor(p, "exp_avg"), x.abs())


def test_error_bits_of_float16() -> None:
    params, exact = weights(torch.float16)
    source = FlashAdamW(params, 3)
    source.fill(exact)
    optimizer = halfulp.AdamW(params, master_weights="fp32")
    optimizer.load_state_dict(halfulp.convert_state_dict(source.state_dict(), to=optimizer))
    for p, x in zip(params, exact, strict=True):
        assert float((optimizer.state_tensor(p, "master_param") - x).abs().max()) < 2.0**-18 * float(x.abs().max())


@pytest.mark.parametrize(("width", "unit"), [(3, 2.0**-16), (4, 2.0**-24)])
@pytest.mark.parametrize("master", ["fp32", "remainder16", "remainder8"])
def test_master_weights_become_error_bits(master: str, width: int, unit: float) -> None:
    """What FlashOptim then takes for its fp32 weights; and back again."""
    params, _ = weights(torch.bfloat16)
    optimizer = halfulp.AdamW(params, lr=1e-3, state="8bit", min_size=0, master_weights=master)
    run(optimizer, 5)
    exact = halfulp.fp32_params(optimizer)
    target = FlashAdamW(params, width)
    saved = halfulp.convert_state_dict(optimizer.state_dict(), to=target)
    for entries, p, x in zip(saved["state"].values(), params, exact, strict=True):
        assert int(entries["step"]) == 5
        assert entries["error_bits"].dtype == p.dtype  # torch's load_state_dict casts whatever differs
        assert entries["error_bits"].shape == p.shape
        bits = entries["error_bits"]
        bits = bits.to(torch.int8) if width == 3 else bits.view(torch.int16)
        assert bool(((from_error_bits(p.detach(), bits) - x).abs() <= 2 * unit * x.abs() * 1.01).all())
    again = halfulp.AdamW(params, state="8bit", min_size=0, master_weights=master)
    again.load_state_dict(halfulp.convert_state_dict(saved, to=again))
    for x, y in zip(exact, halfulp.fp32_params(again), strict=True):
        assert bool(((x - y).abs() <= 2 * unit * x.abs() * 1.01).all())


def test_one_kind_of_master_weights_becomes_another() -> None:
    params, _ = weights(torch.bfloat16)
    source = halfulp.AdamW(params, lr=1e-3, master_weights="remainder16")
    run(source, 5)
    exact = halfulp.fp32_params(source)
    for kind, unit in (("fp32", 0.0), ("remainder8", 2.0**-15)):
        target = halfulp.AdamW(params, master_weights=kind)
        target.load_state_dict(halfulp.convert_state_dict(source.state_dict(), to=target))
        for x, y in zip(exact, halfulp.fp32_params(target), strict=True):
            assert bool(((x - y).abs() <= unit * x.abs()).all())


def test_error_bits_that_do_not_fit_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    _log._said.clear()
    params, exact = weights(torch.bfloat16)
    source = FlashAdamW(params, 3)
    source.fill(exact)
    saved = source.state_dict()
    saved["state"][0]["error_bits"] = torch.zeros(3, 3, dtype=torch.bfloat16)
    optimizer = halfulp.AdamW(params, master_weights="remainder16")
    with caplog.at_level(logging.WARNING, logger="halfulp"):
        optimizer.load_state_dict(halfulp.convert_state_dict(saved, to=optimizer))
    assert "error_bits of the state_dict cannot become master_weights='remainder16'" in caplog.text
    optimizer.state_tensor(params[1], "master_param")
    assert "master_param" not in optimizer.state[params[0]]
