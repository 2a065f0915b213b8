"""Every function of the theory says which argument is wrong, whatever kind of value it got."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from halfulp.averaging import walk_stall
from halfulp.numbers.formats import get_format
from halfulp.numbers.quantizer import Quantizer
from halfulp.rules.drives import GRADIENT
from halfulp.theory.advice import advise
from halfulp.theory.blocks import Blocks, block_law
from halfulp.theory.chain import Chain
from halfulp.theory.closed_form import closed_form
from halfulp.theory.planner import plan_reset
from halfulp.theory.predict import predict, stall_curve, stall_probability
from halfulp.theory.similitude import scale_model
from halfulp.theory.simulation import simulate
from halfulp.theory.transient import transient, transients

FP8 = get_format("fp8")
CHAIN = Chain(FP8, 0.9, "nearest")
NOT_NUMBERS: tuple[Any, ...] = ("0.5", None, math.nan, np.ones(3), torch.ones(2), [0.5, 0.6], 1j)
TAKERS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("stall_probability", "beta"): lambda x: stall_probability("fp8", beta=x, rounding="nearest"),
    ("stall_probability", "age"): lambda x: stall_probability(
        "fp8", beta=0.9, rounding="nearest", age="0" if x is None else x
    ),
    ("stall_curve", "steps"): lambda x: stall_curve("fp8", beta=0.9, rounding="nearest", steps=x),
    ("plan_reset", "beta"): lambda x: plan_reset("fp8", beta=x, rounding="nearest"),
    ("plan_reset", "beta1"): lambda x: plan_reset("fp8", beta=0.9, rounding="nearest", beta1=x),
    ("plan_reset", "each of drifts"): lambda x: plan_reset("fp8", beta=0.9, rounding="nearest", drifts=(0.0, x)),
    ("Chain", "beta"): lambda x: Chain(FP8, x, "nearest"),
    ("Blocks", "beta"): lambda x: Blocks(FP8, x, "nearest"),
    ("Blocks", "spread"): lambda x: Blocks(FP8, 0.9, "nearest", spread=x),
    ("Blocks", "block_size"): lambda x: Blocks(FP8, 0.9, "nearest", block_size=x),
    ("block_law", "steps"): lambda x: block_law(Blocks(FP8, 0.9, "nearest"), x),
    ("closed_form", "beta"): lambda x: closed_form(FP8, "nearest", GRADIENT, x, np.ones(1)),
    ("transient", "steps"): lambda x: transient(CHAIN, x),
    ("transient", "start"): lambda x: transient(CHAIN, 3, start=x),
    ("transients", "each of drifts"): lambda x: transients(CHAIN, (x,), 3),
    ("simulate", "beta"): lambda x: next(iter(simulate(Quantizer("fp8"), beta=x, steps=1))),
    ("simulate", "steps"): lambda x: next(iter(simulate(Quantizer("fp8"), beta=0.9, steps=x))),
    ("simulate", "spread"): lambda x: next(iter(simulate(Quantizer("fp8"), beta=0.9, steps=1, spread=x))),
    ("advise", "spread"): lambda x: advise(spread=x),
    ("walk_stall", "decay"): lambda x: walk_stall("bf16", decay=x, rounding="nearest", step=0.1),
    ("walk_stall", "step"): lambda x: walk_stall("bf16", decay=0.9, rounding="nearest", step=x),
    ("period", "original"): lambda x: scale_model("bf16", factor=8).period("0" if x is None else x),
}


@pytest.mark.parametrize("taker", TAKERS, ids="-".join)
def test_what_is_not_a_number_is_named(taker: tuple[str, str]) -> None:
    for value in NOT_NUMBERS:
        with pytest.raises(ValueError, match=rf"^{taker[1]} is .*, got "):
            TAKERS[taker](value)


BOUNDS: dict[str, tuple[Callable[[], Any], str]] = {
    "beta 1": (lambda: Chain(FP8, 1.0, "nearest"), "beta is between 0 and 1, got 1.0"),
    "beta 0": (lambda: Blocks(FP8, 0.0, "nearest"), "beta is between 0 and 1, got 0.0"),
    "half a step": (lambda: transient(CHAIN, 2.5), "steps is a whole number of at least 0, got 2.5"),  # type: ignore[arg-type]
    "infinite age": (lambda: stall_probability("fp8", beta=0.9, rounding="nearest", age=math.inf), "age is a number"),
    "negative age": (lambda: stall_probability("fp8", beta=0.9, rounding="nearest", age=-1), "from 0 to 10.12, got -1"),
    "age without end": (lambda: predict("fp8", "nearest", GRADIENT, 0.9, 1.01e12), "from 0 to 10.12, got 1"),
    "curve without end": (
        lambda: stall_curve("fp8", beta=0.9, rounding="nearest", steps=10**7 + 1),
        "steps is a whole number of at least 0 and at most 10000000, got 10000001",
    ),
    "plan without end": (lambda: plan_reset("fp8", beta=1 - 1e-9, rounding="nearest"), "at most 0.99999 for a plan"),
    "fast drift": (lambda: plan_reset("fp8", beta=0.9, rounding="nearest", drifts=(5.0,)), "from 0 to 0.5, .* got 5.0"),
    "no drift": (lambda: transients(CHAIN, (), 3), r"drifts are one or more rates from 0 to 0.5, got \(\)"),
    "text as drifts": (lambda: plan_reset("fp8", beta=0.9, rounding="nearest", drifts="0.1"), "drifts are one or more"),
    "one number as drifts": (lambda: plan_reset("fp8", beta=0.9, rounding="nearest", drifts=0.1), "got 0.1"),  # type: ignore[arg-type]
    "negative drift": (lambda: transients(CHAIN, (0.0, -0.1), 3), "a rate from 0 to 0.5, .* got -0.1"),
    "large spread": (lambda: advise(spread=1000.0), "spread is between 0 and 10, got 1000.0"),
    "no elements": (lambda: Blocks(FP8, 0.9, "nearest", block_size=0), "block_size is a whole number of at least 1"),
    "rounding": (lambda: walk_stall("bf16", decay=0.9, rounding="up", step=0.1), "'nearest' or 'stochastic', got 'up'"),
    "closed form's rounding": (lambda: closed_form(FP8, "up", GRADIENT, 0.9, np.ones(1)), "got 'up'"),
    "no sign": (
        lambda: stall_probability("ufloat8_e4m4", beta=0.9, rounding="nearest", slot="exp_avg",
                                  model="build-up"),
        "needs a signed format, ufloat8_e4m4 has no sign",
    ),
    "negative period": (lambda: scale_model("bf16", factor=8).period(-5), "original is a whole number of at least 1"),
    "part of a seed": (lambda: next(iter(simulate(Quantizer("fp8"), beta=0.9, steps=1, seed=-1))), "seed is a whole"),
    "long seed": (
        lambda: next(iter(simulate(Quantizer("fp8"), beta=0.9, steps=1, seed=1 << 64))),
        "at most 9223372036854775808, got 18446744073709551616",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BOUNDS)
def test_what_is_out_of_range_is_named(case: str) -> None:
    call, message = BOUNDS[case]
    with pytest.raises(ValueError, match=message):
        call()
