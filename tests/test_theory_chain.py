"""The Markov chain against the design's table, published figures, and simulations on the exact grids."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest

import halfulp
from halfulp import Quantizer, Scaling
from halfulp.numbers.formats import FORMATS, get_format
from halfulp.rules.drives import GRADIENT, SQUARE, WEIGHT, Drive
from halfulp.theory.blocks import Blocks, block_law
from halfulp.theory.chain import Chain
from halfulp.theory.predict import predict
from halfulp.theory.sampled_blocks import BLOCKS, PHASES, _Sampled, sampled_law
from halfulp.theory.simulation import simulate_blocks
from halfulp.theory.stationary import can_decrease, stationary
from halfulp.theory.transient import old_state, transient, transients
from halfulp.theory.walk import walk_stall
from support.published import BETA, CELLS, STALLED
from support.theory_oracle import round_free, simulate

# The stalled fraction of updates of a state of age 10, 100, 300, 1000, 3000; beta 0.999.
BUILD_UP = {
    ("bf16", "nearest"): (0.150, 0.451, 0.680, 0.890, 0.972),
    ("bf16", "stochastic"): (0.137, 0.407, 0.604, 0.769, 0.819),
    ("fp8", "nearest"): (0.487, 0.928, 0.984, 0.997, 0.999),
    ("fp8", "stochastic"): (0.457, 0.888, 0.961, 0.984, 0.988),
    ("fp4", "nearest"): (0.638, 0.972, 0.994, 0.999, 1.000),
    ("fp4", "stochastic"): (0.598, 0.943, 0.980, 0.992, 0.994),
}
ROUNDINGS = ("nearest", "stochastic")
FLOATS = [f.name for f in FORMATS.values() if f.kind == "float" and f.bits <= 16 and f.name != "float16"]
LISTED = ["linear8", "int4", "uint4", "dynamic8", "udynamic8", "ufloat4_e2m2", "float8_e5m2"]


@pytest.mark.parametrize(("fmt", "rounding"), BUILD_UP)
def test_build_up_table(fmt: str, rounding: str) -> None:
    curve = halfulp.stall_curve(fmt, beta=0.999, rounding=rounding, steps=3001)
    np.testing.assert_allclose(curve[[10, 100, 300, 1000, 3000]], BUILD_UP[fmt, rounding], atol=0.001)


@pytest.mark.parametrize(
    ("fmt", "rounding", "means"),
    [("bf16", "nearest", (0.673, 1.264)), ("fp8", "nearest", (0.183, 0.235)), ("fp4", "nearest", (0.108, 0.134)),
     ("fp8", "stochastic", (0.632, 0.950))],
)  # fmt: skip
def test_mean_under_nearest_is_off_and_under_stochastic_exact(
    fmt: str, rounding: str, means: tuple[float, float]
) -> None:
    law = transient(Chain(get_format(fmt, signed=False), 0.999, rounding), 3000)
    np.testing.assert_allclose(law.mean[[1000, 3000]], means, atol=0.0015)
    if rounding == "stochastic":
        np.testing.assert_allclose(law.mean, law.exact_mean, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("fmt", "rounding", "expected"),
    [("bf16", "nearest", 0.9458), ("bf16", "stochastic", 0.8250), ("fp8", "stochastic", 0.9888),
     ("fp4", "stochastic", 0.9944)],
)  # fmt: skip
def test_published_closed_forms(fmt: str, rounding: str, expected: float) -> None:
    got = halfulp.stall_probability(fmt, beta=0.999, rounding=rounding, model="one-step")
    assert round(got, 4) == expected


@pytest.mark.parametrize("slot", ["exp_avg", "exp_avg_sq"])
def test_curves_of_the_closed_forms_are_their_probabilities(slot: str) -> None:
    for model, grows in (("build-up", True), ("one-step", False)):
        how: Any = {"beta": 0.99, "rounding": "nearest", "slot": slot, "model": model}
        curve = halfulp.stall_curve("bf16", steps=6, **how)
        np.testing.assert_allclose(curve, [halfulp.stall_probability("bf16", age=t, **how) for t in range(6)])
        assert (curve[5] > curve[1]) == grows


@pytest.mark.parametrize("model", STALLED)
def test_published_measurements(model: str) -> None:
    steps, measured = STALLED[model]
    got = [halfulp.stall_curve(f, beta=BETA, rounding=r, steps=steps).mean() for f, r in CELLS]
    np.testing.assert_allclose(got, measured, atol=0.010)


def test_the_default_is_the_chain_at_three_windows() -> None:
    got = halfulp.stall_probability("fp8", beta=0.99, rounding="nearest")
    assert got == halfulp.stall_curve("fp8", beta=0.99, rounding="nearest", steps=301)[300]


def test_ages_may_be_asked_in_any_order_and_between_steps() -> None:
    late = halfulp.stall_probability("fp4", beta=0.97, rounding="nearest", age=50)
    early = halfulp.stall_probability("fp4", beta=0.97, rounding="nearest", age=5)
    between = halfulp.stall_probability("fp4", beta=0.97, rounding="nearest", age=5.5)
    after = halfulp.stall_probability("fp4", beta=0.97, rounding="nearest", age=6)
    assert late > after > early
    assert halfulp.stall_probability("fp4", beta=0.97, rounding="nearest", age=0) == 0.0  # a state of zero
    assert between == pytest.approx((early + after) / 2)


def _compare(chain: Chain, steps: int, n: int, seed: int = 0) -> None:
    square = chain.drive.nonnegative
    fmt = chain.format
    levels = None if chain.scale is None else np.array([v for v in fmt.grid() if not square or v >= 0])
    stalled, size = simulate(
        chain.beta, chain.rounding, steps, mantissa_bits=fmt.mantissa_bits, levels=levels, scale=chain.scale or 1.0,
        square=square, n=n, seed=seed,
    )  # fmt: skip
    law = transient(chain, steps)
    noise = 3.7 * np.sqrt(np.maximum(stalled * (1 - stalled), 1e-6) / n) + 0.0005
    assert (np.abs(law.stalled[: steps + 1] - stalled) < noise).all()
    mine = law.mean if square else np.sqrt(law.moment("square"))
    late = slice(steps // 2, steps + 1)
    if size[late].min() > 0.01:  # otherwise a few rare events determine the mean
        np.testing.assert_allclose(mine[late].mean(), size[late].mean(), rtol=0.01)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", FLOATS)
def test_second_moment_on_free_grids(name: str, rounding: str) -> None:
    _compare(Chain(get_format(name), 0.95, rounding), 60, 100_000)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", [f for f in FLOATS if FORMATS[f].signed])
def test_first_moment_on_free_grids(name: str, rounding: str) -> None:
    _compare(Chain(get_format(name), 0.9, rounding, GRADIENT), 30, 100_000)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", LISTED)
def test_fixed_grids(name: str, rounding: str) -> None:
    fmt = get_format(name)
    _compare(Chain(fmt, 0.9, rounding, SQUARE, scale=fmt.max / 3), 30, 100_000)
    if fmt.signed:
        noise = math.sqrt(0.1 / 1.9)
        _compare(Chain(fmt, 0.9, rounding, GRADIENT, scale=fmt.max / 4 / noise), 30, 100_000)


@pytest.mark.parametrize(("name", "beta", "steps"), [("float8_e4m3fn", 0.999, 400), ("ufloat4_e3m1", 0.9999, 300)])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_long_memories(name: str, beta: float, steps: int, rounding: str) -> None:
    _compare(Chain(get_format(name), beta, rounding), steps, 20_000)


@pytest.mark.parametrize("seed", range(6))
def test_formats_betas_and_ages_at_random(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fmt = get_format(str(rng.choice([f for f in FLOATS if f != "bfloat16"])))
    beta = 1 - 10 ** rng.uniform(-3.5, -0.5)
    drive = GRADIENT if fmt.signed and rng.random() < 0.5 else SQUARE
    _compare(Chain(fmt, beta, ROUNDINGS[seed % 2], drive), int(rng.integers(20, 150)), 40_000, seed)


def test_saturation_holds_the_mean_at_the_largest_value() -> None:
    fmt = get_format("uint4")
    law = transient(Chain(fmt, 0.9, "stochastic", SQUARE, scale=10 * fmt.max), 60)
    assert law.mean[-1] * 10 * fmt.max == pytest.approx(fmt.max, rel=0.1)


def test_a_fixed_half_precision_grid_underflows() -> None:
    small = transient(Chain(get_format("float16"), 0.9, "nearest", SQUARE, scale=2.0**-26), 30)
    assert small.moment("zeros")[-1] > 0.5
    free = transient(Chain(get_format("float16"), 0.9, "nearest", SQUARE, scale=1.0), 30)
    assert free.moment("zeros")[-1] < 1e-6
    np.testing.assert_allclose(free.mean[1:], free.exact_mean[1:], rtol=0.01)


def test_mostly_zero_gradients() -> None:
    drive = Drive("square", mixture=((0.9, 0.0), (0.1, 1.0)))
    chain = Chain(get_format("fp8"), 0.99, "nearest", drive)
    law = transient(chain, 200)
    rng = np.random.default_rng(0)
    power = 2.0 ** rng.random(50_000)
    v = np.zeros(50_000)
    for age in range(201):
        x = power * (rng.random(50_000) < 0.1) * rng.standard_normal(50_000) ** 2
        exact = 0.99 * v + 0.01 * x
        new = round_free(exact, 3, None)
        due = exact != v
        if age in (3, 30, 200):
            assert law.stalled[age] == pytest.approx(((new == v) & due).sum() / due.sum(), abs=0.012)
        v = new


def test_shared_second_moment_of_many_coordinates_stalls_more_evenly() -> None:
    one = transient(Chain(get_format("fp8"), 0.9, "nearest", SQUARE), 30)
    many = transient(Chain(get_format("fp8"), 0.9, "nearest", Drive("square", shared=64)), 30)
    assert many.deviation[-1] < one.deviation[-1]
    assert many.exact_deviation[-1] == pytest.approx(one.exact_deviation[-1] / 8)


def test_a_weight_average_stands_still_where_it_starts() -> None:
    """A weight of size 1 that moved by a tenth: a bf16 average at 0.9999 never follows, a stochastic one does."""
    drive = Drive("gradient", ratio=110.0)  # the mean is 110 deviations, and the average starts at 100
    stuck, moving = (
        transient(Chain(get_format("bf16"), 0.9999, r, drive, phases=8), 2000, start=100.0).mean[-1] for r in ROUNDINGS
    )
    assert stuck == pytest.approx(100.0, abs=0.4)
    assert moving == pytest.approx(110 - 10 * 0.9999**2000, abs=0.4)


@pytest.mark.parametrize("name", ["bf16", "fp8", "ufloat4_e3m1", *["float16"] * ("HALFULP_EVERY_CASE" in os.environ)])
def test_means_under_a_drift_do_not_depend_on_phases(name: str) -> None:
    rates = (0.025, 0.1)
    few, many = (
        transients(Chain(get_format(name), 0.995, "stochastic", phases=p, fineness=2), rates, 1000) for p in (4, 16)
    )
    for a, b in zip(few, many, strict=True):
        # stochastic rounding keeps the mean, except that the scale falls by a whole phase at a time
        np.testing.assert_allclose(b.mean[50:], b.exact_mean[50:], rtol=0.015)
        np.testing.assert_allclose(a.mean[50:], a.exact_mean[50:], rtol=0.06)
        assert a.mean[50:].mean() == pytest.approx(a.exact_mean[50:].mean(), rel=0.02)


def test_drifting_scale() -> None:
    fmt = get_format("fp8")
    rate, beta, steps = 0.1, 0.99, 300
    law = transients(Chain(fmt, beta, "nearest"), (rate,), steps)[0]
    rng = np.random.default_rng(0)
    n = 40_000
    power, v = 2.0 ** ((rng.permutation(n) + 0.5) / n), np.zeros(n)
    for _ in range(steps):
        power = power * math.exp(-2 * rate * (1 - beta))
        v = round_free(beta * v + (1 - beta) * power * rng.standard_normal(n) ** 2, 3, None)
    assert law.mean[steps] == pytest.approx(np.mean(v / power), rel=0.01)
    fall = math.exp(-2 * rate * (1 - beta))
    inputs = sum((1 - beta) * beta ** (steps - j) * fall ** (j - steps) for j in range(1, steps + 1))
    assert law.exact_mean[steps] == pytest.approx(inputs, rel=1e-6)


@pytest.mark.parametrize(("name", "beta"), [("fp8", 0.999), ("bf16", 0.99), ("fp4", 0.9)])
def test_stationary_law_of_stochastic_rounding(name: str, beta: float) -> None:
    fmt = get_format(name, signed=False)
    law = stationary(Chain(fmt, beta, "stochastic"))
    assert law.mean == pytest.approx(1.0, rel=1e-6)
    walked = transient(Chain(fmt, beta, "stochastic"), round(20 / (1 - beta)))
    assert law.stalled == pytest.approx(walked.stalled[-1], abs=1e-4)
    if name == "fp8":
        assert law.deviation**2 == pytest.approx(0.35 / 8, rel=0.03)


def test_states_of_any_age_have_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    fp8, old = get_format("fp8", signed=False), 10**12
    limit = stationary(Chain(fp8, 0.999, "stochastic")).stalled
    assert predict(fp8, "stochastic", SQUARE, 0.999, old) == pytest.approx(limit, abs=1e-4)
    nearest = [predict(fp8, "nearest", SQUARE, 0.999, age) for age in (1e5, 1e6, 1e9, old)]
    assert nearest == sorted(nearest)  # nothing settles under nearest rounding: rare inputs still move a state up
    assert 1 - 1e-12 < nearest[-1] < 1
    signed = [predict("int8", "nearest", GRADIENT, 0.5, age) for age in (60, 127, old)]
    assert signed[1] == signed[2] == pytest.approx(signed[0], abs=0.01)
    chain = Chain(fp8, 0.99, "nearest", phases=4)
    monkeypatch.setattr("halfulp.theory.transient.YOUNG", 500)
    every, few = transient(chain, 20_000), old_state(chain, 20_000)
    assert len(few.ages) < 2500
    np.testing.assert_allclose(np.interp(every.ages, few.ages, few.stalled), every.stalled, atol=1e-5)


def test_coarse_first_moments_have_heavy_tails() -> None:
    """Rounding adds in proportion to the value: at 0.999 the root mean square is three times that of an exact one."""
    chain = Chain(get_format("float4_e2m1fn"), 0.999, "stochastic", GRADIENT)
    law = transient(chain, 3000)
    _, size = simulate(0.999, "stochastic", 400, mantissa_bits=1, square=False, n=40_000)
    root = np.sqrt(law.moment("square"))
    assert root[300:401].mean() == pytest.approx(size[300:].mean(), rel=0.02)
    assert root[3000] / law.exact_deviation[3000] == pytest.approx(3.07, abs=0.01)


@pytest.mark.parametrize(("name", "beta"), [("bf16", 0.99), ("bf16", 0.999), ("fp8", 0.9)])
def test_windows_thinning_and_strides_change_nothing(name: str, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step at a time on the whole of a finer grid, against the defaults."""
    fmt, steps = get_format(name, signed=False), 400
    fast = transient(Chain(fmt, beta, "nearest"), steps)
    monkeypatch.setattr("halfulp.theory.transient.STRIDES", steps)
    slow = transient(Chain(fmt, beta, "nearest", phases=12, fineness=4), steps)
    np.testing.assert_allclose(fast.stalled, slow.stalled, atol=0.001)
    np.testing.assert_allclose(fast.mean, slow.mean, rtol=1e-3)


def test_no_decrease_threshold() -> None:
    assert not can_decrease(Chain(get_format("bf16"), 1 - 2.0**-9, "nearest"))
    assert can_decrease(Chain(get_format("bf16"), 1 - 2.0**-8, "nearest"))
    with pytest.raises(ValueError, match="can rise but not fall"):
        stationary(Chain(get_format("bf16"), 0.999, "nearest"))


BAD = [
    (lambda: Chain(get_format("fp8"), 1.0, "nearest"), "beta is between 0 and 1"),
    (lambda: Chain(get_format("fp8"), 0.9, "up"), "rounding is"),
    (lambda: Chain(get_format("fp32"), 0.9, "nearest"), "float32 is not rounded"),
    (lambda: Chain(get_format("uint4"), 0.9, "nearest"), "has no free exponent"),
    (lambda: Chain(get_format("ufloat4_e2m2"), 0.9, "nearest", GRADIENT), "has no sign"),
    (lambda: Chain(get_format("fp8"), 0.9, "nearest", scale=-1.0), "scale is a positive number"),
    (lambda: Drive("square", shared=0), "shared squares"),
    (lambda: Drive("square", mixture=((0.5, 1.0),)), "add up to 1"),
    (lambda: transient(Chain(get_format("fp8"), 0.9, "nearest"), -1), "steps is a whole number of at least 0"),
    (lambda: transients(Chain(get_format("fp8"), 0.9, "nearest", scale=1.0), (0.1,), 3), "free grid"),
    (lambda: halfulp.stall_probability("fp8", beta=0.9, rounding="nearest", age=-1), "number of steps"),
    (lambda: halfulp.stall_probability("fp8", beta=0.9, rounding="nearest", model="guess"), "model is one of"),
    (lambda: halfulp.stall_probability("fp8", beta=0.9, rounding="nearest", slot="step"), "slot is"),
    (lambda: halfulp.stall_probability("int4", beta=0.9, rounding="nearest", model="one-step"), "relative spacing"),
    (lambda: halfulp.stall_probability("fp9", beta=0.9, rounding="nearest"), "Did you mean"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["pow2", "fp32"])
@pytest.mark.parametrize(("name", "drive"), [("uint4", SQUARE), ("float8_e4m3fn", GRADIENT)])
def test_a_prediction_is_of_the_scales_that_are_stored(name: str, drive: Drive, kind: str) -> None:
    quantizer = Quantizer(get_format(name), Scaling(kind), "nearest", drive.nonnegative)  # type: ignore[arg-type]
    seen = simulate_blocks(quantizer, beta=0.9, steps=20, slot=drive, precision=0.01).figures[:, 0]
    for age in (2, 20):
        found = predict(name, "nearest", drive, 0.9, age, scale_kind=kind)
        assert found == pytest.approx(seen[age - 1], abs=0.03), age


def test_a_prediction_of_an_average_that_takes_its_first_input_whole() -> None:
    """ADOPT and Adafactor begin with the first square: a state of age 1 is one input, of any size."""
    rng, beta, drive = np.random.default_rng(0), 0.99, Drive("square", whole_first=True)
    value = np.zeros(40_000)
    for age in range(61):
        square = 1.3 * rng.standard_normal(len(value)) ** 2
        new = round_free(square if age == 0 else beta * value + (1 - beta) * square, 3, None)
        if age in (1, 2, 10, 60):
            stalled = (new == value).mean()
            assert predict("float8_e4m3fn", "nearest", drive, beta, age) == pytest.approx(stalled, abs=0.012), age
        value = new


@pytest.mark.parametrize(
    ("name", "drive", "beta"),
    [
        ("bf16", SQUARE, 1.0), ("bf16", SQUARE, -0.1), ("ufloat8_e4m4", GRADIENT, 0.9),
        ("uint4", Drive("square", whole_first=True), 0.9),
    ],
)  # fmt: skip
def test_without_a_theory_there_is_no_prediction(name: str, drive: Drive, beta: float) -> None:
    assert predict(name, "nearest", drive, beta, 10) is None


def test_at_decay_zero_each_input_replaces_the_last() -> None:
    assert predict("bf16", "nearest", SQUARE, 0.0, 10) == pytest.approx(0.0, abs=0.02)


def test_a_prediction_of_weights_takes_their_step() -> None:
    walk = walk_stall("bf16", 0.999, 1e-4, "stochastic", updates=500)
    assert predict("bf16", "stochastic", WEIGHT, 0.999, 500, step=1e-4) == walk.stalled
    assert walk.stalled > predict("bf16", "stochastic", WEIGHT, 0.999, 500, step=1e-2)  # type: ignore[operator]
    with pytest.raises(ValueError, match="give step="):
        predict("bf16", "stochastic", WEIGHT, 0.999, 500)


def test_float32_loses_nothing() -> None:
    assert predict("fp32", "nearest", SQUARE, 0.999, 10) == 0.0
    assert halfulp.stall_probability("fp32", beta=0.999, rounding="nearest") == 0.0
    assert not halfulp.stall_curve("fp32", beta=0.999, rounding="nearest", steps=5).any()


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    ("name", "drive"), [("udynamic8", SQUARE), ("uint4", SQUARE), ("dynamic8", GRADIENT), ("int4", GRADIENT)]
)
def test_strides_of_blocks_are_single_steps(name: str, drive: Drive, rounding: str) -> None:
    """Stalling of integers and codebooks, several steps at a time from age 128 on, against every step of blocks."""
    fmt, beta = get_format(name), 0.996
    ages, stalled = sampled_law(fmt, beta, rounding, drive, 255)
    blocks = block_law(Blocks(fmt, beta, rounding, drive), 255, paths=384)
    assert np.diff(ages)[0] == 1
    assert np.diff(ages)[-1] == 2
    apart = np.interp(blocks.ages, ages, stalled) - blocks.stalled
    error = blocks.error("stalled").max()  # for an ensemble of 384 blocks; the other has 256
    assert abs(apart[1:130]).max() < 5.5 * error
    assert abs(apart[130:]).max() < 5.5 * error
    assert abs(apart[130:].mean()) < 2.5 * error


def test_a_scale_that_comes_and_goes_loses_less() -> None:
    """Half of a value of a dynamic codebook is none: an update in which the scale changes is seldom lost."""
    walk = _Sampled(Blocks(get_format("udynamic8"), 0.999, "nearest"))
    walk.exponent = np.full(PHASES * BLOCKS, 8)  # scales of 1/256 to 1/128, far from the largest code
    walk.code = np.full((PHASES * BLOCKS, 128), 200)
    calm = walk._stalled()
    walk.code[:, 0] = len(walk.levels) - 1  # the next step may leave the grid
    walk.exponent = np.full(PHASES * BLOCKS, -10)
    assert calm > 0.99
    assert walk._stalled() < 0.9 * calm


def test_sampled_blocks_refuse_what_has_a_chain() -> None:
    with pytest.raises(ValueError, match="is not an integer or codebook"):
        sampled_law(get_format("fp8"), 0.9, "nearest", SQUARE, 3)
    with pytest.raises(ValueError, match="steps is a whole number of at least 0"):
        sampled_law(get_format("uint4"), 0.9, "nearest", SQUARE, -1)


def test_narrow_drives_take_enough_phases() -> None:
    """Shared squares: what is lost changes within a few hundredths of an octave. Against Monte Carlo."""
    fmt, drive = get_format("ufloat8_e4m4"), Drive("square", shared=768)
    rng = np.random.default_rng(0)
    scales, stored = 2 ** rng.random(20_000), np.zeros(20_000)
    for _ in range(39):
        old = stored
        exact = 0.9985 * old + 0.0015 * rng.chisquare(768, len(old)) / 768 * scales
        unit = 2.0 ** (np.floor(np.log2(exact)) - fmt.mantissa_bits)
        stored = np.rint(exact / unit) * unit
    law = transient(Chain(fmt, 0.9985, "nearest", drive), 38)
    assert law.stalled[38] == pytest.approx((stored == old).mean(), abs=0.012)


def test_decays_without_gradient_are_rounded_where_the_grid_is_thinned() -> None:
    """Nine steps in ten are mere decays, all of them lost under nearest rounding, so that the mean is too large."""
    fmt, drive = get_format("bf16"), Drive("square", mixture=((0.9, 0.0), (0.1, 1.0)))
    rng = np.random.default_rng(0)
    scales, stored = 2 ** rng.random(20_000), np.zeros(20_000)
    for _ in range(200):
        exact = (
            0.998 * stored + 0.002 * np.where(rng.random(20_000) < 0.1, rng.standard_normal(20_000) ** 2, 0) * scales
        )
        unit = 2.0 ** (np.floor(np.log2(np.maximum(exact, 1e-30))) - fmt.mantissa_bits)
        stored = np.rint(exact / unit) * unit
    law = transient(Chain(fmt, 0.998, "nearest", drive, phases=4), 200)
    assert law.mean[200] == pytest.approx((stored / scales).mean(), rel=0.02)
    assert law.mean[200] > 1.05 * law.exact_mean[200]
