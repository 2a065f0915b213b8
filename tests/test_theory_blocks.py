"""Block-scaled states: the mean field against simulations with the library's own quantizers."""

from __future__ import annotations

import numpy as np
import pytest

from halfulp import Quantizer, Scaling, get_format
from halfulp.theory.blocks import BlockLaw, Blocks, block_law
from halfulp.theory.drive import GRADIENT, SQUARE
from halfulp.theory.simulation import SCENARIOS, Snapshot, simulate


def _both(
    name: str, kind: str, rounding: str, spread: float, slot: str = "exp_avg_sq", beta: float = 0.97, steps: int = 150
) -> tuple[BlockLaw, list[Snapshot]]:
    square = slot == "exp_avg_sq"
    fmt = get_format(name, signed=not square)
    law = block_law(Blocks(fmt, beta, rounding, SQUARE if square else GRADIENT, kind, 128, spread, square), steps)
    quantizer = Quantizer(fmt, Scaling(kind), rounding, square)  # type: ignore[arg-type]
    snapshots = simulate(quantizer, beta=beta, steps=steps + 1, slot=slot, coordinates=16384, spread=spread)
    return law, list(snapshots)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("name", ["fp8", "fp4", "int4"])
def test_power_of_two_scales(name: str, rounding: str) -> None:
    law, seen = _both(name, "pow2", rounding, 0.0)
    for age in (30, 80, 150):
        assert law.stalled[age] == pytest.approx(seen[age].stalled, abs=0.02)
        assert law.lag[age] == pytest.approx(np.log(seen[age - 1].ratio), abs=0.02)
        assert law.zeros[age] == pytest.approx(seen[age - 1].zeros, abs=0.02)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_first_moment_in_blocks(rounding: str) -> None:
    law, seen = _both("fp4", "pow2", rounding, 0.0, "exp_avg", 0.9, 40)
    for age in (20, 40):
        assert law.stalled[age] == pytest.approx(seen[age].stalled, abs=0.02)
        assert law.zeros[age] == pytest.approx(seen[age - 1].zeros, abs=0.02)


@pytest.mark.parametrize("name", ["fp8", "fp4"])
def test_fp32_scales_under_stochastic_rounding(name: str) -> None:
    law, seen = _both(name, "fp32", "stochastic", 0.0)
    assert law.stalled[150] == pytest.approx(seen[150].codes_stalled, abs=0.025)
    assert np.log(seen[149].ratio) == pytest.approx(0.0, abs=0.01)
    assert law.lag[150] == 0.0
    assert seen[150].stalled < 0.1  # codes stand still, values do not


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
    pow2, _ = _both("fp4", "pow2", "nearest", 0.0, beta=0.99, steps=300)
    fp32, _ = _both("fp4", "fp32", "nearest", 0.0, beta=0.99, steps=300)
    assert pow2.stalled[-1] > 0.95
    assert fp32.stalled[-1] > 0.95
    _, seen = _both("fp4", "fp32", "nearest", 0.0, beta=0.99, steps=300)
    assert seen[-1].stalled < 0.1 < seen[-1].codes_stalled


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
    (lambda: Blocks(get_format("bf16"), 0.9, "nearest"), "without scales"),
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
