"""Resets: moments and ages become zero at the steps that a schedule names."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import halfulp
from halfulp import AdamW, Every, Planned, Staggered, plan_reset
from halfulp.engine.resets import Site, as_schedule
from halfulp.numbers import log as _log
from halfulp.rules.drives import GRADIENT, SQUARE
from halfulp.theory.arguments import Criterion

BETAS = (0.9, 0.999)


def make(count: int = 1, **options: Any) -> tuple[AdamW, list[nn.Parameter]]:
    params = [nn.Parameter(torch.ones(4, 32)) for _ in range(count)]
    return AdamW(params, lr=1e-3, weight_decay=0.0, betas=BETAS, min_size=0, block_size=16, **options), params


def run(optimizer: Any, steps: int, scale: float = 1.0) -> None:
    for _ in range(steps):
        for group in optimizer.param_groups:
            for i, p in enumerate(group["params"]):
                step = optimizer.state[p]["step"] if optimizer.state.get(p) else 0
                generator = torch.Generator().manual_seed(1000 * i + step)
                p.grad = scale * torch.randn(p.shape, generator=generator)
        optimizer.step()


def ages(optimizer: AdamW, p: nn.Parameter) -> tuple[int, ...]:
    return tuple(s.age for s in optimizer.states(p))


@pytest.mark.parametrize("state", ["fp32", "bf16", "fp8", "4bit", "int8", "int4"])
def test_moments_and_ages_are_zero(state: str) -> None:
    optimizer, (p,) = make(state=state)
    run(optimizer, 5)
    tensors = [optimizer.state[p][k] for k in ("exp_avg", "exp_avg_sq")]
    optimizer.reset_state()
    for s, tensor in zip(optimizer.states(p), tensors, strict=True):
        assert not s.read().any()
        assert s.age == 0
        assert s.codes is tensor  # in place
        fresh = s.quantizer.zeros(s.shape, torch.device("cpu"))
        assert torch.equal(s.codes, fresh[0])
        assert s.scale is None or torch.equal(s.scale, fresh[1])  # type: ignore[arg-type]
    assert optimizer.state[p]["step"] == 5  # the random streams and schedules continue


@pytest.mark.parametrize("state", ["fp32", "fp8", "4bit"])
def test_after_a_reset_training_starts_afresh(state: str) -> None:
    """The states after a reset are those of a new optimizer on the same gradients (nearest: no random stream)."""
    optimizer, (p,) = make(state=state, rounding="nearest", reset=4)
    fresh, (q,) = make(state=state, rounding="nearest")
    for t in range(7):
        g = torch.randn(4, 32, generator=torch.Generator().manual_seed(t))
        p.grad = g
        optimizer.step()
        if t >= 4:
            q.grad = g.clone()
            fresh.step()
    assert ages(optimizer, p) == ages(fresh, q) == (3, 3)
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state_tensor(p, name), fresh.state_tensor(q, name))


@pytest.mark.parametrize("state", ["fp32", "bf16", "fp8", "8bit", "fp4", "4bit"])
def test_the_first_step_after_a_reset_is_no_larger(state: str) -> None:
    """Bias correction starts again: the first step is lr, as the very first was. Without it, it is 3.16 times that."""
    optimizer, (p,) = make(state=state, reset=100)
    run(optimizer, 100)
    before = p.detach().clone()
    run(optimizer, 1)
    step = (p.detach() - before).abs() / 1e-3
    assert float(step.max()) < 1.001
    assert float(step.min()) > 0.99
    # the same with unchanged ages, which a reset must not do
    optimizer, (p,) = make(state=state)
    run(optimizer, 5000 if state == "fp32" else 100)
    kept = ages(optimizer, p)
    optimizer.reset_state()
    optimizer.state[p]["step"] = 5000  # no age is above it
    for s in optimizer.states(p):
        s.age = 5000
    assert kept[0] in (100, 5000)
    before = p.detach().clone()
    run(optimizer, 1)
    assert float(((p.detach() - before).abs() / 1e-3).median()) == pytest.approx(3.162, abs=0.05)


def test_a_fixed_period() -> None:
    optimizer, (a, b) = make(2, state="fp8", reset=3)
    run(optimizer, 10)
    both = ("exp_avg", "exp_avg_sq")
    assert list(optimizer.reset_log) == [(t, i, both) for t in (3, 6, 9) for i in (0, 1)]
    assert ages(optimizer, a) == ages(optimizer, b) == (1, 1)


def test_per_slot() -> None:
    optimizer, (p,) = make(state="fp8", reset=Every(4, names=("exp_avg_sq",)))
    run(optimizer, 6)
    assert ages(optimizer, p) == (6, 2)
    assert list(optimizer.reset_log) == [(4, 0, ("exp_avg_sq",))]
    optimizer.reset_state("exp_avg")
    assert ages(optimizer, p) == (0, 2)
    assert not optimizer.state_tensor(p, "exp_avg").any()
    assert optimizer.state_tensor(p, "exp_avg_sq").all()


def test_resetting_one_slot_keeps_the_step_bounded() -> None:
    """A fresh second moment beside an old first one: the update stays within what exact arithmetic allows."""
    optimizer, (p,) = make(state="8bit")
    run(optimizer, 50, scale=100.0)
    optimizer.reset_state(["exp_avg_sq"])
    before = p.detach().clone()
    run(optimizer, 1, scale=1e-3)
    step = float((p.detach() - before).abs().max()) / 1e-3
    weights = sum((0.9**2 / 0.999) ** k for k in range(51)) ** 0.5  # Cauchy-Schwarz on the two weighted sums
    bound = 0.1 / 0.001**0.5 * weights * (1 - 0.999**51) ** 0.5 / (1 - 0.9**51)
    assert step == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [(None, False), ([], False), ([0, 0], True), ([0, 1], False), ([0, 0, 1], True), ([0, math.nan], False)],
)
def test_a_gradient_is_mostly_zero_if_more_than_half_of_it_is(gradient: list[float] | None, expected: bool) -> None:
    grad = None if gradient is None else torch.tensor(gradient)
    assert Site(step=1, index=0, count=1, slots=(), grad=grad).mostly_zero is expected


def test_functions_and_objects() -> None:
    seen: list[Site] = []

    def at_two(site: Site) -> bool:
        seen.append(site)
        return site.step == 2

    def second_moment_when_old(site: Site) -> tuple[str, ...]:
        return tuple(s.name for s in site.slots if s.name == "exp_avg_sq" and s.age >= 3)

    class Mine:
        def due(self, site: Site) -> tuple[str, ...]:
            return site.names if site.index == 1 and site.step == 1 else ()

    for schedule, expected in (
        (at_two, [(2, 0, ("exp_avg", "exp_avg_sq")), (2, 1, ("exp_avg", "exp_avg_sq"))]),
        (second_moment_when_old, [(3, 0, ("exp_avg_sq",)), (3, 1, ("exp_avg_sq",))]),
        (Mine(), [(1, 1, ("exp_avg", "exp_avg_sq"))]),
    ):
        optimizer, _ = make(2, state="fp8", reset=schedule)
        run(optimizer, 5)
        assert list(optimizer.reset_log) == expected
    site = seen[-1]
    assert (site.step, site.index, site.count) == (4, 1, 2)
    assert [(s.name, s.format.name, s.rounding, s.signed, s.drive, s.decay, s.age) for s in site.slots] == [
        ("exp_avg", "float8_e4m3fn", "stochastic", True, GRADIENT, 0.9, 2),
        ("exp_avg_sq", "float8_e4m3fn", "stochastic", False, SQUARE, 0.999, 2),
    ]


@pytest.mark.parametrize(("count", "period"), [(2, 10), (5, 10), (12, 10), (3, 100)])
def test_staggered(count: int, period: int) -> None:
    """Each parameter once a period, and never the whole model in one step."""
    schedule = Staggered(period)
    steps = range(1, 3 * period + 1)
    due = np.array([[bool(schedule.due(site(t, i, count))) for i in range(count)] for t in steps])
    assert (due[:period].sum(0) == 1).all()
    assert (due[period : 2 * period].sum(0) == 1).all()
    assert due.sum(1).max() <= -(-count // period)
    assert due.sum(1).max() < count
    for i in range(count):
        assert set(np.diff(np.flatnonzero(due[:, i]))) == {period}


def site(step: int, index: int, count: int) -> Site:
    from halfulp.engine.resets import SlotSite

    slot = SlotSite("exp_avg_sq", halfulp.get_format("fp8"), "nearest", False, SQUARE, 0.999, step)
    return Site(step, index, count, (slot,))


def test_staggered_in_training() -> None:
    optimizer, params = make(4, state="fp8", reset=Staggered(8))
    run(optimizer, 17)
    assert [(t, i) for t, i, _ in optimizer.reset_log] == [
        (2, 1), (4, 2), (6, 3), (8, 0), (10, 1), (12, 2), (14, 3), (16, 0),
    ]  # fmt: skip
    assert [ages(optimizer, p)[1] for p in params] == [1, 7, 5, 3]


def test_auto_asks_the_planner() -> None:
    """fp8, nearest, as the planner says; stochastic or fp32: never."""
    betas = (0.9, 0.99)
    plan = plan_reset("fp8", beta=0.99, rounding="nearest", beta1=0.9).period
    assert plan is not None
    p = nn.Parameter(torch.ones(2, 16))
    optimizer = AdamW([p], betas=betas, state="fp8", rounding="nearest", reset="auto", min_size=0, block_size=16)
    run(optimizer, 2 * plan + 1)
    assert [t for t, _, _ in optimizer.reset_log] == [plan, 2 * plan]
    for options in (
        {"state": "fp8", "rounding": "stochastic"}, {"state": "fp32"}, {"rounding": "nearest", "betas": (0.9, 0.0)},
    ):  # fmt: skip
        never = AdamW([nn.Parameter(torch.ones(2, 16))], **{"betas": betas, **options}, reset="auto", min_size=0)  # type: ignore[arg-type]
        run(never, 2)
        assert Planned().period(site_of(never)) is None


@pytest.mark.parametrize("stagger", [False, True])
def test_planned_resets_take_turns_if_asked(stagger: bool) -> None:
    planned = Planned(stagger=True) if stagger else Planned()
    period = planned.period(site(0, 0, 1))
    assert period is not None
    for index in range(3):
        due = [t for t in range(1, 2 * period) if planned.due(site(t, index, 3))]
        assert len(due) == (2 if stagger and index else 1)
        assert due[0] == (index * period // 3 if stagger and index else period)


@pytest.mark.parametrize("criterion", ["residual", "total"])
def test_planned_resets_have_a_criterion(criterion: Criterion) -> None:
    p = nn.Parameter(torch.ones(8, 8))
    site = site_of(AdamW([p], betas=(0.9, 0.99), state="fp8", rounding="nearest", min_size=0))
    plan = plan_reset("fp8", beta=0.99, rounding="nearest", criterion=criterion)
    assert Planned(criterion=criterion).period(site) == plan.period


def test_planned_resets_refuse_another_criterion() -> None:
    with pytest.raises(ValueError, match="criterion is 'residual' or 'total', got 'loss'"):
        Planned(criterion="loss")  # type: ignore[arg-type]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_momentum_alone_is_never_reset(rounding: str) -> None:
    p = nn.Parameter(torch.ones(8, 8))
    site = site_of(halfulp.Lion([p], betas=(0.9, 0.99), state="fp4", rounding=rounding, min_size=0))
    assert Planned().period(site) is plan_reset("fp4", beta=0.99, rounding=rounding, slot="exp_avg").period is None


@pytest.mark.parametrize("name", ["ADOPT", "Adafactor"])
def test_auto_never_resets_what_starts_from_its_first_square(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Planned as if it built up from zero, ADOPT's second moment would be reset; the reason is logged."""
    p = nn.Parameter(torch.ones(32))
    optimizer = getattr(halfulp, name)(
        [p], state="fp8", rounding="nearest", reset="auto", min_size=0, block_size=16, lr=1e-3
    )
    _log._said.clear()
    with caplog.at_level("INFO", logger="halfulp"):
        run(optimizer, 3)
    site = site_of(optimizer)
    second = next(s for s in site.slots if s.averages("square"))
    assert second.drive is not None
    assert second.drive.whole_first
    assert Planned().period(site) is None
    assert "never resets exp_avg_sq: it starts from its first square" in caplog.text
    if name == "ADOPT":
        zero = Site(site.step, 0, 1, tuple(replace(s, drive=SQUARE) if s is second else s for s in site.slots))
        assert Planned().period(zero) == plan_reset("fp8", beta=0.9999, rounding="nearest").period


def site_of(optimizer: Any) -> Site:
    seen: list[Site] = []
    optimizer.param_groups[0]["reset"] = lambda s: bool(seen.append(s))
    run(optimizer, 1)
    return seen[0]


def test_parameters_that_appear_later_have_their_own_clock() -> None:
    optimizer, (first,) = make(state="fp8", reset=4)
    run(optimizer, 3)
    late = nn.Parameter(torch.ones(4, 32))
    optimizer.add_param_group({"params": [late]})
    run(optimizer, 6)
    assert [(t, i) for t, i, _ in optimizer.reset_log] == [(4, 0), (4, 1), (8, 0)]
    assert ages(optimizer, late) == (2, 2)
    assert ages(optimizer, first) == (1, 1)


def test_resets_survive_a_resume() -> None:
    whole, (p,) = make(state="4bit", reset=4)
    run(whole, 10)
    half, (q,) = make(state="4bit", reset=4)
    run(half, 6)
    resumed, (r,) = make(state="4bit", reset=4)
    r.data.copy_(q.data)
    resumed.load_state_dict(half.state_dict())
    run(resumed, 4)
    assert torch.equal(p, r)
    assert ages(whole, p) == ages(resumed, r) == (2, 2)


def test_reset_state_by_hand() -> None:
    optimizer, (a, b) = make(2, state="fp8")
    optimizer.reset_state()  # before any step there is nothing to do
    run(optimizer, 2)
    optimizer.reset_state(params=[b])
    assert (ages(optimizer, a), ages(optimizer, b)) == ((2, 2), (0, 0))
    other, (c, _) = make(2, state="fp8")
    other.load_state_dict(optimizer.state_dict())
    other.reset_state(("exp_avg",), [c])  # right after loading
    assert ages(other, c) == (0, 2)
    optimizer.reset_state(names=())  # no names, no reset
    assert ages(optimizer, a) == (2, 2)
    with pytest.raises(ValueError, match=r"unknown states \['momentum'\]; there are \['exp_avg', 'exp_avg_sq'\]"):
        optimizer.reset_state(["exp_avg", "momentum"])
    with pytest.raises(ValueError, match="not parameters of this optimizer"):
        optimizer.reset_state(params=[nn.Parameter(torch.ones(3))])
    assert ages(optimizer, a) == (2, 2)


@pytest.mark.parametrize("reset", [True, 0, -3, 2.5, "sometimes", Every, object()])
def test_bad_schedules(reset: object) -> None:
    with pytest.raises(ValueError, match="reset"):
        make(reset=reset)


def test_a_schedule_that_names_unknown_slots_changes_nothing() -> None:
    optimizer, (a, b) = make(2, state="fp8", reset=lambda s: ("momentum",) if s.index == 1 and s.step == 1 else ())
    run(optimizer, 1)
    before = [t.clone() for t in (a, b)]
    with pytest.raises(
        ValueError, match=r"the reset schedule names \['momentum'\]; slots are \['exp_avg', 'exp_avg_sq'\]"
    ):
        run(optimizer, 1)
    assert ages(optimizer, a) == ages(optimizer, b) == (1, 1)
    assert torch.equal(before[0], a)
    assert torch.equal(before[1], b)
    assert optimizer.state[a]["step"] == 1


def test_as_schedule() -> None:
    assert as_schedule(None) is None
    assert as_schedule(7) == Every(7)
    assert as_schedule(np.int64(7)) == Every(7)
    assert as_schedule("auto") == Planned()
    assert as_schedule(Staggered(5)) == Staggered(5)


def test_sgd_starts_again_undampened() -> None:
    """After a reset the buffer is the gradient itself, as in torch's first step."""
    p = nn.Parameter(torch.zeros(2, 16))
    optimizer = halfulp.SGD([p], lr=1.0, momentum=0.9, dampening=0.5, state="fp32", reset=2)
    for _ in range(3):
        p.grad = torch.ones(2, 16)
        optimizer.step()
    assert optimizer.state_tensor(p, "momentum_buffer").eq(1.0).all()


@pytest.mark.parametrize(("share", "reset"), [(1.0, True), (0.6, True), (0.1, False)])
def test_planned_resets_leave_out_what_has_a_gradient_that_is_mostly_zero(share: float, reset: bool) -> None:
    """As an embedding; other parameters of the optimizer are reset all the same."""
    table, dense = nn.Parameter(torch.ones(100, 16)), nn.Parameter(torch.ones(16, 16))
    optimizer = AdamW([table, dense], state="fp4", rounding="nearest", reset="auto", min_size=0, betas=(0.5, 0.9))
    site = site_of(
        AdamW([nn.Parameter(torch.ones(8, 8))], state="fp4", rounding="nearest", betas=(0.5, 0.9), min_size=0)
    )
    period = Planned().period(site)
    assert period is not None
    for _ in range(period + 1):
        table.grad, dense.grad = torch.zeros(100, 16), torch.ones(16, 16)
        table.grad[: round(share * 100)] = 1.0
        optimizer.step()
    assert {index for _, index, _ in optimizer.reset_log} == ({0, 1} if reset else {1})
