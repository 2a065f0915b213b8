"""Formats: every code against ml_dtypes if it has the format, otherwise against the exact model."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import halfulp
from halfulp.checkpoint.movable import movable
from halfulp.numbers.formats import FORMATS, FRIENDLY, Format, get_format, resolve_name
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.rounding import decode, encode, storage_dtype
from support.oracle import value

ML_DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name)) for name in FORMATS if hasattr(ml_dtypes, name) and name != "int4"
}
ML_DTYPES["float16"] = np.dtype(np.float16)
ML_DTYPES["int4"] = np.dtype(ml_dtypes.int4)
ML_DTYPES["uint4"] = np.dtype(ml_dtypes.uint4)
SMALL = [f for f in FORMATS.values() if f.bits <= 16]


def all_codes(fmt: Format) -> torch.Tensor:
    codes = torch.arange(1 << fmt.bits, dtype=torch.int32)
    if fmt.bits == 16:
        return codes.to(torch.int16).view(storage_dtype(fmt))
    return codes.to(torch.uint8)


def reference_values(name: str) -> np.ndarray:
    """Value of every code according to ml_dtypes (numpy for float16)."""
    fmt, dtype = FORMATS[name], ML_DTYPES[name]
    codes = np.arange(1 << fmt.bits, dtype=np.uint16 if fmt.bits == 16 else np.uint8)
    if fmt.kind == "int":
        return codes.astype(np.int8).astype(dtype).astype(np.float32) if fmt.signed else codes.astype(np.float32)
    return codes.view(dtype).astype(np.float32)


def test_ml_dtypes_knows_what_we_take_from_it() -> None:
    assert {
        "bfloat16", "float16", "float8_e5m2", "float8_e4m3fn", "float8_e3m4", "float4_e2m1fn", "int4", "uint4",
    } == set(ML_DTYPES)  # fmt: skip


@pytest.mark.parametrize("name", ML_DTYPES)
def test_every_code_decodes_as_in_ml_dtypes(name: str) -> None:
    fmt, expected = FORMATS[name], reference_values(name)
    got = decode(all_codes(fmt), fmt).numpy()
    scalar = np.array([fmt.decode(c) for c in range(1 << fmt.bits)], dtype=np.float32)
    for values in (got, scalar):
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(np.signbit(values[expected == 0]), np.signbit(expected[expected == 0]))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_every_code_encodes_as_in_ml_dtypes(name: str) -> None:
    """A code's value goes back to that code; infinity saturates, NaN and -8 (int4) have a code of their own."""
    fmt, values = FORMATS[name], reference_values(name)
    regular = np.isfinite(values)
    if name == "int4":
        regular &= values != -8
    codes = encode(torch.from_numpy(values[regular].copy()), fmt)
    np.testing.assert_array_equal(as_ints(codes), np.arange(1 << fmt.bits)[regular])
    if name == "int4":
        assert encode(torch.tensor([-8.0]), fmt).tolist() == [16 - 7]


@pytest.mark.parametrize("name", [n for n in ML_DTYPES if FORMATS[n].kind == "float"])
def test_nan_encodes_as_in_ml_dtypes(name: str) -> None:
    """A NaN's code is one that ml_dtypes reads as NaN; where the format has none, the code that ml_dtypes writes."""
    fmt, dtype = FORMATS[name], ML_DTYPES[name]
    code = int(as_ints(encode(torch.tensor([math.nan]), fmt))[0])
    assert code == fmt.nan_code
    with np.errstate(invalid="ignore"):
        theirs = int(np.array([math.nan], np.float32).astype(dtype).view(np.uint16 if fmt.bits == 16 else np.uint8)[0])
    assert code == theirs


def as_ints(codes: torch.Tensor) -> np.ndarray:
    return codes.view(torch.int16).numpy().view(np.uint16) if codes.dtype != torch.uint8 else codes.numpy()


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_every_code_decodes_as_in_the_exact_model(fmt: Format) -> None:
    codes = range(1 << fmt.bits)
    expected = [value(fmt, c) for c in codes]
    assert [None if not math.isfinite(fmt.decode(c)) else fmt.decode(c) for c in codes] == expected


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_grid_max_and_smallest(fmt: Format) -> None:
    values = {v for c in range(1 << fmt.bits) if (v := value(fmt, c)) is not None}
    if fmt.kind == "int" and fmt.signed:
        values.discard(min(values))  # the most negative code is never written
    grid = fmt.grid()
    assert list(grid) == sorted(values)
    assert fmt.max == max(values)
    assert fmt.decode(fmt.max_code) == fmt.max
    assert fmt.smallest == min(v for v in values if v > 0)
    assert fmt.reach == (min(max(values), -min(values)) if fmt.signed else max(values))
    assert 0.0 in grid
    if fmt.signed and fmt.kind != "codebook":
        assert grid == tuple(-v for v in reversed(grid))


@pytest.mark.parametrize(
    ("name", "largest", "smallest"),
    [
        ("float32", 3.4028234663852886e38, 1.401298464324817e-45),
        ("bfloat16", 3.3895313892515355e38, 9.183549615799121e-41),
        ("float16", 65504.0, 2**-24),
        ("float8_e5m2", 57344.0, 2**-16),
        ("float8_e4m3fn", 448.0, 2**-9),
        ("float8_e3m4", 15.5, 2**-6),
        ("float4_e2m1fn", 6.0, 0.5),
        ("ufloat4_e2m2", 7.0, 0.25),
        ("int4", 7.0, 1.0),
        ("uint4", 15.0, 1.0),
        ("dynamic8", 1.0, 5.5e-7),
        ("udynamic8", 1.0, 3.25e-7),
    ],
)
def test_published_ranges(name: str, largest: float, smallest: float) -> None:
    fmt = FORMATS[name]
    assert fmt.max == largest
    assert fmt.smallest == pytest.approx(smallest, rel=1e-7)


# ---------------------------------------------------------------- the dynamic codebook


def dynamic_map(signed: bool) -> np.ndarray:
    """The block-wise dynamic map, written from section 1.3 of arXiv 2110.02861 in single precision.

    A run of zero bits sets the decade, a 1 ends it, and the bits left count linearly from 0.1 to 1: with `i` bits left
    there are ``2**i`` fractions (twice as many without a sign bit), the middles of equal parts.
    """
    values = [np.float32(0), np.float32(1)]
    for bits_left in range(7):
        count = 2 ** (bits_left if signed else bits_left + 1)
        edges = np.linspace(np.float32(0.1), np.float32(1), count + 1, dtype=np.float32)
        fractions = (edges[:-1] + edges[1:]) / np.float32(2)
        decade = [np.float32(10 ** (bits_left - 6)) * f for f in fractions]
        values += decade + ([-v for v in decade] if signed else [])
    return np.sort(np.array(values, dtype=np.float32))


@pytest.mark.parametrize(("name", "signed"), [("dynamic8", True), ("udynamic8", False)])
def test_dynamic_codebook_is_the_published_one(name: str, signed: bool) -> None:
    levels = np.array(FORMATS[name].levels, dtype=np.float32)
    expected = dynamic_map(signed)
    assert len(levels) == len(set(levels.tolist())) == len(expected) == 256
    # the published map uses fp32 linspace, ours double rounded once: at most two units apart
    np.testing.assert_array_max_ulp(levels, expected, maxulp=2)


def test_dynamic_codebook_known_values() -> None:
    """Values that bitsandbytes prints for ``create_dynamic_map()``."""
    levels = np.array(FORMATS["dynamic8"].levels)
    np.testing.assert_allclose(levels[:3], [-0.9929687, -0.9789062, -0.9648437], rtol=1e-6)
    np.testing.assert_allclose(levels[-3:], [0.9789062, 0.9929687, 1.0], rtol=1e-6)
    assert levels[127] == 0.0
    np.testing.assert_allclose(levels[128:131], [5.5e-7, 3.25e-6, 7.75e-6], rtol=1e-6)
    assert np.sum(levels < 0) == 127  # -1 is not a level
    assert FORMATS["udynamic8"].levels[0] == 0.0


# ---------------------------------------------------------------- names and rows


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("bf61", "bf16"), ("float8_e4m3", "float8_e4m3fn"), ("ufloat4_e2m", "ufloat4_e2m2"), ("4bits", "4bit")],
)
def test_unknown_name_suggests_the_nearest_and_lists_all(given: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown state format '{given}'. Did you mean '{nearest}'?") as error:
        get_format(given)
    assert all(name in str(error.value) for name in (*FRIENDLY, *FORMATS))


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(ValueError, match=r"unknown state format 'zzz'\. Known:"):
        resolve_name("zzz", signed=True)


def test_friendly_names() -> None:
    """The published choices, and rows that exist, with a sign where the slot needs one."""
    published = {
        "bf16": ("bfloat16", "bfloat16"), "fp8": ("float8_e4m3fn", "float8_e4m3fn"),
        "fp4": ("float4_e2m1fn", "ufloat4_e2m2"), "int8": ("dynamic8", "udynamic8"), "int4": ("int4", "uint4"),
    }  # fmt: skip
    for name, (signed, unsigned) in FRIENDLY.items():
        assert get_format(name).signed
        assert (get_format(name, signed=True).name, get_format(name, signed=False).name) == (signed, unsigned)
        assert published.get(name, (signed, unsigned)) == (signed, unsigned)
    bits = {name: {get_format(name, signed=s).bits for s in (True, False)} for name in FRIENDLY}
    assert bits == {
        "fp32": {32}, "bf16": {16}, "fp16": {16}, "fp8": {8}, "int8": {8}, "8bit": {8}, "fp4": {4}, "int4": {4},
        "4bit": {4},
    }  # fmt: skip


def test_rows_are_frozen_hashable_and_picklable() -> None:
    assert len({hash(f) for f in FORMATS.values()}) == len(FORMATS)
    for name, fmt in FORMATS.items():
        assert fmt.name == name == str(fmt)
        assert pickle.loads(pickle.dumps(fmt)) == fmt
    with pytest.raises(AttributeError):
        FORMATS["int4"].bits = 8  # type: ignore[misc]


def test_questions_without_an_answer_are_errors() -> None:
    with pytest.raises(ValueError, match="not a float format"):
        _ = FORMATS["int4"].epsilon
    with pytest.raises(ValueError, match="too many values"):
        FORMATS["float32"].grid()
    with pytest.raises(ValueError, match="not a value of int4"):
        FORMATS["int4"].encode_exact(0.5)
    with pytest.raises(ValueError, match="has codes 0 to 15, got 16"):
        FORMATS["int4"].decode(16)


E4M3 = {"kind": "float", "bits": 8, "signed": True, "exponent_bits": 4, "mantissa_bits": 3, "bias": 7}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "float", "bits": 8, "signed": True, "exponent_bits": 4, "mantissa_bits": 4}, "bits"),
        ({"kind": "int", "bits": 5, "signed": True}, "4, 8, 16 or 32"),
        ({"kind": "codebook", "bits": 4, "signed": False, "levels": (0.0, 0.5, 0.25, *range(2, 15))}, "increasing"),
        ({"kind": "codebook", "bits": 4, "signed": False, "levels": tuple(range(17))}, "16 levels, got 17"),
        ({"kind": "codebook", "bits": 4, "signed": False, "levels": tuple(range(1, 17))}, "zero"),
        ({"kind": "codebook", "bits": 4, "signed": False, "levels": tuple(range(-1, 15))}, "signed"),
        ({"kind": "codebook", "bits": 4, "signed": True, "levels": (*range(-7, 0), -0.0, *range(1, 9))}, "not -0.0"),
        ({"kind": "codebook", "bits": 4, "signed": True, "levels": list(range(-7, 9))}, "tuple of Python numbers"),
        ({"kind": "codebook", "bits": 4, "signed": True, "levels": torch.arange(-7, 9)}, "tuple of Python numbers"),
        ({"kind": "codebook", "bits": 4, "signed": True, "levels": ("0",) * 16}, "tuple of Python numbers"),
        ({"kind": "codebook", "bits": 4, "signed": True, "levels": tuple(range(-7, 9)), "bias": 3}, "only floats"),
        ({"kind": "posit", "bits": 8, "signed": True}, "kind"),
        ({**E4M3, "bits": 8.0}, "bits is an integer >= 0, got 8.0"),
        ({**E4M3, "exponent_bits": 4.0}, "exponent_bits is an integer"),
        ({**E4M3, "exponent_bits": 8, "mantissa_bits": -1}, "mantissa_bits is an integer >= 0, got -1"),
        ({**E4M3, "bias": 7.0}, "bias is an integer, got 7.0"),
        ({**E4M3, "bias": None}, "bias is an integer, got None"),
        ({**E4M3, "special": "nan"}, "special is 'ieee', 'fn' or 'none', got 'nan'"),
        ({**E4M3, "signed": "no"}, "signed is True or False, got 'no'"),
        ({**E4M3, "levels": (0.0, 1.0)}, "only a codebook has levels"),
        ({**E4M3, "name": "float32"}, "another format 'float32'"),
        ({**E4M3, "name": "mine:pow2"}, "letters, digits"),
        ({**E4M3, "name": "mine,exp_avg_sq=int4"}, "letters, digits"),
        ({**E4M3, "name": ""}, "letters, digits"),
        ({**E4M3, "name": 8}, "letters, digits"),
    ],
)
def test_a_row_that_cannot_work_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Format(**{"name": "mine", **fields})


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_names_the_format_of_its_values(dtype: torch.dtype, signed: bool) -> None:
    fmt = get_format(dtype, signed=signed)
    assert (fmt.max, fmt.bits) == (torch.finfo(dtype).max, torch.finfo(dtype).bits)
    assert fmt is FORMATS[str(dtype).removeprefix("torch.")]
    assert Quantizer(dtype).format is fmt  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.int8, "torch.int8 is no state format; dtypes that are: torch.float32, torch.bfloat16, torch.float16"),
        (torch.float64, "torch.float64 is no state format"),
        (8, "given by name, as a Format or as a torch dtype; got 8"),
        (None, "given by name, as a Format or as a torch dtype; got None"),
    ],
)
def test_what_is_no_format(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_format(given)  # type: ignore[arg-type]


EIGHTHS = Format("my_eighths", "codebook", 4, True, levels=tuple(i / 8 for i in range(-7, 9)))


@pytest.fixture
def registered() -> Iterator[Format]:
    yield halfulp.register_format(EIGHTHS)
    del FORMATS[EIGHTHS.name]


def test_a_registered_format_is_known_by_its_name(registered: Format, tmp_path: Path) -> None:
    """To states, conversion, files, check and the monitor."""
    p = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = halfulp.AdamW([p], state={"exp_avg": "my_eighths"}, min_size=0)
    watch = halfulp.StallMonitor(optimizer, every=1)
    for step in range(3):
        p.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    assert optimizer.group_quantizers(optimizer.param_groups[0])["exp_avg"].format is registered
    assert "exp_avg" in {m.slot for m in watch.measure()}
    row = next(r for r in movable(optimizer.state_dict()) if r.slot == "exp_avg")
    assert row.format.startswith("my_eighths")

    halfulp.save_optimizer(optimizer, tmp_path / "o.safetensors")
    again = halfulp.AdamW([p], state={"exp_avg": "my_eighths"}, min_size=0)
    halfulp.load_optimizer(again, tmp_path / "o.safetensors")
    assert torch.equal(again.state[p]["exp_avg"], optimizer.state[p]["exp_avg"])

    plain = torch.optim.AdamW([p])
    plain.load_state_dict(halfulp.convert_state_dict(optimizer.state_dict(), to=plain))
    assert torch.equal(plain.state[p]["exp_avg"], optimizer.state_tensor(p, "exp_avg"))


@pytest.mark.parametrize(
    ("fmt", "error", "message"),
    [
        (Format("8bit", "codebook", 4, True, levels=EIGHTHS.levels), ValueError, "another format '8bit'"),
        (Format("int4", "codebook", 4, True, levels=EIGHTHS.levels), ValueError, "another format 'int4'"),
        (Format("my_eighths", "codebook", 4, True, levels=(*EIGHTHS.levels[:-1], 2.0)), ValueError, "name of its own"),
        ("fp8", TypeError, "a Format is registered, got 'fp8'"),
    ],
)
def test_what_cannot_be_registered(registered: Format, fmt: Any, error: type[Exception], message: str) -> None:
    known = dict(FORMATS)
    with pytest.raises(error, match=message):
        halfulp.register_format(fmt)
    assert known == FORMATS
    assert halfulp.register_format(replace(EIGHTHS)) is registered  # registering the same format again
