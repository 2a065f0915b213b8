"""Predictions from a measured drive, against the same gradients stored by the library."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from halfulp import Quantizer, get_format
from halfulp.rules.drives import GRADIENT, SQUARE
from halfulp.theory.blocks import Blocks, block_law, follow_gradients
from halfulp.theory.measured import RunDrive


def gradients(steps: int, blocks: int = 256, elements: int = 64) -> np.ndarray:
    """Unequal elements, blocks with larger and smaller steps, and half of the squares in two patterns a block.

    The first pattern keeps its sign.
    """
    rng = np.random.default_rng(0)
    levels = np.exp(0.4 * rng.standard_normal((steps, blocks, 1)))
    amplitudes = rng.standard_normal((steps, blocks, 2))
    amplitudes[:, :, 0] = np.abs(amplitudes[:, :, 0])
    patterns = rng.standard_normal((blocks, 2, elements)) * 0.5**0.5
    sizes = np.exp(0.5 * rng.standard_normal((blocks, elements)) - 0.25)
    own = sizes * rng.standard_normal((steps, blocks, elements))
    return levels * (np.einsum("tbk,bke->tbe", amplitudes, patterns) + own)


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
    [
        ("fp4", "exp_avg", 0.9),
        ("bf16", "exp_avg_sq", 0.99),
        ("fp8", "exp_avg_sq", 0.99),
        *([("fp8", "exp_avg", 0.9)] if "HALFULP_EVERY_CASE" in os.environ else []),
    ],
)
def test_a_measured_drive_predicts_what_a_plain_one_does_not(fmt: str, slot: str, beta: float, rounding: str) -> None:
    g = gradients(120)
    square = slot == "exp_avg_sq"
    resolved = get_format(fmt, signed=not square)
    seen = replay(g, Quantizer(resolved, rounding=rounding, zero_floor=square), beta, square)  # type: ignore[arg-type]
    law = RunDrive.of(g).law(resolved, beta=beta, rounding=rounding, slot=slot)
    off = np.abs(law.stalled - seen)[20:]
    assert off.mean() < 0.01
    plain = block_law(Blocks(resolved, beta, rounding, SQUARE if square else GRADIENT, zero_floor=square), 119)
    assert np.abs(plain.stalled - seen)[20:].mean() > 2 * off.mean()


def test_patterns_account_for_what_elements_do_together() -> None:
    """Independent elements, with their sizes and levels, stall otherwise."""
    g, fmt = gradients(120), get_format("fp8")
    seen = replay(g, Quantizer(fmt), 0.9, False)
    off = [
        np.abs(RunDrive.of(g, patterns=k).law(fmt, beta=0.9, rounding="nearest", slot="exp_avg").stalled - seen)[20:]
        for k in (0, 2)
    ]
    assert off[0].mean() > 4 * off[1].mean()


def test_patterns_that_come_and_go_are_measured_in_stretches() -> None:
    """Over the whole run the patterns would be those of its loud first steps."""
    rng, fmt = np.random.default_rng(3), get_format("fp8")
    g = rng.standard_normal((150, 64, 64))
    for part, loud in enumerate((10.0, 3.0, 1.0)):
        pattern = 2 * rng.standard_normal((64, 64))
        steps = slice(50 * part, 50 * part + 50)
        g[steps] = loud * (g[steps] + pattern * np.abs(rng.standard_normal((50, 64, 1))))
    seen = replay(g, Quantizer(fmt), 0.9, False)
    off = [
        np.abs(
            RunDrive.of(g, patterns=1, stretch=k).law(fmt, beta=0.9, rounding="nearest", slot="exp_avg").stalled - seen
        )[110:].mean()
        for k in (50, None)
    ]
    assert off[0] < 0.01
    assert off[1] > 3 * off[0]


def test_given_gradients_are_stored_as_the_library_stores_them() -> None:
    g, fmt = gradients(40).astype(np.float32).astype(float), get_format("ufloat4_e4m0")
    seen = replay(g, Quantizer(fmt, zero_floor=True), 0.99, True)
    law = follow_gradients(Blocks(fmt, 0.99, "nearest"), g, np.ones(g.shape[1:]))
    assert np.abs(law.stalled - seen).max() < 1e-3  # float64 here, float32 there


def test_what_is_measured() -> None:
    g = gradients(400)
    drive = RunDrive.of(g, patterns=2)
    assert drive.shared == pytest.approx(0.5, abs=0.06)
    assert np.log(drive.levels).std(axis=0).mean() == pytest.approx(0.4, abs=0.03)
    assert 0.4 < np.log(drive.sizes).std(axis=1).mean() < 0.5  # the patterns contain some of the largest elements
    alike = np.stack(list(drive.gradients()))
    assert np.square(alike).mean() == pytest.approx(np.square(g).mean(), rel=0.02)
    assert (alike * g).mean() / np.square(g).mean() == pytest.approx(drive.shared, abs=0.1)  # the rest is drawn again


def test_later_steps_are_the_same_steps_from_elsewhere() -> None:
    drive = RunDrive.of(gradients(50, blocks=8), patterns=2, stretch=25)
    later = drive.later(seed=1)
    assert not np.array_equal(later.levels, drive.levels)
    for block in range(8):
        start = int(np.flatnonzero(drive.levels[:, block] == later.levels[0, block])[0])
        assert np.array_equal(np.roll(drive.levels[:, block], -start), later.levels[:, block])
        assert np.array_equal(np.roll(drive.amplitudes[:, block], -start, axis=0), later.amplitudes[:, block])
        assert np.array_equal(np.roll(drive.stretch[:, block], -start), later.stretch[:, block])
    squares = (sum(np.square(x).sum() for x in d.gradients()) for d in (drive, later))
    assert next(squares) == pytest.approx(next(squares), rel=0.02)


def test_stretches_have_two_steps() -> None:
    with pytest.raises(ValueError, match="2 steps or more"):
        RunDrive.of(gradients(3, blocks=2), stretch=1)


def test_patterns_are_fewer_than_elements() -> None:
    with pytest.raises(ValueError, match="0 to 63 patterns"):
        RunDrive.of(gradients(3, blocks=2), patterns=64)


@pytest.mark.parametrize("bad", [np.zeros((3, 4)), np.zeros((3, 4, 5)), np.ones((1, 2, 2)), np.full((3, 2, 2), np.nan)])
def test_bad_gradients(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="steps, blocks, elements"):
        RunDrive.of(bad)
