"""Encoding against ml_dtypes and the exact model, and stochastic rounding proved by counting."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfulp.numbers.formats import FORMATS, Format
from halfulp.numbers.rng import random_bits
from halfulp.numbers.rounding import decode, encode, pack4, round_to, unpack4
from support.oracle import encode as exact_encode
from support.oracle import fraction_bits
from support.oracle import value as exact_value

NARROW = [f for f in FORMATS.values() if not f.is_float32]
ML_FLOATS = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e3m4", "float4_e2m1fn")
} | {"float16": np.dtype(np.float16)}
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 1.1e-38, -1.1e-38, 3.4028234663852886e38, 2.0**-126]
floats = st.floats(width=32, allow_nan=True, allow_infinity=True)
words = st.integers(0, 2**32 - 1)


def ints(codes: torch.Tensor) -> np.ndarray:
    if codes.dtype == torch.uint8:
        return codes.numpy().astype(np.int64)
    return codes.view(torch.int16).numpy().view(np.uint16).astype(np.int64)


def samples(fmt: Format, per_binade: int = 24) -> torch.Tensor:
    """Both signs of every fp32 binade, every grid point and middle with its fp32 neighbours, and the special values."""
    generator = np.random.default_rng(0)
    exponent = np.repeat(np.arange(255, dtype=np.uint32), per_binade) << 23
    mantissa = generator.integers(0, 1 << 23, exponent.size, dtype=np.uint32)
    grid = np.array(fmt.grid() if fmt.bits <= 8 else fmt.grid()[:: len(fmt.grid()) // 500], dtype=np.float64)
    middles = (grid[1:] + grid[:-1]) / 2
    points = np.concatenate([grid, middles]).astype(np.float32)
    near = np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))])
    random = (exponent | mantissa).view(np.float32)
    return torch.from_numpy(np.concatenate([random, -random, near, np.float32(SPECIAL)]).astype(np.float32))


def saturated(x: np.ndarray, fmt: Format) -> np.ndarray:
    return np.where(np.isnan(x), x, np.clip(x, -np.float32(fmt.max), np.float32(fmt.max)))


@pytest.mark.parametrize("name", ML_FLOATS)
def test_nearest_is_ml_dtypes(name: str) -> None:
    """Same code for every value, NaN included, after the saturation that is ours."""
    fmt = FORMATS[name]
    x = samples(fmt, per_binade=2000).numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        expected = saturated(x, fmt).astype(ML_FLOATS[name])
    unsigned = np.uint16 if fmt.bits == 16 else np.uint8
    got, want = ints(encode(torch.from_numpy(x), fmt)), expected.view(unsigned).astype(np.int64)
    nan = np.isnan(x)
    np.testing.assert_array_equal(got[~nan], want[~nan])
    assert set(got[nan]) == {fmt.nan_code}


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_nearest_is_torch_cast(name: str) -> None:
    fmt = FORMATS[name]
    x = samples(fmt, per_binade=500)
    x = x[x.abs() <= fmt.max]
    expected = x.to(getattr(torch, name))
    assert torch.equal(encode(x, fmt).view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_nearest_is_the_exact_model(fmt: Format, floor: bool) -> None:
    x = samples(fmt, per_binade=3)
    got = ints(encode(x, fmt, zero_floor=floor))
    expected = [exact_encode(fmt, v, zero_floor=floor) for v in x.tolist()]
    wrong = [(v, g, e) for v, g, e in zip(x.tolist(), got, expected, strict=True) if g != e]
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_stochastic_is_the_exact_model(fmt: Format) -> None:
    x = samples(fmt, per_binade=3)
    bits = random_bits((1, 2), 0, len(x))
    bits[::7], bits[1::7] = 0, 2**32 - 1
    got = ints(encode(x, fmt, bits))
    expected = [exact_encode(fmt, v, w) for v, w in zip(x.tolist(), bits.tolist(), strict=True)]
    wrong = [(v, g, e) for v, g, e in zip(x.tolist(), got, expected, strict=True) if g != e]
    assert not wrong, wrong[:5]


@settings(max_examples=60)
@given(x=st.lists(floats, min_size=1, max_size=20), word=words, floor=st.booleans())
def test_any_float_in_any_format(x: list[float], word: int, floor: bool) -> None:
    for fmt in NARROW:
        tensor = torch.tensor(x)
        assert ints(encode(tensor, fmt, zero_floor=floor)).tolist() == [exact_encode(fmt, v, None, floor) for v in x]
        bits = torch.full((len(x),), word)
        assert ints(encode(tensor, fmt, bits)).tolist() == [exact_encode(fmt, v, word) for v in x]


@pytest.mark.parametrize("fmt", [f for f in NARROW if f.kind == "float"], ids=str)
def test_ties_go_to_even(fmt: Format) -> None:
    grid = [v for v in fmt.grid() if v >= 0][:4000]
    low, high = torch.tensor(grid[:-1]), torch.tensor(grid[1:])
    middle = ((low.double() + high.double()) / 2).float()
    exact = (low.double() + high.double()) / 2 == middle.double()
    codes = ints(encode(middle[exact], fmt))
    assert len(codes) > 5
    if fmt.mantissa_bits:
        assert np.all(codes % 2 == 0)
    else:  # the upper power of two is the even multiple of the spacing, as is zero below the smallest
        assert decode(encode(middle, fmt), fmt).tolist() == [0.0, *high.tolist()[1:]]


@pytest.mark.parametrize("rand_bits", [None, 0, 2**32 - 1])
@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_grid_values_never_move(fmt: Format, rand_bits: int | None) -> None:
    """Idempotence: a value of the grid goes to itself under nearest and for the extreme random words."""
    grid = torch.tensor(fmt.grid())
    bits = None if rand_bits is None else torch.full(grid.shape, rand_bits)
    assert torch.equal(round_to(grid, fmt, bits), grid)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_special_values(fmt: Format, stochastic: bool) -> None:
    x = torch.tensor([math.inf, -math.inf, 3e38, -3e38, math.nan, -math.nan, 0.0, -0.0])
    bits = torch.full(x.shape, 2**32 - 1) if stochastic else None
    got = round_to(x, fmt, bits)
    lowest = fmt.grid()[0]
    if fmt.max < 3e38:
        assert got[:4].tolist() == [fmt.max, lowest, fmt.max, lowest]
    else:
        assert got[:2].tolist() == [fmt.max, lowest]
    has_nan = fmt.special != "none"
    assert got[4:6].isnan().all() if has_nan else not got[4:6].any()
    assert got[6:].tolist() == [0.0, 0.0]
    if fmt.kind == "float":
        assert torch.signbit(got[7]) == fmt.signed


@pytest.mark.parametrize("fmt", [f for f in NARROW if not f.signed], ids=str)
def test_unsigned_formats_store_negatives_as_zero(fmt: Format) -> None:
    x = torch.tensor([-1.0, -1e-30, -math.inf])
    assert not round_to(x, fmt).any()
    assert not round_to(x, fmt, torch.full(x.shape, 2**32 - 1)).any()
    assert not decode(encode(x, fmt, zero_floor=True), fmt).any()


@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_zero_floor(fmt: Format) -> None:
    """Positive values below the smallest go to it; nothing else changes."""
    x = samples(fmt, per_binade=20)
    x = x[(x >= 0) & ~x.isnan()]
    plain, floored = round_to(x, fmt), decode(encode(x, fmt, zero_floor=True), fmt)
    lifted = (plain == 0) & (x > 0)
    assert lifted.any()
    assert (floored[lifted] == np.float32(fmt.smallest)).all()
    assert torch.equal(floored[~lifted], plain[~lifted])
    assert (floored[x == 0] == 0).all()


# ---------------------------------------------------------------- stochastic rounding, proved


def upward_count(x: torch.Tensor, low: torch.Tensor, fmt: Format) -> torch.Tensor:
    """How many values of the used top bits of a random word round `x` up from `low`, for each element.

    A code depends on a word through a comparison only (:func:`test_every_word_one_by_one`), so that the words that
    round up are those from some first one; it is found by bisection, for all elements at once.
    """
    used = fraction_bits(fmt)
    first = torch.zeros(len(x), dtype=torch.int64)
    last = torch.full_like(first, 1 << used)
    while bool((first < last).any()):
        middle = (first + last) // 2
        up = round_to(x, fmt, middle.clamp_max((1 << used) - 1) << (32 - used)) > low
        open_ = first < last
        first, last = torch.where(open_ & ~up, middle + 1, first), torch.where(open_ & up, middle, last)
    for junk in (0, (1 << (32 - used)) - 1):  # the unused low bits change nothing
        at = (first.clamp_max((1 << used) - 1) << (32 - used)) | junk
        below = ((first - 1).clamp_min(0) << (32 - used)) | junk
        assert torch.equal(round_to(x, fmt, at) > low, first < 1 << used)
        assert not (round_to(x, fmt, below) > low)[first > 0].any()
    return (1 << used) - first


@pytest.mark.parametrize(
    "name", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "ufloat8_e4m4", "ufloat4_e2m2"]
)
@pytest.mark.parametrize("base", [1.0, 1.75])
def test_upward_count_is_exact_for_every_dropped_pattern(name: str, base: float) -> None:
    """For every pattern of the bits that are cut off, the number of random words that round up is exactly its share."""
    fmt = FORMATS[name]
    dropped, used = 23 - fmt.mantissa_bits, fraction_bits(fmt)
    step = 1 if dropped < 18 else 13  # every 13th pattern of the long ones, including the ends and powers of two
    patterns = torch.arange(0, 1 << dropped, step, dtype=torch.int32)
    ends = [0, 1, 2, (1 << dropped) - 1, (1 << dropped) - 2, *(1 << k for k in range(dropped))]
    patterns = torch.cat([patterns, torch.tensor(ends, dtype=torch.int32)])
    low = torch.tensor([base])
    assert torch.equal(round_to(low, fmt), low)
    x = (low.view(torch.int32) + patterns).view(torch.float32)
    assert torch.equal(upward_count(x, low, fmt), patterns.long() << (used - dropped))


@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_upward_count_over_the_whole_grid(fmt: Format) -> None:
    """Exact share between any two neighbours, to the resolution of the random bits (subnormals: rounded).

    The levels of a codebook are rounded to fp32, and evenly spaced to that: its mean is exact to an ULP of fp32.
    """
    used = fraction_bits(fmt)
    grid = torch.tensor([v for v in fmt.grid() if v >= 0][:: 97 if fmt.bits == 16 else 1], dtype=torch.float64)
    if fmt.bits == 16:  # neighbours of a sample of grid points
        code = ints(encode(grid[:-1].float(), fmt))
        high = torch.tensor([fmt.decode(int(c) + 1) for c in code], dtype=torch.float64)
        low = grid[:-1]
    else:
        low, high = grid[:-1], grid[1:]
    for share in (0.37, 0.5, 0.93, 1e-3):
        x = (low + (high - low) * share).float()
        inside = (x > low) & (x < high)
        x, a, b = x[inside], low[inside], high[inside]
        count = upward_count(x, a.float(), fmt)
        error = (count - (x.double() - a) / (b - a) * 2.0**used).abs()
        allowed = torch.full_like(error, 0.5)
        if fmt.kind == "codebook":
            allowed += torch.from_numpy(np.spacing(b.float().numpy())).double() / (b - a) * 2.0**used
        assert bool((error <= allowed).all())


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn", "ufloat4_e2m2", "int4", "udynamic8"])
def test_every_word_one_by_one(name: str) -> None:
    """All values of the used bits, one by one: never up below the first word that rounds up, always from it on."""
    fmt = FORMATS[name]
    used = fraction_bits(fmt)
    grid = [v for v in fmt.grid() if v >= 0]
    low, high = grid[len(grid) // 2], grid[len(grid) // 2 + 1]
    x = torch.tensor([low + 0.37 * (high - low)], dtype=torch.float32)
    first = (1 << used) - int(upward_count(x, torch.tensor([low]), fmt))
    assert 0 < first < 1 << used
    chunk = min(1 << used, 1 << 20)
    for start in range(0, 1 << used, chunk):
        word = torch.arange(start, start + chunk)
        up = round_to(x.expand(chunk), fmt, word << (32 - used)) == np.float32(high)
        assert torch.equal(up, word >= first)


@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_unbiased_between_zero_and_the_smallest(fmt: Format) -> None:
    """Below the smallest positive value a state is stored as it with the probability that keeps the mean."""
    used = fraction_bits(fmt)
    x = torch.tensor([0.25, 0.7, 0.999, 2.0 ** -(used - 2)], dtype=torch.float64) * fmt.smallest
    x = x.float()
    count = upward_count(x, torch.zeros(len(x)), fmt)
    error = (count - x.double() / fmt.smallest * 2.0**used).abs()
    assert float(error.max()) <= (3.0 if fmt.kind == "codebook" else 0.5)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "ufloat4_e2m2", "dynamic8"])
def test_stochastic_mean_on_random_data(name: str) -> None:
    """z-score of the summed rounding error over a million values, each with its exact variance."""
    fmt = FORMATS[name]
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(1_000_000, generator=generator) * min(fmt.max, 4.0) * 0.99
    rounded = round_to(x, fmt, random_bits((8, 9), 0, len(x)))
    grid = torch.tensor(fmt.grid(), dtype=torch.float64)
    at = torch.searchsorted(grid, x.double(), right=True)
    low, high = grid[at - 1], grid[at.clamp_max(len(grid) - 1)]
    assert bool(((rounded.double() == low) | (rounded.double() == high)).all())
    variance = ((x.double() - low) * (high - x.double())).sum()
    z = float((rounded.double() - x.double()).sum() / variance.sqrt())
    assert abs(z) < 4


# ---------------------------------------------------------------- decoding, packing, errors


@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_decode_of_encode_is_a_neighbour(fmt: Format) -> None:
    x = samples(fmt, per_binade=2)
    x = x[x.isfinite()]
    grid = np.array(fmt.grid())
    for bits in (None, random_bits((5, 6), 0, len(x))):
        got = round_to(x, fmt, bits).double().numpy()
        wanted = np.clip(x.double().numpy(), grid[0], grid[-1])
        at = np.clip(np.searchsorted(grid, wanted, side="right") - 1, 0, len(grid) - 2)
        exact = (got == np.float32(grid[at])) | (got == np.float32(grid[at + 1]))
        assert exact.all()


def test_float32_is_left_alone() -> None:
    x = torch.tensor([1e-45, -0.0, 3.4e38, 1.23456789])
    got = encode(x, FORMATS["float32"])
    assert torch.equal(got.view(torch.int32), x.view(torch.int32))
    assert got.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="encode takes float32"):
        encode(torch.ones(3, dtype=dtype), FORMATS["float8_e4m3fn"])


@settings(max_examples=50)
@given(rows=st.integers(0, 4), cols=st.integers(0, 17), seed=st.integers(0, 1000))
def test_pack_and_unpack(rows: int, cols: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, cols), generator=generator, dtype=torch.uint8)
    packed = pack4(codes)
    assert packed.shape == (rows, (cols + 1) // 2)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack4(packed, cols), codes)
    for r in range(rows):  # the even element in the low half, an odd last one with a zero
        for c in range(0, cols, 2):
            high = int(codes[r, c + 1]) if c + 1 < cols else 0
            assert int(packed[r, c // 2]) == int(codes[r, c]) + 16 * high


@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_shapes_and_strides(fmt: Format) -> None:
    """Any shape, and a transposed tensor gives the transposed codes."""
    x = torch.randn(6, 10) * 0.5
    assert torch.equal(encode(x.t(), fmt), encode(x, fmt).t())
    assert encode(x[:0], fmt).shape == (0, 10)
    assert encode(x[0, 0], fmt).shape == ()


def test_exact_model_agrees_on_its_own_grid() -> None:
    """The model is sound: its encode inverts its decode on every code that a value has."""
    for fmt in NARROW:
        if fmt.bits > 8:
            continue
        for code in range(1 << fmt.bits):
            v = exact_value(fmt, code)
            if v is None or (fmt.kind == "int" and fmt.signed and v == -(2 ** (fmt.bits - 1))):
                continue
            x = -0.0 if v == 0 and fmt.decode(code) == 0 and math.copysign(1, fmt.decode(code)) < 0 else float(v)
            assert exact_encode(fmt, x) == code
