"""The chain against the design's table and against simulations on the exact grids."""

from __future__ import annotations

import numpy as np
import pytest

import halfulp

# Stalled fraction of the update applied to a state of age 10, 100, 300, 1000, 3000; beta 0.999.
BUILD_UP = {
    ("bf16", "nearest"): (0.150, 0.451, 0.680, 0.890, 0.972),
    ("bf16", "stochastic"): (0.137, 0.407, 0.604, 0.769, 0.819),
    ("fp8", "nearest"): (0.487, 0.928, 0.984, 0.997, 0.999),
    ("fp8", "stochastic"): (0.457, 0.888, 0.961, 0.984, 0.988),
    ("fp4", "nearest"): (0.638, 0.972, 0.994, 0.999, 1.000),
    ("fp4", "stochastic"): (0.598, 0.943, 0.980, 0.992, 0.994),
}


@pytest.mark.parametrize(("fmt", "rounding"), BUILD_UP)
def test_build_up_table(fmt: str, rounding: str) -> None:
    curve = halfulp.stall_curve(fmt, beta=0.999, rounding=rounding, steps=3001)
    np.testing.assert_allclose(curve[[10, 100, 300, 1000, 3000]], BUILD_UP[fmt, rounding], atol=0.001)


@pytest.mark.parametrize(
    ("fmt", "rounding", "expected"),
    [("bf16", "nearest", 0.9458), ("bf16", "stochastic", 0.8250), ("fp8", "stochastic", 0.9888),
     ("fp4", "stochastic", 0.9944)],
)  # fmt: skip
def test_published_closed_forms(fmt: str, rounding: str, expected: float) -> None:
    got = halfulp.stall_probability(fmt, beta=0.999, rounding=rounding, model="one-step")
    assert round(got, 4) == expected


def test_the_default_is_the_chain_at_three_windows() -> None:
    got = halfulp.stall_probability("fp8", beta=0.99, rounding="nearest")
    assert got == halfulp.stall_curve("fp8", beta=0.99, rounding="nearest", steps=301)[300]
