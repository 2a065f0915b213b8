"""Predictions from a measured drive, against the same gradients stored by the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from halfulp import Quantizer, get_format
from halfulp.theory.blocks import Blocks, block_law
from halfulp.theory.drive import GRADIENT
from halfulp.theory.measured import RunDrive


def gradients(steps: int, blocks: int = 256, elements: int = 64, ratio: float = 0.3) -> np.ndarray:
    """Unequal elements, blocks with larger and smaller steps, and a mean of either sign."""
    rng = np.random.default_rng(0)
    sizes = np.exp(0.5 * rng.standard_normal((blocks, elements)))
    levels = np.exp(0.4 * rng.standard_normal((steps, blocks, 1)))
    means = ratio * rng.choice([-1.0, 1.0], (blocks, elements))
    return sizes * levels * (means + np.sqrt(1 - ratio**2) * rng.standard_normal((steps, blocks, elements)))


def replay(g: np.ndarray, quantizer: Quantizer, beta: float, square: bool) -> np.ndarray:
    """Share of updates that the library's own storage loses, by age."""
    shape = g.shape[1:]
    codes, scale = quantizer.zeros(shape, torch.device("cpu"))
    words, stalled = torch.Generator().manual_seed(0), []
    for x in torch.from_numpy(g).float():
        old = quantizer.dequantize(codes, scale, shape)
        exact = beta * old + (1 - beta) * (x * x if square else x)
        bits = torch.randint(1 << 32, shape, generator=words) if quantizer.stochastic else None
        codes, scale = quantizer.quantize(exact, bits)
        new = quantizer.dequantize(codes, scale, shape)
        due = exact != old
        stalled.append(float(((new == old) & due).sum() / due.sum()))
    return np.array(stalled)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(
    ("fmt", "slot", "beta"),
    [("fp8", "exp_avg", 0.9), ("fp4", "exp_avg", 0.9), ("bf16", "exp_avg_sq", 0.99), ("fp8", "exp_avg_sq", 0.99)],
)
def test_a_measured_drive_predicts_what_a_plain_one_does_not(fmt: str, slot: str, beta: float, rounding: str) -> None:
    g = gradients(120)
    square = slot == "exp_avg_sq"
    resolved = get_format(fmt, signed=not square)
    seen = replay(g, Quantizer(resolved, rounding=rounding, zero_floor=square), beta, square)  # type: ignore[arg-type]
    law = RunDrive.of(g).law(resolved, beta=beta, rounding=rounding, slot=slot)
    off = np.abs(law.stalled - seen)[20:]
    assert off.mean() < 0.02
    if not square:
        plain = block_law(Blocks(resolved, beta, rounding, GRADIENT, zero_floor=False), 119)
        assert np.abs(plain.stalled - seen)[20:].mean() > 2 * off.mean()


def test_what_is_measured() -> None:
    drive = RunDrive.of(gradients(400))
    assert np.abs(drive.ratios).mean() == pytest.approx(0.3, abs=0.03)
    assert np.log(drive.levels).std(axis=0).mean() == pytest.approx(0.4, abs=0.03)
    assert np.log(drive.sizes).std(axis=1).mean() == pytest.approx(0.5, abs=0.03)
    plain = RunDrive.of(np.random.default_rng(0).standard_normal((400, 64, 64)))
    assert np.sqrt(np.mean(plain.ratios**2)) < 0.04


@pytest.mark.parametrize("bad", [np.zeros((3, 4)), np.zeros((3, 4, 5)), np.ones((1, 2, 2)), np.full((3, 2, 2), np.nan)])
def test_bad_gradients(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="steps, blocks, elements"):
        RunDrive.of(bad)
