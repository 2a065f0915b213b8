"""Block-scaled states: the ensemble's law against simulations with the library's own quantizers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from halfulp import Quantizer, Scaling, get_format
from halfulp.theory.blocks import BlockLaw, Blocks, block_law, draw_sizes, follow
from halfulp.theory.chain import Chain
from halfulp.theory.drive import GRADIENT, SQUARE, Drive
from halfulp.theory.simulation import SCENARIOS, Snapshot, simulate
from halfulp.theory.transient import transient


def _both(
    name: str, kind: str, rounding: str, spread: float, slot: str = "exp_avg_sq", beta: float = 0.97, steps: int = 150
) -> tuple[BlockLaw, list[Snapshot]]:
    """The prediction, and a simulation with codes and scales as they are stored; equal sizes, other draws."""
    square = slot == "exp_avg_sq"
    fmt = get_format(name, signed=not square)
    sizes = draw_sizes(512 if spread else 128, 128, spread)  # unequal blocks differ more
    blocks = Blocks(fmt, beta, rounding, SQUARE if square else GRADIENT, kind, zero_floor=square)
    quantizer = Quantizer(fmt, Scaling(kind), rounding, square)  # type: ignore[arg-type]
    snapshots = simulate(quantizer, beta=beta, steps=steps + 1, slot=slot, sizes=torch.from_numpy(sizes))
    return follow(blocks, sizes, np.ones(steps + 1)), list(snapshots)


def _near(law: BlockLaw, seen: list[Snapshot], last: int, ages: int = 20) -> None:
    """Averages over some ages: when a scale jumps a whole block moves, so that single ages are noisy."""
    mine = slice(last - ages + 1, last + 1)
    of = seen[mine], seen[last - ages : last]  # a snapshot shows an update and the state after it
    assert law.stalled[mine].mean() == pytest.approx(np.mean([s.stalled for s in of[0]]), abs=0.02)
    if law.stalled[last] < 0.1:  # with power-of-two scales few blocks, which move each step or never, decide
        assert law.codes_stalled[mine].mean() == pytest.approx(np.mean([s.codes_stalled for s in of[0]]), abs=0.02)
    assert law.lag[mine].mean() == pytest.approx(np.mean(np.log([s.ratio for s in of[1]])), abs=0.02)
    assert law.zeros[mine].mean() == pytest.approx(np.mean([s.zeros for s in of[1]]), abs=0.02)


CELLS = [
    (name, kind, rounding, spread)
    for name, spread in (("float8_e4m3fn", 0.0), ("ufloat4_e2m2", 1.0), ("ufloat4_e3m1", 0.0), ("uint4", 0.0))
    for kind in ("pow2", "fp32")
    for rounding in ("nearest", "stochastic")
]


@pytest.mark.parametrize(("name", "kind", "rounding", "spread"), CELLS)
def test_second_moments(name: str, kind: str, rounding: str, spread: float) -> None:
    ages = (30, 60) if spread else (30, 90, 150)
    law, seen = _both(name, kind, rounding, spread, steps=ages[-1])
    for age in ages:
        _near(law, seen, age)


@pytest.mark.parametrize("kind", ["pow2", "fp32"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(("name", "spread"), [("fp4", 0.0), ("fp4", 1.0), ("fp8", 1.0)])
def test_first_moments(name: str, spread: float, rounding: str, kind: str) -> None:
    law, seen = _both(name, kind, rounding, spread, "exp_avg", 0.9, 40)
    _near(law, seen, 20, 10)
    _near(law, seen, 40)


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
    shares = {}
    for name in ("ufloat4_e2m2", "ufloat4_e3m1", "ufloat4_e4m0"):
        law, seen = _both(name, "pow2", "stochastic", 1.0, steps=60)
        shares[name] = seen[59].zeros
        assert law.zeros[60] == pytest.approx(seen[59].zeros, abs=0.05)
        assert law.stalled[60] == pytest.approx(seen[60].stalled, abs=0.02)
    assert shares["ufloat4_e2m2"] > shares["ufloat4_e3m1"] > shares["ufloat4_e4m0"]
    assert shares["ufloat4_e2m2"] > 0.7


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


BAD = [
    (lambda: Blocks(get_format("fp32"), 0.9, "nearest"), "float32 is not rounded"),
    (lambda: Blocks(get_format("fp8"), 0.9, "nearest", scale_kind="int"), "'pow2' or 'fp32'"),
    (lambda: Blocks(get_format("fp8"), 0.9, "odd"), "rounding is"),
    (lambda: Blocks(get_format("fp8"), 1.0, "nearest"), "beta is between"),
    (lambda: Blocks(get_format("fp8"), 0.9, "nearest", spread=-1.0), "spread is not negative"),
    (lambda: Blocks(get_format("uint4"), 0.9, "nearest", GRADIENT), "has no sign"),
    (lambda: block_law(Blocks(get_format("fp8"), 0.9, "nearest"), -1), "not negative"),
    (lambda: list(simulate(Quantizer("bfloat16"), beta=2.0, steps=1)), "beta is in"),
    (lambda: list(simulate(Quantizer("bfloat16"), beta=0.9, steps=1, slot="m")), "slot is"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
