"""Block-scaled states: the ensemble's distribution against simulations with the library's quantizers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import theory_blocks
import torch

from halfulp import Quantizer, Scaling, get_format
from halfulp.numbers.formats import FORMATS
from halfulp.rules.drives import GRADIENT, SQUARE, Drive
from halfulp.theory.blocks import Blocks, block_law, follow
from halfulp.theory.chain import Chain
from halfulp.theory.simulation import SCENARIOS, simulate, simulate_blocks
from halfulp.theory.sizes import draw_sizes
from halfulp.theory.storing import Storing, pow2_exponent
from halfulp.theory.transient import transient


def _quantizer(name: str, kind: str, rounding: str, square: bool) -> Quantizer:
    return Quantizer(get_format(name, signed=not square), Scaling(kind), rounding, square)  # type: ignore[arg-type]


def _agree(
    name: str, kind: str, rounding: str, spread: float, slot: str = "exp_avg_sq", beta: float = 0.9, steps: int = 30,
    seed: int = 0,
) -> None:  # fmt: skip
    """Stalled fraction, lag and share of zeros at every age, of the law and of codes and scales as they are stored."""
    square = slot == "exp_avg_sq"
    quantizer = _quantizer(name, kind, rounding, square)
    drive = SQUARE if square else GRADIENT
    blocks = Blocks(quantizer.format, beta, rounding, drive, kind, spread=spread, zero_floor=square)
    law = block_law(blocks, steps, precision=0.005, seed=seed)
    assert law.errors.max() <= 0.005 or law.paths == 8192
    seen = simulate_blocks(quantizer, beta=beta, steps=steps, slot=slot, spread=spread, precision=0.005, seed=seed)
    for i, figure in enumerate(("stalled", "lag", "zeros")):
        np.testing.assert_allclose(law.moment(figure)[1:], seen.figures[:, i], atol=0.02, err_msg=figure)


CELLS = [
    (name, kind, rounding, spread)
    for name, spread in (("float8_e4m3fn", 0.0), ("ufloat4_e2m2", 1.0), ("ufloat4_e3m1", 0.0), ("uint4", 0.0))
    for kind in ("pow2", "fp32")
    for rounding in ("nearest", "stochastic")
]


@pytest.mark.parametrize(("name", "kind", "rounding", "spread"), CELLS)
def test_second_moments(name: str, kind: str, rounding: str, spread: float) -> None:
    _agree(name, kind, rounding, spread)


@pytest.mark.parametrize("kind", ["pow2", "fp32"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(("name", "spread"), [("fp4", 0.0), ("fp4", 1.0), ("fp8", 1.0)])
def test_first_moments(name: str, spread: float, rounding: str, kind: str) -> None:
    _agree(name, kind, rounding, spread, "exp_avg", 0.8, 12)


SCALED = [f.name for f in FORMATS.values() if f.scaled]


@pytest.mark.parametrize("kind", ["pow2", "fp32"])
@pytest.mark.parametrize("name", SCALED)
def test_nearest_rounding_is_the_librarys_bit_by_bit(name: str, kind: str) -> None:
    """Levels, the middles between them, and the numbers beside both; and blocks of any size."""
    fmt, rng = get_format(name), np.random.default_rng(0)
    grid = np.array([x for x in fmt.grid() if abs(x) <= fmt.reach], dtype=np.float32)
    edges = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2]).astype(np.float32)
    near = rng.choice(edges, (64, 127)) + rng.integers(-1, 2, (64, 127)) * np.float32(2**-30)
    near[:32] = rng.choice(edges, (32, 127))
    sizes = (
        np.exp2(rng.uniform(-24, 0, (64, 127))) * fmt.reach * (rng.choice([-1.0, 1.0], (64, 127)) if fmt.signed else 1)
    )
    y = np.vstack([near, sizes]).clip(-fmt.reach if fmt.signed else 0, fmt.reach)
    y = np.hstack([np.full((128, 1), fmt.reach), y]).astype(np.float32)
    y[96:] *= np.exp2(rng.uniform(-20, 20, (32, 1))).astype(np.float32)
    blocks = Blocks(fmt, 0.9, "nearest", GRADIENT if fmt.signed else SQUARE, kind, zero_floor=not fmt.signed)
    stored, _ = Storing(blocks, rng).store(y)
    quantizer = _quantizer(name, kind, "nearest", not fmt.signed)
    codes, scale = quantizer.quantize(torch.from_numpy(y))
    np.testing.assert_array_equal(stored, quantizer.dequantize(codes, scale, y.shape).numpy())


@pytest.mark.parametrize("seed", range(8))
def test_cells_drawn_at_random(seed: int) -> None:
    draw = random.Random(seed)
    name, slot = draw.choice(SCALED), draw.choice(("exp_avg", "exp_avg_sq"))
    slot = slot if get_format(name).signed else "exp_avg_sq"
    beta = draw.uniform(0.6, 0.95)
    spread = draw.choice((0.0, 0.5, 1.0, 2.0))
    how, kind = draw.choice(("nearest", "stochastic")), draw.choice(("pow2", "fp32"))
    _agree(name, kind, how, spread, slot, beta, 16, 100 + seed)


@pytest.mark.parametrize(("name", "kind"), [("ufloat4_e3m1", "fp32"), ("ufloat4_e2m2", "pow2")])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_standard_errors_are_those_of_ensembles_drawn_apart(name: str, kind: str, spread: float) -> None:
    blocks = Blocks(get_format(name), 0.9, "nearest", scale_kind=kind, spread=spread)
    laws = [block_law(blocks, 25, paths=128, seed=1000 * seed) for seed in range(24)]
    for figure in ("stalled", "lag"):
        apart = np.std([law.moment(figure)[5:] for law in laws], axis=0, ddof=1).mean()
        told = np.mean([law.error(figure)[5:] for law in laws])
        # sizes are spread evenly, which the differences between blocks do not account for
        assert apart < 1.25 * told + 1e-4, figure
        if not spread and told > 1e-3:
            assert apart > 0.6 * told, figure


def test_ensembles_are_put_together() -> None:
    blocks = Blocks(get_format("float4_e2m1fn"), 0.8, "nearest", GRADIENT, "fp32", spread=1.0, zero_floor=False)
    few, many = block_law(blocks, 10, paths=128), block_law(blocks, 10, paths=640)
    assert (few.paths, many.paths) == (128, 640)
    assert block_law(blocks, 10, precision=1.0).paths == 128
    ratio = np.mean(few.errors[3:], axis=0) / np.mean(many.errors[3:], axis=0)
    np.testing.assert_allclose(ratio, np.sqrt(5), rtol=0.35)
    whole = follow(blocks, draw_sizes(640, 128, 1.0), np.ones(11))
    np.testing.assert_allclose(many.errors[3:], whole.errors[3:], rtol=0.35)
    np.testing.assert_allclose(many.lag, whole.lag, atol=4 * many.error("lag").max())


def test_the_largest_sizes_are_those_of_normal_logarithms() -> None:
    drawn = np.sort(np.log(draw_sizes(2048, 128, 1.0, seed=3)), axis=1)
    phase = np.log(2) / 2
    plain = np.sort(np.random.default_rng(0).standard_normal((20000, 128)), axis=1)
    np.testing.assert_allclose(drawn.mean(axis=0) - phase, plain.mean(axis=0), atol=0.02)
    later = draw_sizes(64, 128, 1.0, seed=3, first=64)
    both = draw_sizes(128, 128, 1.0, seed=3)
    np.testing.assert_array_equal(np.sort(later, axis=1)[:, -8:], np.sort(both[64:], axis=1)[:, -8:])


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_power_of_two_blocks_follow_the_plain_chain(rounding: str) -> None:
    """Two theories of one thing: the grid stands still, and E4M3 has range enough for homogeneous blocks."""
    fmt = get_format("float8_e4m3fn")
    law = block_law(Blocks(fmt, 0.98, rounding), 120)
    chain = transient(Chain(fmt, 0.98, rounding), 120)
    np.testing.assert_allclose(law.stalled[10:], chain.stalled[10:], atol=0.015)
    np.testing.assert_allclose(law.lag[10:], chain.lag[10:], atol=0.02)


def test_formats_without_scales_follow_the_plain_chain_under_any_drive() -> None:
    fmt = get_format("bf16")
    drive = Drive("square", mixture=((0.5, 0.5), (0.5, 1.3)))
    law = block_law(Blocks(fmt, 0.99, "nearest", drive), 100)
    chain = transient(Chain(fmt, 0.99, "nearest", drive), 100)
    np.testing.assert_allclose(law.stalled, chain.stalled, atol=0.012)


def test_a_measured_path_of_the_scale() -> None:
    """A gradient that falls to a tenth: codes stand still, and the stored value is left too high."""
    sizes = draw_sizes(64, 128, 0.0)
    levels = np.where(np.arange(201) < 100, 1.0, 0.1)
    law = follow(Blocks(get_format("ufloat4_e2m2"), 0.97, "nearest"), sizes, levels)
    assert abs(law.lag[100]) < 0.5
    assert law.lag[200] > 1.0
    assert law.stalled[101:].min() > 0.99


def test_underflow_of_heterogeneous_blocks() -> None:
    """Most 4-bit codes of a second moment are zero where gradients differ by e-folds; more exponent helps."""
    e2m2, e3m1, e4m0 = (
        block_law(Blocks(get_format(name), 0.97, "stochastic", spread=1.0), 60).zeros[-1]
        for name in ("ufloat4_e2m2", "ufloat4_e3m1", "ufloat4_e4m0")
    )
    assert e2m2 > 0.7
    assert 0.3 < e3m1 < 0.6
    assert e4m0 < 0.05


def test_the_scale_kind_decides_what_nearest_rounding_does() -> None:
    pow2, fp32 = (
        block_law(Blocks(get_format("ufloat4_e2m2"), 0.999, "nearest", scale_kind=kind), 600)
        for kind in ("pow2", "fp32")
    )
    assert pow2.stalled[-1] > 0.95
    assert fp32.codes_stalled[-1] > 0.95
    assert fp32.stalled[-1] < 0.05
    assert pow2.lag[-1] < -1.0
    assert abs(fp32.lag[-1]) < 0.2


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenarios_on_an_exact_state(scenario: str) -> None:
    *_, last = simulate(Quantizer("float32"), beta=0.9, steps=100, sigma=SCENARIOS[scenario], coordinates=2048)
    assert last.stalled == 0
    assert last.ratio == pytest.approx(1.0, rel=1e-4)


def test_resets_in_the_simulation_start_the_average_again() -> None:
    run = list(simulate(Quantizer("bfloat16"), beta=0.99, steps=61, coordinates=2048, reset_every=30))
    assert run[30].mean < 0.1 * run[29].mean
    assert run[31].stalled < run[29].stalled


def test_the_benchmark_goes_on_where_it_was_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "table.csv"
    cells = [theory_blocks.Cell("uint4", "exp_avg_sq", "pow2", "nearest", 0.0, beta) for beta in (0.5, 0.6, 0.7)]
    options = {"longest": 4, "precision": 0.05, "most": 1024, "seed": 1}
    theory_blocks.compare(cells, out=tmp_path / "whole.csv", **options)  # type: ignore[arg-type]
    theory_blocks.compare(cells[:2], out=out, **options)  # type: ignore[arg-type]
    done = out.read_text()
    assert [row["age"] for row in theory_blocks.read(out)[cells[0]]] == ["1", "3", "4"]
    measured = []
    run = theory_blocks.measure
    monkeypatch.setattr(theory_blocks, "measure", lambda cell, *rest: measured.append(cell) or run(cell, *rest))
    theory_blocks.compare(cells, out=out, **options)  # type: ignore[arg-type]
    assert measured == cells[2:]
    assert out.read_text().startswith(done)
    assert out.read_text() == (tmp_path / "whole.csv").read_text()
    theory_blocks.compare(cells[:1], out=out, **{**options, "longest": 5})  # type: ignore[arg-type]
    assert measured == [cells[2], cells[0]]
    assert [row["age"] for row in theory_blocks.read(out)[cells[0]]] == ["1", "3", "5"]


BAD = [
    (lambda: Blocks(get_format("fp32"), 0.9, "nearest"), "float32 is not rounded"),
    (lambda: Blocks(get_format("fp8"), 0.9, "nearest", scale_kind="int"), "'pow2' or 'fp32'"),
    (lambda: Blocks(get_format("fp8"), 0.9, "odd"), "rounding is"),
    (lambda: Blocks(get_format("fp8"), 1.0, "nearest"), "beta is between"),
    (lambda: Blocks(get_format("fp8"), 0.9, "nearest", spread=-1.0), "spread is between 0 and 10, got -1.0"),
    (lambda: Blocks(get_format("uint4"), 0.9, "nearest", GRADIENT), "has no sign"),
    (lambda: block_law(Blocks(get_format("fp8"), 0.9, "nearest"), -1), "steps is a whole number of at least 0, got -1"),
    (lambda: block_law(Blocks(get_format("fp8"), 0.9, "nearest"), 1, precision=0.0), "standard error above 0"),
    (lambda: list(simulate(Quantizer("bfloat16"), beta=2.0, steps=1)), "beta is between 0 and 1, got 2.0"),
    (lambda: list(simulate(Quantizer("bfloat16"), beta=0.9, steps=1, slot="m")), "slot is"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("name", [f.name for f in FORMATS.values() if f.scaled])
def test_exponents_of_scales_are_the_library_s(name: str) -> None:
    fmt, rng = get_format(name), np.random.default_rng(0)
    limits = np.float32(fmt.reach) * np.exp2(np.arange(-20, 20))  # where the exponent changes
    largest = np.concatenate([np.exp(8 * rng.standard_normal(2000)), limits, [0.0]]).astype(np.float32)
    codes = Scaling("pow2").from_absmax(torch.from_numpy(largest), fmt).numpy()
    inside = (codes > 1) & (codes < 253)  # the only codes that a byte can hold
    assert inside.sum() > 1900
    assert np.array_equal(pow2_exponent(largest, fmt)[inside], codes[inside].astype(int) - 127)
