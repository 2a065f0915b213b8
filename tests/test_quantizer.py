"""Quantizer: bits against the exact model, idempotence, blocks, shards, gather, bytes, specs."""

from __future__ import annotations

import bisect
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import halfulp
from halfulp.numbers.formats import FORMATS, Format
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.rng import random_bits
from halfulp.numbers.rounding import storage_dtype
from halfulp.numbers.scaling import Scaling, rows_and_cols
from support.oracle import Stored

ALL = list(FORMATS.values())
NARROW = [f for f in ALL if not f.is_float32]
SCALED = [f for f in ALL if f.scaled]
SCALINGS = [
    Scaling("pow2", "block", 8), Scaling("fp32", "block", 8), Scaling("pow2", "row"), Scaling("fp32", "row"),
    Scaling("pow2", "tensor"), Scaling("fp32", "tensor"), Scaling("pow2", "block", 6), Scaling("pow2", "block", 2),
]  # fmt: skip
SHAPES = [(), (0,), (1,), (7,), (0, 5), (5, 0), (1, 1), (3, 17), (4, 16), (2, 3, 5), (7, 1), (5, 3), (2, 3, 3, 3)]


def data(shape: tuple[int, ...], fmt: Format, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.exp(spread * torch.randn(shape, generator=generator))
    return x if fmt.signed else x.abs()


def words(shape: tuple[int, ...]) -> torch.Tensor:
    return random_bits((11, 12), 0, int(torch.Size(shape).numel())).reshape(shape)


def quantize(q: Quantizer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    return q.quantize(x, words(tuple(x.shape)) if q.stochastic else None)


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    as_bits = {2: torch.int16, 4: torch.int32, 1: torch.uint8}[a.itemsize]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(as_bits), b.contiguous().view(as_bits))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_codes_are_those_of_the_exact_model(fmt: Format, rounding: str) -> None:
    """One row with a short last block, wide magnitudes, zeros, an all-zero block: codes, scales and values."""
    x = data((1, 37), fmt, spread=6.0)
    x[0, 8:16] = 0.0
    x[0, 20] = 0.0
    q = Quantizer(fmt, Scaling("pow2", "block", 8), rounding, zero_floor=not fmt.signed)  # type: ignore[arg-type]
    codes, scale = quantize(q, x)
    model = Stored(fmt, 8, [], [], rounding, not fmt.signed)
    random = words((1, 37))[0].tolist()
    model.write([Fraction(v) for v in x[0].tolist()], lambda i: random[i])
    if fmt.bits == 16:
        got = [c & 0xFFFF for c in codes[0].view(torch.int16).tolist()]
    elif fmt.packed:
        got = [c for byte in codes[0].tolist() for c in (byte & 15, byte >> 4)][:37]
    else:
        got = codes[0].tolist()
    assert got == model.codes
    if scale is not None:
        assert q.scaling.values(scale)[0].tolist() == [float(s) for s in model.scales]
    assert q.dequantize(codes, scale, x.shape)[0].tolist() == [float(v) for v in model.read()]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: f"{s.kind}-{s.per}{s.block_size}")
@pytest.mark.parametrize("fmt", SCALED, ids=str)
def test_shapes_bytes_and_gather(fmt: Format, scaling: Scaling) -> None:
    for shape in SHAPES:
        x = data(shape, fmt)
        for rounding in ("nearest", "stochastic"):
            q = Quantizer(fmt, scaling, rounding)  # type: ignore[arg-type]
            codes, scale = quantize(q, x)
            assert scale is not None
            assert tuple(codes.shape) == q.codes_shape(shape)
            assert tuple(scale.shape) == q.scale_shape(shape)
            assert codes.dtype == storage_dtype(fmt)
            assert scale.dtype == scaling.dtype
            assert q.bytes(shape) == codes.numel() * codes.itemsize + scale.numel() * scale.itemsize
            values = q.dequantize(codes, scale, shape)
            assert values.shape == x.shape
            index = torch.arange(x.numel())
            assert same(q.gather(codes, scale, shape, index), values.flatten())
            assert same(q.gather(codes, scale, shape, index.flip(0)[::2]), values.flatten().flip(0)[::2])


@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_spacing_is_the_gap_of_the_grid_around_a_value(fmt: Format) -> None:
    grid, scaling = fmt.grid(), Scaling("fp32", "block", 8)
    inner = set(grid[1:-1])
    q = Quantizer(fmt, scaling)
    for shape in SHAPES:
        x = data(shape, fmt)
        units, found = q.units(x), q.spacing(x)
        assert units.shape == found.shape == x.shape
        if fmt.scaled and x.numel():
            layout, scale = scaling.layout(shape), q.quantize(x)[1]
            assert scale is not None
            assert torch.equal(layout.split(units)[..., 0], scale.double())
        for value, unit, gap in zip(*(part.flatten().tolist() for part in (x, units, found)), strict=True):
            above = min(max(bisect.bisect_right(grid, value / unit), 1), len(grid) - 1)
            if value / unit not in inner:  # a value of the format has a gap on either side
                assert gap == pytest.approx((grid[above] - grid[above - 1]) * unit, rel=1e-6)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_wide_formats_have_no_scale(name: str) -> None:
    q = Quantizer(FORMATS[name], rounding="stochastic")
    for shape in SHAPES:
        x = data(shape, q.format)
        codes, scale = quantize(q, x)
        assert scale is None
        assert q.scale_shape(shape) is None
        assert q.bytes(shape) == codes.numel() * codes.itemsize == x.numel() * q.format.bits // 8
        values = q.dequantize(codes, None, shape)
        assert same(q.gather(codes, None, shape, torch.arange(x.numel())), values.flatten())


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("fmt", [f for f in SCALED if f.kind != "codebook"], ids=str)
@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.0, 1.0, 3.0, 10.0]))
def test_quantizing_again_changes_nothing(fmt: Format, rounding: str, seed: int, spread: float) -> None:
    """Idempotence under power-of-two scales: an unchanged state keeps every value, whatever the random words."""
    q = Quantizer(fmt, Scaling("pow2", "block", 16), rounding)  # type: ignore[arg-type]
    x = data((2, 40), fmt, seed, spread)
    once = q.dequantize(*quantize(q, x), x.shape)
    again = q.dequantize(*quantize(q, once), x.shape)
    assert same(once, again)


@pytest.mark.parametrize("fmt", [f for f in SCALED if f.kind == "float"], ids=str)
@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), shift=st.integers(-12, 12))
def test_idempotent_while_the_scale_moves(fmt: Format, seed: int, shift: int) -> None:
    """One element of a block changes by any power of two: every other one keeps its value while it has its full
    mantissa on the new grid, i.e. is no subnormal there."""
    q = Quantizer(fmt, Scaling("pow2", "block", 16), "stochastic")
    x = q.dequantize(*quantize(q, data((1, 16), fmt, seed)), (1, 16))
    largest = int(x.abs().argmax())
    moved = x.clone()
    moved[0, largest] *= 2.0**shift
    codes, scale = quantize(q, moved)
    assert scale is not None
    values = q.dequantize(codes, scale, (1, 16))
    others = torch.arange(16) != largest
    normal = moved[0].abs() >= 2.0**fmt.min_exponent * float(q.scaling.values(scale))
    keep = others & (normal | (moved[0] == 0))
    assert same(values[0][keep], moved[0][keep])
    if shift <= 0:  # the scale can only decrease, so the grid only becomes finer
        assert same(values[0][others], moved[0][others])


@pytest.mark.parametrize("kind", ["pow2", "fp32"])
@pytest.mark.parametrize("fmt", SCALED, ids=str)
def test_nothing_exceeds_the_maximum(fmt: Format, kind: str) -> None:
    """Scaled values fit the format, so that a block's largest element is never clipped."""
    scaling = Scaling(kind, "block", 8)  # type: ignore[arg-type]
    for exponent in range(-140, 120, 7):
        x = data((4, 8), fmt, exponent + 200, spread=1.0) * 2.0**exponent
        scale = scaling.from_absmax(x.abs().amax(-1, keepdim=True), fmt)
        y = x * scaling.inverses(scale)
        slack = 1.0 if kind == "pow2" else 1 + 2.0**-22  # an fp32 inverse is rounded; encoding then saturates
        assert float(y.abs().max()) <= fmt.reach * slack
        q = Quantizer(fmt, scaling)
        values = q.dequantize(*quantize(q, x), x.shape)
        rows = x.abs().amax(-1)
        if bool((scaling.values(scale) > 0).all()) and exponent > -120:
            step = max(b - a for a, b in zip(fmt.grid(), fmt.grid()[1:], strict=False))
            error = (values.abs().amax(-1) - rows).abs()
            assert bool((error <= 0.5001 * step * scaling.values(scale)[:, 0]).all())


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: f"{s.kind}-{s.per}{s.block_size}")
@pytest.mark.parametrize("fmt", SCALED, ids=str)
def test_all_zero_blocks(fmt: Format, scaling: Scaling) -> None:
    """They store the zero code and scale 0, decode to 0, and are what ``zeros`` gives."""
    for rounding in ("nearest", "stochastic"):
        q = Quantizer(fmt, scaling, rounding, zero_floor=True)  # type: ignore[arg-type]
        for shape in SHAPES:
            codes, scale = quantize(q, torch.zeros(shape))
            blank, blank_scale = q.zeros(shape, torch.device("cpu"))
            assert same(codes, blank) or (fmt.packed and rows_and_cols(shape)[1] % 2 == 1)
            assert same(scale, blank_scale)
            assert not q.dequantize(codes, scale, shape).any()
            assert not q.dequantize(blank, blank_scale, shape).any()


@pytest.mark.parametrize("per", ["block", "row"])
@pytest.mark.parametrize("kind", ["pow2", "fp32"])
@pytest.mark.parametrize("fmt", SCALED, ids=str)
def test_shards_of_rows_have_the_bits_of_the_whole(fmt: Format, kind: str, per: str) -> None:
    q = Quantizer(fmt, Scaling(kind, per, 8), "stochastic")  # type: ignore[arg-type]
    x = data((7, 21), fmt)
    random = words((7, 21))
    codes, scale = q.quantize(x, random)
    assert scale is not None
    for cut in range(8):
        parts = [q.quantize(part, bits) for part, bits in ((x[:cut], random[:cut]), (x[cut:], random[cut:]))]
        assert same(torch.cat([p[0] for p in parts]), codes)
        assert same(torch.cat([p[1] for p in parts if p[1] is not None]), scale)


@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_strides_do_not_matter(fmt: Format) -> None:
    x = data((6, 10), fmt).t()
    q = Quantizer(fmt, Scaling("pow2", "block", 4))
    codes, scale = q.quantize(x)
    expected, expected_scale = q.quantize(x.contiguous())
    assert same(codes, expected)
    assert same(scale, expected_scale)


@pytest.mark.parametrize("fmt", [f for f in SCALED if not f.signed], ids=str)
@pytest.mark.parametrize("kind", ["pow2", "fp32"])
def test_zero_floor_in_blocks(fmt: Format, kind: str) -> None:
    """Positive stays positive under nearest rounding with the floor, though neighbours are a million times larger."""
    x = data((8, 64), fmt, spread=8.0) + 1e-12
    x[:, ::5] = 0.0
    scaling = Scaling(kind, "block", 16)  # type: ignore[arg-type]
    plain = Quantizer(fmt, scaling)
    lost = (plain.dequantize(*plain.quantize(x), x.shape) == 0) & (x > 0)
    assert lost.any()
    floored = replace(plain, zero_floor=True)
    values = floored.dequantize(*floored.quantize(x), x.shape)
    assert torch.equal(values > 0, x > 0)


@pytest.mark.parametrize("kind", ["pow2", "fp32"])
@pytest.mark.parametrize("fmt", SCALED, ids=str)
def test_stochastic_keeps_the_mean_of_a_block(fmt: Format, kind: str) -> None:
    """Averaged over many steps the stored block is the true one, small elements beside large ones included."""
    x = data((1, 32), fmt, spread=3.0)
    q = Quantizer(fmt, Scaling(kind, "block", 32), "stochastic")  # type: ignore[arg-type]
    steps = 2000
    bits = random_bits((21, 22), 0, 32 * steps).reshape(steps, 1, 32)
    scale = q.quantize(x, bits[0])[1]
    assert scale is not None
    factor = q.scaling.values(scale).double()[0, 0]
    y = x[0].double() / factor  # in units of the scale, where the grid is the format's
    stored = torch.stack([q.dequantize(*q.quantize(x, b), x.shape)[0] for b in bits]).double() / factor
    grid = torch.tensor(fmt.grid(), dtype=torch.float64)
    above = torch.searchsorted(grid, y * (1 - 2**-22), right=True).clamp(1, len(grid) - 1)
    low, high = grid[above - 1], grid[above]
    deviation = ((y - low).clamp_min(0) * (high - y).clamp_min(0) / steps).sqrt()
    error = (stored.mean(0) - y).abs()  # a few jumps more or less for the elements that rarely move
    assert bool((error < 5 * deviation + 5 * (high - low) / steps).all())


@pytest.mark.parametrize("fmt", ALL, ids=str)
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: f"{s.kind}-{s.per}{s.block_size}")
def test_spec_round_trip(fmt: Format, scaling: Scaling) -> None:
    q = Quantizer(fmt, scaling)
    back = Quantizer.from_spec(q.spec)
    assert back.spec == q.spec
    assert back.format is fmt
    if fmt.scaled:
        assert back.scaling == replace(scaling, block_size=scaling.block_size if scaling.per == "block" else 128)
    else:
        assert q.spec == fmt.name


@pytest.mark.parametrize(
    "spec",
    ["", "fp8", "float9", "float8_e4m3fn:pow2", "float8_e4m3fn:pow2:block", "float8_e4m3fn:pow2:blockx",
     "float8_e4m3fn:pow2:block3", "float8_e4m3fn:pow3:block128", "bfloat16:pow2:block128:x",
     "float8_e4m3fn", "bfloat16:pow2:block128"],
)  # fmt: skip
def test_bad_specs(spec: str) -> None:
    with pytest.raises(ValueError, match="storage spec"):
        Quantizer.from_spec(spec)


def test_error_messages() -> None:
    with pytest.raises(ValueError, match="rounding is 'nearest' or 'stochastic', got 'up'"):
        Quantizer(FORMATS["int4"], rounding="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown state format 'fp7'. Did you mean"):
        Quantizer("fp7")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs rand_bits"):
        Quantizer(FORMATS["int4"], rounding="stochastic").quantize(torch.ones(2, 2))
    with pytest.raises(TypeError, match="quantize takes float32"):
        Quantizer(FORMATS["bfloat16"]).quantize(torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match="quantize takes float32"):
        Quantizer(FORMATS["int4"]).quantize(torch.ones(2, 2, dtype=torch.bfloat16))


def test_names_and_rounding() -> None:
    q = Quantizer("fp8")  # type: ignore[arg-type]
    assert q.format is FORMATS["float8_e4m3fn"]
    assert not q.stochastic
    assert q.with_rounding("stochastic").stochastic
    assert not Quantizer(FORMATS["float32"], rounding="stochastic").stochastic
    assert hash(q) == hash(Quantizer("fp8"))  # type: ignore[arg-type]


def test_formats_of_your_own_are_told_apart_by_their_values() -> None:
    """Codes of one must not be read by another of the same name, nor by ours."""
    levels = {d: (0.0, *(2.0 ** (-k / d) for k in range(254, -1, -1))) for d in (8, 4)}
    finer, coarser = (Format("mine", "codebook", 8, False, levels=levels[d]) for d in (8, 4))
    alike = replace(FORMATS["float8_e4m3fn"], special="none")
    assert Quantizer(alike).spec != Quantizer("float8_e4m3fn").spec
    param = nn.Parameter(torch.ones(64, 64))

    def optimizer(fmt: Format) -> halfulp.AdamW:
        return halfulp.AdamW([param], state={"exp_avg": "fp8", "exp_avg_sq": fmt})

    first = optimizer(finer)
    param.grad = torch.ones(64, 64)
    first.step()
    saved = first.state_dict()
    again = optimizer(finer)
    again.load_state_dict(saved)
    assert torch.equal(again.state_tensor(param, "exp_avg_sq"), first.state_tensor(param, "exp_avg_sq"))
    with pytest.raises(ValueError, match="mine#"):
        optimizer(coarser).load_state_dict(saved)
    with pytest.raises(ValueError, match="mine#"):
        halfulp.AdamW([param], state={"exp_avg": "fp8", "exp_avg_sq": "fp8"}).load_state_dict(saved)
    with pytest.raises(ValueError, match="a format of your own, whose values are not in the file"):
        halfulp.convert_state_dict(saved, to=halfulp.AdamW([param]))


@pytest.mark.parametrize("shape", [(3, 4), (3, 5), (7,), ()])
def test_zeros_are_the_codes_of_zero_whatever_the_scale(shape: tuple[int, ...]) -> None:
    quarters = Format("quarters", "codebook", 4, True, levels=tuple(i / 4 for i in range(-7, 9)))
    for quantizer in (Quantizer(quarters), *map(Quantizer, ("4bit", "int4", "dynamic8", "8bit"))):  # type: ignore[arg-type]
        codes, scale = quantizer.zeros(shape, torch.device("cpu"))
        stored, ones = quantizer.quantize(torch.zeros(shape)), quantizer.quantize(torch.ones(shape))[1]
        assert torch.equal(codes.view(torch.uint8), stored[0].view(torch.uint8))
        assert torch.equal(scale, stored[1])  # type: ignore[arg-type]
        assert not bool(quantizer.dequantize(codes, ones, torch.Size(shape)).any())
