"""Samples of gradients: what is recorded, and how much of the monitor's counts it explains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from halfulp import AdamW, GradientSample, StallMonitor


def together(step: int, rows: int = 64, cols: int = 256) -> torch.Tensor:
    """A gradient whose rows are one pattern each, with amplitudes that keep their sign, and as much noise."""
    fixed = torch.Generator().manual_seed(0)
    pattern = torch.randn(rows, cols, generator=fixed)
    now = torch.Generator().manual_seed(1 + step)
    return torch.randn(rows, 1, generator=now).abs() * pattern + torch.randn(rows, cols, generator=now)


def train(
    steps: int, *, first: int = 0, uneven: float = 0.0, **options: Any
) -> tuple[AdamW, StallMonitor, GradientSample, nn.Parameter]:
    """On steps that are larger and smaller by a log-normal factor of deviation `uneven`."""
    weight = nn.Parameter(torch.ones(64, 256))
    optimizer = AdamW([weight], **options)
    monitor, sample = StallMonitor(optimizer, every=1), GradientSample(optimizer, blocks=128)
    for step in range(first, first + steps):
        size = np.exp(uneven * np.random.default_rng(step).standard_normal())
        weight.grad = float(size) * together(step)
        optimizer.step()
    return optimizer, monitor, sample, weight


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("scale", ["pow2", "fp32"])
def test_it_explains_what_the_monitor_counts_and_plain_theory_does_not(scale: str, rounding: str) -> None:
    _, monitor, sample, _ = train(40, state="fp8", rounding=rounding, scale=scale)
    for m in monitor.measure():
        lost = sample.stalled("fp8", beta=m.beta, rounding=rounding, slot=m.slot, scale_kind=scale)  # type: ignore[arg-type]
        assert lost[m.age] == pytest.approx(m.stalled, abs=0.02)
        if m.slot == "exp_avg":
            assert m.predicted is not None
            assert abs(m.predicted - m.stalled) > 0.03


@pytest.mark.parametrize(("fmt", "slot"), [("fp8", "exp_avg"), ("fp4", "exp_avg"), ("bf16", "exp_avg_sq")])
def test_it_foretells_the_average_and_says_how_far_steps_are_from_it(fmt: str, slot: str) -> None:
    """Steps 0 to 59 for 60 to 119, the state being zero before each."""
    beta, found = 0.9 if slot == "exp_avg" else 0.999, {}
    for uneven in (0.0, 0.5):
        seen = train(60, uneven=uneven)[2]
        later = train(60, first=60, uneven=uneven)[2].stalled(fmt, beta=beta, rounding="nearest", slot=slot)  # type: ignore[arg-type]
        expected, deviation = seen.foretell(fmt, beta=beta, rounding="nearest", slot=slot)  # type: ignore[arg-type]
        off = (later - expected)[10:]
        assert abs(off.mean()) < 0.015
        assert np.mean(np.abs(off) <= 2 * deviation[10:] + 0.01) > 0.85  # 0.01 is the deviation for 128 blocks
        found[uneven] = float(np.sqrt(np.square(deviation[10:]).mean()))
    assert found[0.5] > 2 * found[0.0]


def test_resets_are_followed() -> None:
    _, monitor, sample, _ = train(36, state="fp8", rounding="nearest", scale="pow2", reset=15)
    second = monitor.measure()[1]
    assert second.age == 5
    lost = sample.stalled("fp8", beta=second.beta, rounding="nearest", period=15)
    assert lost[35] == pytest.approx(second.stalled, abs=0.02)
    assert lost[15] == 0.0


def test_every_block_is_recorded_as_it_was() -> None:
    """Rows of 300 are two whole blocks and a short one, which is left out."""
    weights = [nn.Parameter(torch.zeros(8, 300)), nn.Parameter(torch.zeros(16, 64)), nn.Parameter(torch.zeros(5))]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    with GradientSample(optimizer, blocks=1000, min_size=100) as sample:
        for step in range(3):
            for w in weights:
                w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(step))
            if step == 1:
                weights[1].grad = None
            optimizer.step()
    optimizer.step()
    assert sample.recorded == 3
    for step in range(3):
        first, second = (torch.randn(s, generator=torch.Generator().manual_seed(step)) for s in ((8, 300), (16, 64)))
        assert np.array_equal(sample.gradients()[128][step], first[:, :256].reshape(16, 128).numpy())
        assert np.array_equal(sample.gradients()[64][step], (second if step != 1 else 0 * second).numpy())


def test_shared_out_by_size_and_stopped_when_full() -> None:
    weights = [nn.Parameter(torch.zeros(96, 128)), nn.Parameter(torch.zeros(32, 128))]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    sample = GradientSample(optimizer, blocks=32, steps=2)
    for _ in range(4):
        for i, w in enumerate(weights):
            w.grad = torch.full_like(w, i + 1.0)
        optimizer.step()
    assert sample.recorded == 2
    assert sorted(sample.gradients()[128][0].mean(axis=1)) == [1.0] * 24 + [2.0] * 8


def test_it_only_reads_and_goes_on_after_a_restart() -> None:
    _, _, sample, watched = train(8, state="fp8")
    weight = nn.Parameter(torch.ones(64, 256))
    optimizer = AdamW([weight], state="fp8")
    continued = GradientSample(optimizer, blocks=128)
    for step in range(8):
        if step == 4:
            saved = continued.state_dict()
            continued.close()
            continued = GradientSample(optimizer, blocks=128)
            continued.load_state_dict(saved)
        weight.grad = together(step)
        optimizer.step()
    assert torch.equal(weight, watched)
    assert np.array_equal(continued.gradients()[128], sample.gradients()[128])


def test_blocks_without_gradients_are_left_out() -> None:
    weight = nn.Parameter(torch.zeros(64, 128))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with GradientSample(optimizer, blocks=64) as sample:
        for step in range(3):
            weight.grad = torch.randn(64, 128, generator=torch.Generator().manual_seed(step))
            weight.grad[::2] = 0
            optimizer.step()
    assert sample.drives()[128].sizes.shape[1:] == (32, 128)


def test_bad_arguments() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(4, 4))], lr=0.1)
    with pytest.raises(ValueError, match="blocks must be at least 1"):
        GradientSample(optimizer, blocks=0)
    with pytest.raises(ValueError, match="no parameter has min_size=4096"):
        GradientSample(optimizer)
    with pytest.raises(RuntimeError, match="two steps"):
        GradientSample(optimizer, min_size=0).drives()
    with pytest.raises(ValueError, match="two courses"):
        train(3)[2].foretell("fp8", beta=0.9, rounding="nearest", courses=1)
