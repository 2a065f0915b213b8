"""Scales and layouts: which elements share a scale, the smallest sufficient power of two, and the ends of fp32."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfulp.numbers.formats import FORMATS, Format
from halfulp.numbers.scaling import Layout, Scaling, rows_and_cols
from support.oracle import pow2_scale

SCALED = [f for f in FORMATS.values() if f.scaled]
TINY, HUGE = 2.0**-149, 3.4028234663852886e38
magnitudes = st.floats(width=32, min_value=0.0, max_value=HUGE, allow_nan=False)


@pytest.mark.parametrize("fmt", SCALED, ids=str)
@settings(max_examples=60, deadline=None)
@given(absmax=magnitudes)
def test_pow2_is_the_smallest_sufficient(fmt: Format, absmax: float) -> None:
    scaling = Scaling("pow2")
    stored = scaling.from_absmax(torch.tensor([absmax]), fmt)
    factor = float(scaling.values(stored))
    assert stored.dtype == torch.uint8
    assert factor == float(pow2_scale(Fraction(absmax), Fraction(fmt.reach)))
    if factor:
        assert float(scaling.inverses(stored)) == 1 / factor
        assert absmax / factor <= fmt.reach or factor == 2.0**126
        assert absmax / (factor / 2) > fmt.reach or factor == 2.0**-126
    else:
        assert absmax == 0
        assert float(scaling.inverses(stored)) == 0


@pytest.mark.parametrize("fmt", SCALED, ids=str)
@pytest.mark.parametrize("absmax", [TINY, 2.0**-126, 2.0**-126 * (1 - 2**-23), 1.0, HUGE, 2.0**127, 2.0**126])
def test_pow2_at_the_ends_of_fp32(fmt: Format, absmax: float) -> None:
    """Every magnitude is brought to the format's range; only a map that ends at 1 saturates, above 2**126."""
    scaling = Scaling("pow2")
    stored = scaling.from_absmax(torch.tensor([absmax]), fmt)
    y = float(torch.tensor([absmax]) * scaling.inverses(stored))
    assert math.isfinite(y)
    if fmt.reach >= 4:
        assert 0 < y <= fmt.reach
    else:
        assert 0 < y <= max(fmt.reach, absmax / 2.0**126)


@pytest.mark.parametrize("fmt", SCALED, ids=str)
@pytest.mark.parametrize("mantissa", [1.0, 1.0 + 2**-23, 2.0 - 2**-23])
def test_pow2_around_the_boundaries(fmt: Format, mantissa: float) -> None:
    """One fp32 unit on either side of ``max * 2**k``, for every k."""
    near = (fmt.reach, fmt.reach * (1 + 2**-22), fmt.reach * (1 - 2**-22), mantissa)
    x = torch.tensor([absmax * 2.0**k for k in range(-120, 110) for absmax in near])
    scaling = Scaling("pow2")
    got = scaling.values(scaling.from_absmax(x, fmt))
    assert got.tolist() == [float(pow2_scale(Fraction(value), Fraction(fmt.reach))) for value in x.tolist()]


@pytest.mark.parametrize("fmt", SCALED, ids=str)
@settings(max_examples=60, deadline=None)
@given(absmax=magnitudes)
def test_fp32_scale(fmt: Format, absmax: float) -> None:
    """``absmax / reach`` in one rounding; zero where that is below normal numbers, the largest where it is above."""
    scaling = Scaling("fp32")
    stored = scaling.from_absmax(torch.tensor([absmax]), fmt)
    expected = torch.tensor(absmax / fmt.reach, dtype=torch.float64).float().clamp_max(HUGE)
    assert float(stored) == (float(expected) if expected >= 2.0**-126 else 0.0)
    assert torch.equal(scaling.values(stored), stored)
    if float(stored):
        assert absmax * float(scaling.inverses(stored)) == pytest.approx(max(fmt.reach, absmax / HUGE), rel=2**-21)
    else:
        assert float(scaling.inverses(stored)) == 0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), (1, 1)), ((0,), (1, 0)), ((7,), (1, 7)), ((3, 5), (3, 5)), ((3, 0), (3, 0)), ((0, 3), (0, 3)),
     ((2, 3, 4, 5), (2, 60))],
)  # fmt: skip
def test_rows_and_cols(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert rows_and_cols(shape) == expected
    assert rows_and_cols(torch.Size(shape)) == expected


@pytest.mark.parametrize("per", ["block", "row", "tensor"])
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 4), cols=st.integers(0, 20), block=st.sampled_from([2, 4, 6, 16, 128]))
def test_split_and_join(per: str, rows: int, cols: int, block: int) -> None:
    """Every element lands once, in row order, zeros pad a short last block, and join undoes it."""
    x = torch.arange(1, rows * cols + 1, dtype=torch.float32).reshape(rows, cols)
    layout = Scaling("pow2", per, block).layout((rows, cols))  # type: ignore[arg-type]
    blocks = layout.split(x)
    assert blocks.shape == (layout.rows, layout.blocks, layout.block)
    assert torch.equal(blocks[blocks != 0], x.flatten())
    assert torch.equal(layout.join(blocks).reshape(rows, cols), x)
    if per == "block" and cols:
        for r in range(rows):
            for b in range(layout.blocks):
                mine = x[r, b * layout.block : (b + 1) * layout.block]
                assert torch.equal(blocks[r, b, : len(mine)], mine)
                assert not blocks[r, b, len(mine) :].any()


def test_a_block_is_at_most_a_row() -> None:
    assert Scaling(block_size=128).layout((4, 10)) == Layout(4, 10, 10)
    assert Scaling(block_size=4).layout((4, 10)).blocks == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "float"}, "scale kind is 'pow2' or 'fp32', got 'float'"),
        ({"per": "column"}, "per 'block', 'row' or 'tensor', got 'column'"),
        ({"block_size": 0}, "even number of at least 2 elements, got 0"),
        ({"block_size": 127}, "even number of at least 2 elements, got 127"),
        ({"block_size": -128}, "even number of at least 2 elements, got -128"),
        ({"block_size": 128.0}, "even number of at least 2 elements, got 128.0"),
        ({"block_size": "128"}, "even number of at least 2 elements, got '128'"),
        ({"block_size": True}, "even number of at least 2 elements, got True"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scaling(**arguments)
