"""The monitor against slow exact models and published figures. It must not change the training."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import halfulp
from halfulp.monitor import StallMonitor
from halfulp.monitor.results import step_error


def parameter(
    dtype: torch.dtype = torch.bfloat16, shape: tuple[int, ...] = (64, 64), seed: int = 0
) -> torch.nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter((torch.randn(shape, generator=generator) * 0.1).to(dtype))


def drive(optimizer: torch.optim.Optimizer, steps: int, scale: float = 1.0, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)
        optimizer.step()


def test_bf16_second_moment_of_torch_rises_and_does_not_fall() -> None:
    """Shorter than benchmarks/monitor_bf16.py, against an EMA kept beside in float64."""
    weight = parameter(shape=(32, 64))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    reference = torch.zeros(weight.shape, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    ratios = []
    with StallMonitor(optimizer, every=50) as watch:
        for scale in (1.0, 0.1, 3.0):
            for _ in range(500):
                weight.grad = (torch.randn(weight.shape, generator=generator) * scale).bfloat16()
                reference = 0.999 * reference + 0.001 * weight.grad.double() ** 2
                optimizer.step()
            (measure,) = (m for m in watch.measure() if m.slot == "exp_avg_sq")
            stored = optimizer.state[weight]["exp_avg_sq"].double()
            assert measure.ratio == pytest.approx(float(stored.mean() / reference.mean()), rel=1e-9)
            ratios.append(measure.ratio)
    assert 1.1 < ratios[0] < 1.5  # two roundings per step (decay, then increment), both to nearest
    assert ratios[1] > 1.6  # fp32 falls to 0.6 in 500 steps, bf16 does not move
    assert ratios[2] < ratios[1]
    assert "exp_avg_sq is bfloat16, nearest" in "\n".join(watch.table().verdicts())


def test_stalled_fraction_is_counted_as_defined() -> None:
    weight = parameter(shape=(16, 16))
    optimizer = torch.optim.AdamW([weight])
    stalled = updates = 0
    generator = torch.Generator().manual_seed(3)
    with StallMonitor(optimizer, every=1) as watch:
        old = torch.zeros(16, 16, dtype=torch.float64)
        for _ in range(40):
            weight.grad = torch.randn(16, 16, generator=generator).bfloat16()
            optimizer.step()
            new = optimizer.state[weight]["exp_avg_sq"].double()
            exact = 0.999 * old + (1 - 0.999) * weight.grad.double() ** 2
            due = exact != old
            updates += int(due.sum())
            stalled += int((due & (new == old)).sum())
            old = new
        row = next(r for r in watch.table().rows if r.slot == "exp_avg_sq")
    assert (row.updates, row.stalled) == (updates, stalled / updates)
    assert stalled > 0


@pytest.mark.parametrize("state", ["bf16", "fp8", "fp4", "int8", "8bit", "4bit", "fp32"])
def test_our_states_are_read_as_the_optimizer_reads_them(state: str) -> None:
    weight = parameter(torch.float32, (33, 65))
    optimizer = halfulp.AdamW([weight], state=state, min_size=0)
    with StallMonitor(optimizer, sample=10**6, every=1) as watch:
        drive(optimizer, 3)
        for bucket in next(iter(watch._watches.values())).binding.readers:
            assert torch.equal(bucket.read()[0], optimizer.state_tensor(weight, bucket.slot).flatten().double())


def test_measured_and_predicted_agree_for_our_states() -> None:
    weight = parameter(torch.float32, (64, 128))
    for state, rounding in (("bf16", "nearest"), ("bf16", "stochastic"), ("fp8", "nearest"), ("fp8", "stochastic")):
        optimizer = halfulp.AdamW([weight], state=state, rounding=rounding, min_size=0)
        with StallMonitor(optimizer, every=1) as watch:
            drive(optimizer, 150)
            row = next(r for r in watch.table().rows if r.slot == "exp_avg_sq")
        assert row.predicted == pytest.approx(row.stalled, abs=0.03)


OPTIMIZERS = {
    "Adam": {"weight_decay": 0.1},
    "AdamW": {"foreach": True},
    "AdamW fused": {"fused": True},
    "AdamW amsgrad": {"amsgrad": True},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "RMSprop": {"weight_decay": 0.1},
    "RMSprop centered": {"centered": True, "momentum": 0.9},
    "SGD": {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1},
    "SGD nesterov": {"momentum": 0.9, "nesterov": True, "maximize": True},
    "Adadelta": {},
    "Adagrad": {},
    "Muon": {},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torch_optimizers_are_followed_and_not_changed(name: str, dtype: torch.dtype) -> None:
    """In float64 nothing stalls and the shadow of every state is the state: so the laws are right. No bit changes."""
    kind = getattr(torch.optim, name.split()[0])
    weight = parameter(dtype)
    twin = torch.nn.Parameter(weight.detach().clone())
    optimizer, plain = kind([weight], **OPTIMIZERS[name]), kind([twin], **OPTIMIZERS[name])
    with StallMonitor(optimizer, sample=10**6, every=1) as watch:
        drive(optimizer, 20)
        drive(plain, 20)
        measured = watch.measure()
    assert torch.equal(weight, twin)
    for key, value in plain.state[twin].items():
        assert torch.equal(torch.as_tensor(optimizer.state[weight][key]), torch.as_tensor(value))
    assert measured
    if dtype == torch.float64:
        for row in measured:
            assert row.stalled == 0.0
            assert row.lag == pytest.approx(0.0, abs=1e-9)
            assert row.ratio == pytest.approx(1.0, abs=1e-9)


WEIGHT_RULES = ["Adam", "AdamW", "AdamW amsgrad", "Adamax", "RMSprop", "RMSprop centered", "SGD", "SGD nesterov"]


@pytest.mark.parametrize("name", WEIGHT_RULES)
def test_weight_updates_are_those_of_the_optimizer(name: str) -> None:
    """The update computed from the states of a bf16 run is what torch adds in float64 from the same states."""
    kind = getattr(torch.optim, name.split()[0])
    weight = parameter(shape=(32, 32))
    optimizer = kind([weight], lr=1e-3, **OPTIMIZERS[name])
    drive(optimizer, 5)
    exact = torch.nn.Parameter(weight.detach().double())
    mirror = kind([exact], lr=1e-3, **OPTIMIZERS[name])
    drive(mirror, 1)  # creates the states
    mirror.state[exact] = {
        k: v.double() if v.ndim else v.clone() for k, v in optimizer.state[weight].items() if v is not None
    }
    old = weight.detach().double()
    with StallMonitor(optimizer, sample=10**6, every=1) as watch:
        drive(optimizer, 1, seed=9)
        (tally,) = next(iter(watch._watches.values())).counts.flushed_weights()
    exact.data.copy_(old)
    exact.grad = weight.grad.double()
    mirror.step()
    update = exact.detach() - old
    assert tally.due == int((update != 0).sum())
    assert tally.stalled == int(((update != 0) & (weight.double() == old)).sum())
    assert tally.intended == pytest.approx(float(update.abs().sum()), rel=1e-6)
    assert tally.moved == pytest.approx(float(((weight.detach().double() - old) * update.sign()).sum()), rel=1e-6)


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Lion"])
def test_weights_of_ours_arrive_under_stochastic_rounding(kind: str) -> None:
    """Against the definition: the exact update of this step, from fp32 states, and what the stored weight did."""
    options = {"momentum": 0.9} if kind == "SGD" else {}
    moved = {}
    for how in ("nearest", "stochastic"):
        weight = parameter(shape=(64, 64))
        mirror = torch.nn.Parameter(weight.detach().float())
        build = getattr(halfulp, kind)
        optimizer = build([weight], lr=3e-5, state="fp32", param_rounding=how, **options)
        exact = build([mirror], lr=3e-5, state="fp32", **options)
        due = lost = 0
        generator = torch.Generator().manual_seed(1)
        with StallMonitor(optimizer, every=1, sample=10**6) as watch:
            for _ in range(20):
                old = weight.detach().float()
                weight.grad = torch.randn(weight.shape, generator=generator).bfloat16()
                optimizer.step()
                with torch.no_grad():
                    mirror.copy_(old)
                mirror.grad = weight.grad.float()
                exact.step()
                changed = mirror.detach() != old
                due += int(changed.sum())
                lost += int((changed & (weight.detach().float() == old)).sum())
            row = watch.table().rows[0]
        assert row.weights_stalled == pytest.approx(lost / due, abs=1e-3)  # fp32 drops a few updates that float64 keeps
        assert row.weights_moved is not None
        moved[how] = row.weights_moved
    assert moved["stochastic"] == pytest.approx(1.0, abs=0.1)
    assert abs(moved["nearest"] - 1.0) > 0.2


def test_weights_without_a_due_update_are_not_called_lost() -> None:
    weight = parameter()
    optimizer = torch.optim.AdamW([weight], lr=0.0)  # as in the first step of a warmup
    with StallMonitor(optimizer, every=1) as watch:
        drive(optimizer, 3)
        assert watch.table().rows[0].weights_stalled is None


def test_a_reset_restarts_the_shadow() -> None:
    weight = parameter(torch.float32)
    optimizer = halfulp.AdamW([weight], state="fp32", reset=7)
    with StallMonitor(optimizer, sample=10**6, every=1) as watch:
        drive(optimizer, 16)
        assert [m.age for m in watch.measure()] == [1, 1]
        assert all(abs(m.ratio - 1) < 1e-5 for m in watch.measure())
        optimizer.reset_state()
        drive(optimizer, 2)
        assert [m.age for m in watch.measure()] == [1, 1]
        assert all(abs(m.ratio - 1) < 1e-5 for m in watch.measure())


def test_late_parameters_missing_gradients_and_added_groups() -> None:
    first, second, third = (parameter(torch.float64, (8, 8), seed) for seed in range(3))
    optimizer = torch.optim.Adam([first, second])
    with StallMonitor(optimizer, every=1) as watch:
        for step in range(30):
            if step == 20:
                optimizer.add_param_group({"params": [third], "betas": (0.5, 0.9)})
            first.grad = torch.full_like(first, 1.0 + step) if step % 3 else None
            second.grad = torch.full_like(second, 1.0 + step) if step > 10 else None
            third.grad = torch.ones_like(third)
            optimizer.step()
        rows = watch.table().rows
    assert {r.parameter for r in rows} == {"parameter 0", "parameter 1", "parameter 2"}
    assert {r.beta for r in rows if r.parameter == "parameter 2"} == {0.5, 0.9}
    for row in rows:
        assert row.ratio == pytest.approx(1.0, abs=1e-12)
        assert row.stalled == 0.0
    updates = {r.parameter: r.updates for r in rows if r.slot == "exp_avg"}
    assert updates == {"parameter 0": 20 * 64, "parameter 1": 19 * 64, "parameter 2": 10 * 64}


def test_gradients_are_those_that_the_closure_leaves() -> None:
    weight = parameter(torch.float64, (8, 8))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    with StallMonitor(optimizer, every=1) as watch:
        losses = [optimizer.step(closure) for _ in range(5)]
        losses.append(optimizer.step(closure=closure))
        (row,) = watch.table().rows
    assert row.updates == 6 * 64
    assert row.ratio == pytest.approx(1.0, abs=1e-12)
    assert losses[-1] < losses[0]


def test_attached_in_mid_run_and_after_loading() -> None:
    weight = parameter(torch.float64)
    optimizer = torch.optim.AdamW([weight])
    drive(optimizer, 10)
    with StallMonitor(optimizer, every=1) as watch:
        drive(optimizer, 10)
        assert {m.age for m in watch.measure()} == {19}
        saved = copy.deepcopy(optimizer.state_dict())
        for entries in saved["state"].values():
            entries["exp_avg_sq"] *= 4.0
        optimizer.load_state_dict(saved)
        drive(optimizer, 1)
        assert all(r.ratio == pytest.approx(1.0, abs=1e-9) for r in watch.table().rows)


def test_every_counts_fewer_steps_and_follows_all() -> None:
    weight = parameter(torch.float64)
    optimizer = torch.optim.AdamW([weight])
    seen: list[int] = []
    with StallMonitor(optimizer, every=4, sample=10**6) as watch:
        watch.on_step(seen.append)
        drive(optimizer, 9)
        assert watch.table().rows[0].updates == 2 * weight.numel()
        assert all(m.ratio == pytest.approx(1.0, abs=1e-12) for m in watch.measure())
    drive(optimizer, 4)
    assert seen == [4, 8]
    assert watch.steps == 9


def test_gradscaler_with_a_fused_optimizer() -> None:
    weight = parameter(torch.float32)
    optimizer = torch.optim.AdamW([weight], fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with StallMonitor(optimizer, every=1) as watch:
        for factor in (1.0, math.inf, 2.0):
            optimizer.zero_grad()
            scaler.scale((weight * factor).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert watch.steps == 3
        for row in watch.table().rows:
            assert row.ratio == pytest.approx(1.0, abs=1e-6)


def test_names_wrappers_and_what_is_not_watched() -> None:
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.Adafactor(model.parameters())

    class Wrapper:
        def __init__(self) -> None:
            self.optimizer = optimizer

    with StallMonitor(Wrapper(), model=model, every=1) as watch:  # type: ignore[arg-type]
        drive(optimizer, 2)
    assert watch.skipped["weight", "row_var"].startswith("factored")
    assert "not watched: row_var" in str(watch.table())
    with pytest.raises(TypeError, match="wrapper"):
        StallMonitor(model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive"):
        StallMonitor(optimizer, every=0)


@pytest.mark.parametrize(
    ("steps", "every", "line"),
    [
        (0, 1, "nothing was watched yet: the optimizer has made no step"),
        (1, 2, "nothing was watched yet: the one step passed uncounted"),
        (3, 10, "nothing was watched yet: all 3 steps passed uncounted"),
        (1, 1, "every state moves as it should"),
    ],
)
def test_a_table_of_nothing_does_not_say_that_all_is_well(steps: int, every: int, line: str) -> None:
    optimizer = halfulp.AdamW([parameter(torch.float32)], state="fp32")
    with StallMonitor(optimizer, every=every) as watch:
        drive(optimizer, steps)
    text = str(watch.table())
    assert line in text
    assert ("every state moves" in text) == bool(watch.table().rows)


def test_rows_are_plain_and_the_table_prints() -> None:
    import json

    weight = parameter()
    optimizer = torch.optim.AdamW([("layer.weight", weight)])
    with StallMonitor(optimizer, every=1) as watch:
        drive(optimizer, 60)
    rows = watch.table().as_dicts()
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0]["parameter"] == "layer.weight"
    text = str(watch.table())
    assert "stalled updates over 60 steps" in text
    assert "16-bit weights" in text or rows[0]["weights_stalled"] < 0.5


def test_non_contiguous_parameters() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 8, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last))
    optimizer = torch.optim.AdamW([weight])
    with StallMonitor(optimizer, sample=100, every=1) as watch:
        drive(optimizer, 5)
        assert all(m.ratio == pytest.approx(1.0, abs=1e-12) for m in watch.measure())


def test_a_common_factor_of_the_updates_is_told_from_what_is_left() -> None:
    """Updates are divided by the root of the state: a quarter of it makes all of them twice as long."""
    shadow = torch.tensor([1.0, 2.0, 5.0, 3.0])
    assert step_error(shadow / 4, shadow) == pytest.approx((2.0, 0.0))
    longer = torch.tensor([1.0, 1.0, 3.0, 3.0])
    factor, residual = step_error(shadow / longer.square(), shadow)
    assert factor == pytest.approx(5 / 2)  # 1 / c of the least squares fit of c * longer to 1
    assert residual == pytest.approx(float((longer / factor - 1).square().mean()))
    assert step_error(torch.zeros(4), shadow) == (1.0, 0.0)
