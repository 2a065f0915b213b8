"""Remainders of bfloat16 weights: the pair is the fp32 weight, and the visible half is the nearest bfloat16."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfulp.numbers.remainder import join, split, weights

EDGES = [0.0, -0.0, 1.0, -1.0, 2.0**-126, 2.0**-149, 3.3895e38, 3.4028e38, -3.4028e38, 1 + 2.0**-8, -1 - 2.0**-8]
EDGES += [1 + 2.0**-16, 1 + 3 * 2.0**-16]
"""Halfway between two numbers of 15 fraction bits: the even one is below, and above."""


def patterns() -> torch.Tensor:
    """Every upper half with lower halves at the ends, in the middle and at random; finite ones."""
    upper = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int64).repeat_interleave(7)
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1234]).repeat(1 << 16)
    x = ((upper << 16) | lower).to(torch.int32).view(torch.float32)
    return x[torch.isfinite(x)]


def test_sixteen_bits_are_a_bijection() -> None:
    x = patterns()
    visible, remainder = split(x)
    assert torch.equal(join(visible, remainder).view(torch.int32), x.view(torch.int32))


def test_the_visible_weight_is_a_nearest_bfloat16() -> None:
    x = patterns()
    x = x[x.abs() < 3.38e38]
    visible = split(x)[0].double()
    nearest = x.to(torch.bfloat16).double()
    assert torch.equal((visible - x.double()).abs(), (nearest - x.double()).abs())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("kind", ["remainder16", "remainder8"])
def test_what_is_not_finite_stays_so(value: float, kind: str) -> None:
    visible, remainder = split(torch.tensor([value]), kind)
    assert not int(remainder)
    assert str(float(visible)) == str(float(join(visible, remainder))) == str(value)


@pytest.mark.parametrize("kind", ["remainder16", "remainder8"])
def test_nan_of_any_bits_stays_nan(kind: str) -> None:
    bits = torch.tensor([0x7F800001, 0x7F80FFFF, 0x7FC08000, 0x7FFFFFFF], dtype=torch.int32)
    visible, remainder = split(torch.cat([bits, bits | -(1 << 31)]).view(torch.float32), kind)
    assert bool(visible.isnan().all())
    assert not bool(remainder.any())
    assert bool(join(visible, remainder).isnan().all())


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.integers(0, 2**32 - 1))
def test_eight_bits_round_to_fifteen_fraction_bits(values: list[float], word: int) -> None:
    x = torch.tensor([*values, *EDGES], dtype=torch.float32)
    bits = x.numpy().view(np.uint32).astype(np.uint64)
    magnitude, sign = bits & 0x7FFFFFFF, bits & 0x80000000
    down, rest = magnitude >> np.uint64(8), magnitude & np.uint64(255)
    half_even = down + ((rest > 128) | ((rest == 128) & (down % 2 == 1)))
    random = down + ((rest + np.uint64(word >> 24)) >> np.uint64(8))
    words = torch.full(x.shape, word)
    for found, wanted in ((split(x, "remainder8"), half_even), (split(x, "remainder8", words), random)):
        exact = torch.from_numpy(((wanted << np.uint64(8)) | sign).astype(np.uint32).view(np.int32).copy())
        finite = torch.isfinite(exact.view(torch.float32))
        assert torch.equal(join(*found).view(torch.int32)[finite], exact[finite])


def test_weights_are_what_their_master_says() -> None:
    x = torch.randn(64)
    visible, remainder = split(x)
    assert torch.equal(weights(visible, None), visible.float())
    assert torch.equal(weights(visible, remainder), x)
    assert weights(visible, x) is x
    assert torch.equal(weights(x, None), x)


def test_a_weight_changed_from_outside_stays_what_it_is() -> None:
    """Within half a unit, whatever remainder is beside it."""
    visible = torch.tensor([1.0, 3.0, -2.0, 0.01]).to(torch.bfloat16)
    unit = torch.exp2(torch.frexp(visible.double())[1].double() - 8)
    for remainder in torch.arange(-(1 << 15), 1 << 15, 97, dtype=torch.int16):
        pair = join(visible, remainder.expand(4).contiguous())
        assert bool(((pair.double() - visible.double()).abs() <= unit / 2).all())
    assert torch.equal(join(visible, torch.zeros(4, dtype=torch.int16)), visible.float())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: split(torch.ones(2), "remainder4"), ValueError, "remainder16, remainder8"),
        (lambda: split(torch.ones(2).bfloat16()), TypeError, "float32"),
        (lambda: join(torch.ones(2), torch.zeros(2, dtype=torch.int16)), TypeError, "bfloat16"),
    ],
)
def test_refused(call: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()  # type: ignore[operator]
