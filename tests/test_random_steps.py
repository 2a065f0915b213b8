"""The bit contract for random configurations: C against the reference, for whole optimizers and single states.

``HALFULP_FUZZ=10`` runs ten times as many, with the same seeds first, and ``HALFULP_FIRST_SEED`` starts from another
one. Cases that once differed are rows of ONCE or
LIMITS.
"""

from __future__ import annotations

import logging

import pytest
import torch

import halfulp
from halfulp.kernels import native
from halfulp.numbers.formats import Format
from halfulp.numbers.quantizer import Quantizer
from halfulp.numbers.scaling import Scaling
from support import random_codecs, random_steps
from support.processes import python
from support.seeds import FIRST, many

MANY = many("HALFULP_FUZZ", 1)
PARTS = 4
ONCE: dict[str, tuple[Quantizer, float]] = {
    "a codebook beyond a scale at its limit": (Quantizer("dynamic8", rounding="stochastic"), 3e38),
    "nearest": (Quantizer("dynamic8"), -3e38),
    "its unsigned one": (Quantizer("udynamic8", Scaling(block_size=30), "stochastic"), 3e38),
    "fp32 scales": (Quantizer("dynamic8", Scaling("fp32"), "stochastic"), 3.4028234663852886e38),
    "negative values in an unsigned codebook": (Quantizer("udynamic8", Scaling(block_size=16)), -1.0),
    "the same at random": (Quantizer("udynamic8", Scaling(block_size=30), "stochastic"), -1.0),
    "a bias that a scale cannot take": (Quantizer(Format("e2m5", "float", 8, True, 2, 5, -60, "fn")), 1e37),
    "one at the other end": (Quantizer(Format("e2m5", "float", 8, True, 2, 5, 60)), 1e-37),
    "odd blocks of 4 bits": (Quantizer(Format("e2m1", "float", 4, True, 2, 1, 7), Scaling(block_size=30)), 3e38),
}  # fmt: skip
"""Where C once had other codes, and the size of the values."""

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "halfulp")  # undone at the end of the test


@pytest.mark.parametrize("shape", [(9, 700), (257,), (3, 1)])
@pytest.mark.parametrize("name", ONCE)
def test_states_that_once_differed(name: str, shape: tuple[int, ...]) -> None:
    quantizer, size = ONCE[name]
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * size
    x[..., 0] = size
    assert random_codecs.compare(random_codecs.Case(quantizer, x)) is None


@pytest.mark.parametrize("part", range(PARTS))
def test_states_at_random(part: int) -> None:
    count = 300 * MANY
    agreed, differed = random_codecs.search(FIRST + part * count, count)
    assert not differed, "\n".join(differed)
    assert agreed > 0.9 * count


@pytest.mark.parametrize("part", range(PARTS))
def test_optimizers_at_random(part: int) -> None:
    count = 30 * MANY
    tally = random_steps.search(FIRST + part * count, count)
    assert not tally.differed, "\n".join(tally.differed)
    assert tally.agreed >= 0.8 * count, f"{tally.refused} of {count} were refused"


@pytest.mark.parametrize("isa", native.isas()[1:] if native.why_not() is None else [])
def test_every_instruction_set(isa: str) -> None:
    code = f"""
from support import random_codecs, random_steps
agreed, differed = random_codecs.search({FIRST}, {200 * MANY})
assert not differed, differed
tally = random_steps.search({FIRST + 5000}, {20 * MANY})
assert not tally.differed, tally.differed
print(agreed + tally.agreed)
"""
    assert int(python(code, HALFULP_ISA=isa, timeout=600 * MANY)) >= 180 * MANY


LIMITS: list[tuple[str, type[torch.optim.Optimizer], dict[str, object]]] = [
    ("int8", halfulp.SGD, {"momentum": 0.999, "dampening": 0.5}),
    ("int8", halfulp.SGD, {"lr": 1e10, "momentum": 0.9, "weight_decay": 1e5, "block_size": 1000}),
    ("int8", halfulp.Lion, {"betas": (0.0, 0.0)}),
    ("int8", halfulp.Adam, {"betas": (0.5, 0.0)}),
    *((made, halfulp.SGD, {"momentum": 0.9, "block_size": block})
      for bias in (2, 7) for special in ("none", "ieee") for block in (30, 100)
      for made in [Format(f"e2m1b{bias}{special}", "float", 4, True, 2, 1, bias, special)]),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize("scale", ["pow2", "fp32"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(("state", "make", "hyper"), LIMITS)
def test_scales_at_their_limit(state: object, make: type, hyper: dict[str, object], rounding: str, scale: str) -> None:
    """The largest gradients take a block's scale to its end, where values exceed the format and are saturated."""
    options = {"state": state, "rounding": rounding, "scale": scale, "min_size": 0, "seed": 0, **hyper}
    c = random_steps.Configuration(
        5, make, options, ((9, 700), (300,)), (torch.float32, torch.bfloat16), ("largest", "huge", "largest"),
        (False, True), 1,
    )  # fmt: skip
    assert random_steps.compare(c) is None


BAD_FORMATS = {
    "a bias beyond fp32": ({"exponent_bits": 4, "mantissa_bits": 3, "bias": 120}, "exponents go from"),
    "numbers beyond fp32": ({"exponent_bits": 4, "mantissa_bits": 3, "bias": -119}, "exponents go from"),
    "no exponent": ({"exponent_bits": 0, "mantissa_bits": 7}, "has an exponent bit"),
    "ieee without mantissa": (
        {"exponent_bits": 7, "mantissa_bits": 0, "bias": 63, "special": "ieee"},
        "a mantissa bit",
    ),
    "16 bits": ({"bits": 16, "exponent_bits": 8, "mantissa_bits": 7, "bias": 127}, "has 4 or 8 bits"),
}


@pytest.mark.parametrize("name", BAD_FORMATS)
def test_formats_that_cannot_be_rounded_exactly_are_refused(name: str) -> None:
    fields, message = BAD_FORMATS[name]
    with pytest.raises(ValueError, match=message):
        Format(**{"name": "mine", "kind": "float", "bits": 8, "signed": True, **fields})  # type: ignore[arg-type]


def test_uneven_levels_are_refused_with_the_quantizer() -> None:
    levels = [float(torch.tensor(i * (1 + 4e-5 * i))) for i in range(256)]  # each gap is almost equal to the next
    with pytest.raises(ValueError, match="apart, evenly or not"):
        Quantizer(Format("book", "codebook", 8, False, levels=tuple(levels)))
