"""The monitor never disturbs training: whatever happens to an optimizer, its training continues bit for bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import halfulp
from halfulp.libraries import ADAPTERS, unwrap
from halfulp.monitor import MonitorTable, Row, StallMonitor
from halfulp.monitor.loggers import figures
from halfulp.monitor.table import Weights
from halfulp.numbers import log as _log

Optimizer = torch.optim.Optimizer


def model() -> nn.ParameterList:
    generator = torch.Generator().manual_seed(0)
    return nn.ParameterList(nn.Parameter(torch.randn(8, 16, generator=generator)) for _ in range(3))


def freeze(optimizer: Optimizer, params: nn.ParameterList) -> None:
    params[0].requires_grad_(False)
    params[0].grad = None


def drop_group(optimizer: Optimizer, params: nn.ParameterList) -> None:
    optimizer.param_groups.pop(0)


def add_group(optimizer: Optimizer, params: nn.ParameterList) -> None:
    params.append(nn.Parameter(torch.ones(4, 4)))
    optimizer.add_param_group({"params": [params[-1]]})


def cast(optimizer: Optimizer, params: nn.ParameterList) -> None:
    for p in params:
        p.grad, p.data = None, p.data.bfloat16()
    optimizer.state.clear()


def resize(optimizer: Optimizer, params: nn.ParameterList) -> None:
    params[1].grad, params[1].data = None, torch.cat([params[1].data, params[1].data])
    optimizer.state.pop(params[1], None)


def replace_parameter(optimizer: Optimizer, params: nn.ParameterList) -> None:
    new = nn.Parameter(params[2].detach()[:4].clone())
    optimizer.state.pop(params[2], None)
    optimizer.param_groups[-1]["params"][-1] = new
    params[2] = new


def clear(optimizer: Optimizer, params: nn.ParameterList) -> None:
    optimizer.state.clear()


def reload(optimizer: Optimizer, params: nn.ParameterList) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def move_between_groups(optimizer: Optimizer, params: nn.ParameterList) -> None:
    first, second = optimizer.param_groups
    second["params"].append(first["params"].pop())


def unknown_keys(optimizer: Optimizer, params: nn.ParameterList) -> None:
    for group in optimizer.param_groups:
        group.pop("betas", None)
        group["betas"] = (0.5, 0.75)


ACTIONS: list[Callable[[Optimizer, nn.ParameterList], None]] = [
    freeze, drop_group, add_group, cast, resize, replace_parameter, clear, reload, move_between_groups, unknown_keys,
]  # fmt: skip


def run(action: Callable[..., None] | None, *, watched: int, every: int = 1) -> tuple[list[torch.Tensor], list[Any]]:
    params = model()
    optimizer = torch.optim.AdamW([{"params": [params[0]]}, {"params": list(params[1:])}], lr=1e-2)
    watches = [StallMonitor(optimizer, every=every) for _ in range(watched)]
    generator = torch.Generator().manual_seed(1)
    for step in range(12):
        if step == 6 and action is not None:
            action(optimizer, params)
        for p in params:
            if p.requires_grad:
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    return [p.detach() for p in params], watches


@pytest.mark.parametrize("action", ACTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("every", [1, 4])
def test_what_happens_to_an_optimizer_is_followed(
    action: Callable[..., None], every: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Bits are those without a monitor, nothing is warned of, and what is watched then is right."""
    with caplog.at_level("WARNING", logger="halfulp"):
        (plain, _), (seen, (watch,)) = run(action, watched=0), run(action, watched=1, every=every)
    assert not caplog.records
    for a, b in zip(plain, seen, strict=True):
        assert torch.equal(a, b)
    assert {r.slot for r in watch.table().rows} == {"exp_avg", "exp_avg_sq"}
    if action is not cast:
        for row in watch.table().rows:
            assert row.ratio == pytest.approx(1.0, abs=1e-4), row
            assert row.stalled < 0.01, row


def test_two_monitors_see_the_same() -> None:
    first, second = (watch.table() for watch in run(None, watched=2)[1])
    assert first.rows
    assert first == second


class Broken:
    """An adapter that fails when it is asked for the rule."""

    name, counts_resets = "broken", False

    def recognises(self, optimizer: Optimizer, entries: Any) -> bool:
        return optimizer.param_groups[0].get("broken", False)

    def stored(self, optimizer: Optimizer, group: Any, param: Any, entries: Any) -> Any:
        raise KeyError("betas")


@pytest.mark.parametrize("also", [True, False])
def test_an_error_inside_is_reported_once_and_the_training_goes_on(
    also: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("halfulp.libraries.ADAPTERS", [Broken(), *ADAPTERS])
    _log._said.clear()
    params, twins = model(), model()
    groups = [{"params": [params[0]], "broken": True}]
    if also:  # another group on the same device is still watched if only a group's own look-up fails
        groups.append({"params": [params[1]], "broken": False})
    optimizer = torch.optim.AdamW(groups)
    plain = torch.optim.AdamW([twins[0], twins[1]] if also else [twins[0]])
    with StallMonitor(optimizer, every=1) as watch, caplog.at_level("WARNING", logger="halfulp"):
        for _ in range(5):
            for a, b in zip(params, twins, strict=True):
                a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
            optimizer.step()
            plain.step()
    assert torch.equal(params[0], twins[0])
    assert len(caplog.records) == 1
    assert "KeyError: 'betas'" in caplog.text
    assert 'raise KeyError("betas")' in caplog.text
    assert watch.steps == 5


def test_a_step_that_only_creates_states_is_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    """As torch.distributed.checkpoint makes one, at a rate of zero with gradients of zero, before it saves or loads."""
    found = []
    for dry in (False, True):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(32, 64))
        optimizer = halfulp.AdamW([weight], lr=1e-2, min_size=0)
        with StallMonitor(optimizer, every=1) as watch:
            if dry:
                optimizer.param_groups[0]["lr"], weight.grad = 0.0, torch.zeros_like(weight)
                optimizer.step()
                optimizer.param_groups[0]["lr"] = 1e-2
            for _ in range(5):
                weight.grad = torch.randn(weight.shape)
                optimizer.step()
            found.append([(m.age, m.stalled, m.lag, m.ratio) for m in watch.measure()])
            rows = watch.table().rows
        assert [row.updates for row in rows] == [5 * weight.numel()] * 2
        assert not any(torch.tensor(row.predicted).isnan() for row in rows)
    assert found[0] == found[1]
    assert "training continues" not in caplog.text


def test_a_failing_report_is_left_out_and_the_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    params = model()
    optimizer = torch.optim.AdamW(params)
    heard: list[int] = []

    def fail(step: int) -> None:
        raise ConnectionError("the tracker is down")

    with StallMonitor(optimizer, every=1) as watch, caplog.at_level("WARNING", logger="halfulp"):
        watch.on_step(fail)
        watch.on_step(heard.append)
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
    assert heard == [1, 2, 3]
    assert caplog.text.count("ConnectionError: the tracker is down") == 1


def test_an_error_of_the_closure_is_the_users() -> None:
    (p, *_) = model()
    optimizer = torch.optim.SGD([p], lr=0.1)

    def closure() -> float:
        raise ZeroDivisionError

    with StallMonitor(optimizer), pytest.raises(ZeroDivisionError):
        optimizer.step(closure)


COPIES = pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, halfulp.AdamW, halfulp.Muon], ids=str)
@COPIES
def test_a_watched_optimizer_is_copied_and_pickled(make: Any, how: Callable[[Any], Any]) -> None:
    optimizer = make([("w", nn.Parameter(torch.ones(8, 16)))], lr=0.1)
    with StallMonitor(optimizer, every=1) as watch:
        optimizer.param_groups[0]["params"][0].grad = torch.ones(8, 16)
        optimizer.step()
        other = how(optimizer)
        other.param_groups[0]["params"][0].grad = torch.ones(8, 16)
        other.step()
        assert watch.steps == 1
    optimizer.step()
    assert torch.equal(optimizer.param_groups[0]["params"][0], other.param_groups[0]["params"][0])
    assert watch.steps == 1


@COPIES
@pytest.mark.parametrize("make", [torch.optim.AdamW, halfulp.AdamW], ids=str)
def test_a_copy_of_a_monitor_watches_the_copy_of_the_optimizer(make: Any, how: Callable[[Any], Any]) -> None:
    optimizer = make([("w", nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16)))], lr=0.1)
    generator = torch.Generator().manual_seed(1)

    def step(of: Any) -> None:
        of.param_groups[0]["params"][0].grad = torch.randn(64, 64, generator=generator).bfloat16()
        of.step()

    watch = StallMonitor(optimizer, every=1)
    step(optimizer)
    twin, other = how((watch, optimizer))
    kept = generator.get_state()
    step(optimizer)
    generator.set_state(kept)
    step(other)
    assert (watch.steps, twin.steps) == (2, 1)
    assert [m.lag for m in twin.measure()] == [m.lag for m in watch.measure()]


@COPIES
def test_callbacks_of_the_monitor_are_copied(how: Callable[[Any], Any]) -> None:
    """As trainers do that spawn processes."""
    for made in (halfulp.monitor.trainer_callback(every=7), halfulp.monitor.lightning_callback(every=7)):
        assert vars(how(made)).keys() == vars(made).keys() | ({"table"} if hasattr(made, "table") else set())


class AcceleratedLike(Optimizer):
    """As Accelerate's wrapper: an optimizer itself, whose state is that of the one inside."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)


class EngineLike:
    """As DeepSpeed's engine and its wrapper of the optimizer: no optimizer of torch's."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()


class ScheduleFreeLike:
    """As schedule-free's wrapper: the optimizer is its ``base``."""

    def __init__(self, base: Optimizer) -> None:
        self.base = base

    def step(self) -> None:
        self.base.step()


@pytest.mark.parametrize(
    "wrap",
    [AcceleratedLike, EngineLike, lambda o: EngineLike(EngineLike(o)), ScheduleFreeLike,
     lambda o: AcceleratedLike(AcceleratedLike(o))],
    ids=["Accelerate", "DeepSpeed", "DeepSpeed engine", "schedule-free", "twice"],
)  # fmt: skip
def test_wrapped_optimizers_are_watched(wrap: Callable[[Optimizer], Any]) -> None:
    params = model()
    inside = torch.optim.AdamW(params)
    outside = wrap(inside)
    assert unwrap(outside) is inside
    with StallMonitor(outside, every=1) as watch:
        for p in params:
            p.grad = torch.ones_like(p)
        outside.step()
        assert len(watch.measure()) == 2


# ---------------------------------------------------------------- verdicts


def bf16_run(optimizer: Optimizer, weight: nn.Parameter, steps: int = 30) -> tuple[MonitorTable, dict[str, float]]:
    generator = torch.Generator().manual_seed(1)
    with StallMonitor(optimizer, every=1, sample=10**6) as watch:
        for _ in range(steps):
            weight.grad = torch.randn(weight.shape, generator=generator).bfloat16()
            optimizer.step()
        return watch.table(), figures(watch)


@pytest.mark.parametrize(
    ("options", "verdict"),
    [({"param_rounding": "nearest"}, True), ({"param_rounding": "stochastic"}, False),
     ({"master_weights": "fp32"}, False), ({"master_weights": "remainder16"}, False),
     ({"master_weights": "remainder8"}, False)],
    ids=["nearest", "stochastic", "fp32", "remainder16", "remainder8"],
)  # fmt: skip
def test_weights_are_judged_by_what_moved(options: dict[str, Any], verdict: bool) -> None:
    weight = nn.Parameter((1 + torch.rand(64, 64)).bfloat16())
    table, logged = bf16_run(halfulp.AdamW([weight], lr=1e-4, state="fp32", **options), weight)
    assert any("16-bit weights" in line for line in table.verdicts()) == verdict
    if "master_weights" in options:  # counted over the weights of both tensors together
        assert logged["halfulp/weights/stalled"] < (0.7 if options["master_weights"] == "remainder8" else 0.1)
        assert logged["halfulp/weights/moved"] == pytest.approx(1.0, abs=0.1)
    if options.get("param_rounding") == "stochastic":
        assert logged["halfulp/weights/stalled"] > 0.5
        assert logged["halfulp/weights/moved"] == pytest.approx(1.0, abs=0.2)


def test_weights_without_a_known_update_have_no_verdict() -> None:
    weight = nn.Parameter((1 + torch.rand(64, 64)).bfloat16())
    table, _ = bf16_run(torch.optim.NAdam([weight], lr=1e-5), weight)
    assert table.weights[0].stalled > 0.9
    assert table.weights[0].moved is None
    assert not any("16-bit weights" in line for line in table.verdicts())


def test_plain_sgd_has_weights_to_lose() -> None:
    weight = nn.Parameter((1 + torch.rand(64, 64)).bfloat16())
    table, _ = bf16_run(torch.optim.SGD([weight], lr=1e-5), weight)
    assert table.weights[0].stalled > 0.9
    assert "16-bit weights: 100% of updates stall in 1 of 1 tensors (4,096 of 4,096 weights)" in table.verdicts()[0]


def test_the_overview_weighs_weights_by_elements_and_the_verdict_counts_them() -> None:
    small, large = nn.Parameter(torch.ones(64).bfloat16()), nn.Parameter(torch.full((128, 512), 1e-3).bfloat16())
    optimizer = torch.optim.AdamW([("norm", small), ("weight", large)], lr=1e-3, weight_decay=0.0)
    with StallMonitor(optimizer, every=1) as watch:
        for _ in range(5):
            for p in (small, large):
                p.grad = torch.randn(p.shape).bfloat16()
            optimizer.step()
        table, lost = watch.table(), watch.weights_stalled()
    assert lost == pytest.approx(64 / (64 + 128 * 512), abs=0.005)
    assert all(row.weights_stalled == pytest.approx(lost) for row in table.by_slot().values())
    (line,) = (line for line in table.verdicts() if "16-bit weights" in line)
    assert "100% of updates stall in 1 of 2 tensors (64 of 65,600 weights)" in line


@pytest.mark.parametrize(("moves", "fine"), [(True, True), (False, False)])
def test_where_block_scales_move_lost_codes_alone_are_no_fault(moves: bool, fine: bool) -> None:
    row = Row("w", "exp_avg_sq", "udynamic8", "nearest", 0.999, 100, 0.8, 0.8, 0.0, 0.99, 0.0, None, scale_moves=moves)
    assert (row.verdict == "fine") == fine
    assert halfulp.monitor.Row(**{**vars(row), "ratio": 2.0}).verdict != "fine"


def test_figures_stay_whole_beside_long_names() -> None:
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.default.weight"
    rows = [
        Row(name.format(i), "exp_avg_sq", "bfloat16", "nearest", 0.999, 100, 0.8, 0.8, 0.0, 0.99, 0.0, 0.5)
        for i in range(3)
    ]
    text = str(MonitorTable(tuple(rows), 10, weights=(Weights(rows[0].parameter, 1, 0.5, 1.0),)))
    assert max(map(len, text.splitlines()[:9])) <= 150
    assert all(text.count(f"...{i}.self_attn.q_proj.lora_A.default.weight") == 1 for i in range(3))
    assert text.count("80.0%") >= 6
    assert "…" not in text


def test_predicted_and_age_are_those_of_the_counted_update() -> None:
    weight = nn.Parameter(torch.zeros(64, 64))
    optimizer = halfulp.AdamW([weight], state="bf16", min_size=0)
    seen = []
    with StallMonitor(optimizer, every=4) as watch:
        for _ in range(7):
            weight.grad = torch.randn(64, 64)
            optimizer.step()
            seen.append([(m.age, m.predicted) for m in watch.measure()])
    assert seen[3] == seen[6]
    assert [age for age, _ in seen[3]] == [3, 3]


def test_transformers_adafactor_is_watched_and_what_is_not_is_said() -> None:
    optimization = pytest.importorskip("transformers.optimization")
    matrix, vector = nn.Parameter(torch.ones(16, 32)), nn.Parameter(torch.ones(256))
    optimizer = optimization.Adafactor([("matrix", matrix), ("vector", vector)])
    with StallMonitor(optimizer, every=1) as watch:
        for _ in range(5):
            for p in (matrix, vector):
                p.grad = torch.randn(p.shape)
            optimizer.step()
        table = watch.table()
    (row,) = table.rows
    assert (row.parameter, row.slot) == ("vector", "exp_avg_sq")
    assert row.ratio == pytest.approx(1.0, abs=1e-4)
    assert set(table.skipped) == {("matrix", "exp_avg_sq_row"), ("matrix", "exp_avg_sq_col")}
    assert "not watched: exp_avg_sq_row (factored" in str(table)


def test_every_slot_of_an_elementwise_rule_follows_its_rule() -> None:
    """States in fp32: what is stored is what the rule gives in float64, whatever it averages."""
    for name in ("AdaBelief", "ADOPT", "AdEMAMix", "MADGRAD", "DiffGrad", "AdaMod", "SPAM", "EXAdam", "AdaMomentum"):
        weight = nn.Parameter(torch.ones(32, 32))
        optimizer = getattr(halfulp, name)([weight], state="fp32", lr=1e-3)
        generator = torch.Generator().manual_seed(2)
        with StallMonitor(optimizer, every=1, sample=10**6) as watch:
            for _ in range(8):
                weight.grad = torch.randn(32, 32, generator=generator)
                optimizer.step()
            found = {m.slot: m for m in watch.measure()}
        declared = {s.name for s in optimizer.group_slots(optimizer.param_groups[0]) if s.drive is not None}
        assert set(found) == declared, name
        for measure in found.values():
            assert measure.ratio == pytest.approx(1.0, abs=1e-4), (name, measure)
