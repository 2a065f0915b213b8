"""Schedules and the scaling rule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import halfulp


def test_linear_to_zero_is_an_average_of_updates() -> None:
    """AdamW under D2Z is an EMA of its updates: coefficients and what is left of the start sum to 1."""
    factor, rate = halfulp.linear_to_zero(100), 0.05
    assert [factor(s) for s in (0, 5, 10, 55, 100, 120)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert [halfulp.linear_to_zero(100, 0.2)(s) for s in (0, 5, 20, 60, 100)] == pytest.approx([0, 0.25, 1, 0.5, 0])
    alphas = [rate * factor(s) for s in range(1, 101)]
    coefficients = [a * math.prod(1 - b for b in alphas[i + 1 :]) for i, a in enumerate(alphas)]
    assert sum(coefficients) + math.prod(1 - a for a in alphas) == pytest.approx(1.0)
    assert coefficients[-1] == 0.0


def test_schedules_drive_an_optimizer() -> None:
    optimizer = halfulp.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, halfulp.warmup_stable_decay(10, 0.2, 0.5))
    rates = []
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02, 0.0])
    with pytest.raises(ValueError, match="together at most 1"):
        halfulp.warmup_stable_decay(10, 0.6, 0.6)


def test_square_root_scaling() -> None:
    found = halfulp.scale_adam(16, lr=2e-3, betas=(0.99, 0.995))
    assert found["lr"] == pytest.approx(8e-3)
    assert found["betas"] == pytest.approx((0.84, 0.92))
    assert found["eps"] == pytest.approx(2.5e-9)
    assert halfulp.scale_adam(4, lr=1.0, eps=1e-6)["eps"] == pytest.approx(5e-7)
    with pytest.raises(ValueError, match="kappa"):
        halfulp.scale_adam(16, lr=1e-3, betas=(0.9, 0.99))


def stationary_deviation(batch: float, lr: float, betas: tuple[float, float], steps: int) -> float:
    """Of Adam on x**2 / 4, the gradient's noise of variance 1 / batch, over 4096 problems at once."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.Parameter(0.04 * torch.randn(4096, generator=generator))
    optimizer = halfulp.Adam([x], lr=lr, betas=betas, eps=0.0, state="fp32")
    found = []
    for step in range(steps):
        x.grad = x.detach() / 2 + torch.randn(4096, generator=generator) / batch**0.5
        optimizer.step()
        if step >= 0.8 * steps:
            found.append(x.detach().pow(2).mean().item())
    return math.sqrt(sum(found) / len(found))


def test_square_root_scaling_keeps_the_stationary_deviation() -> None:
    """A batch 16 times as large, 16 times fewer steps: the square-root rule keeps it, linear scaling doubles it."""
    base = stationary_deviation(1.0, 2e-3, (0.99, 0.995), 2400)
    scaled = halfulp.scale_adam(16, lr=2e-3, betas=(0.99, 0.995))
    root = stationary_deviation(16.0, scaled["lr"], scaled["betas"], 300)
    linear = stationary_deviation(16.0, 16 * 2e-3, scaled["betas"], 300)
    assert base == pytest.approx(math.sqrt(2e-3), rel=0.05)
    assert root == pytest.approx(base, rel=0.05)
    assert linear == pytest.approx(2 * base, rel=0.05)


# ---------------------------------------------------------------- refinement


def test_refined_follows_the_closed_form() -> None:
    """Against the sum written out: rate t is w_t * sum of w_p over later p, w = norm**-power."""
    norms = [3.0, 1.0, 2.0, 0.5, 4.0]
    for power in (1.0, 2.0):
        weights = [n**-power for n in norms]
        rates = [w * sum(weights[t + 1 :]) for t, w in enumerate(weights)]
        factor = halfulp.refined(norms, power, smooth=0.0)
        assert [factor(t) for t in range(5)] == pytest.approx([r / max(rates) for r in rates])


def test_refined_decays_linearly_and_warms_up_where_gradients_are_large() -> None:
    steps = 200
    constant = halfulp.refined([0.37] * steps)
    assert [constant(t) for t in (0, 50, 199, 500)] == pytest.approx([1.0, 149 / 199, 0.0, 0.0])
    falling = halfulp.refined([10 * math.exp(-t / 20) + 1 for t in range(steps)], smooth=0.0)
    rates = [falling(t) for t in range(steps)]
    peak = rates.index(max(rates))
    assert rates[0] < 0.05
    assert 30 < peak < 120
    assert sorted(rates[: peak + 1]) == rates[: peak + 1]
    spiked = [0.37] * 100 + [50.0] + [0.37] * 99
    assert [halfulp.refined(spiked)(t) for t in range(steps)] == pytest.approx([constant(t) for t in range(steps)])
    with pytest.raises(ValueError, match="at least two positive numbers"):
        halfulp.refined([1.0, 0.0])


# ---------------------------------------------------------------- AutoDrop


def angles_along(path: list[list[float]], **arguments: Any) -> tuple[halfulp.AutoDrop, torch.optim.Optimizer]:
    """A scheduler that has seen the weights at each point of a path, in two tensors."""
    one, two = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(len(path[0]) - 1))
    for p in (one, two):
        p.grad = torch.zeros_like(p)
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [two], "lr": 0.05}], lr=0.1)

    def put(point: list[float]) -> None:
        one.data.copy_(torch.tensor(point[:1]))
        two.data.copy_(torch.tensor(point[1:]))

    put(path[0])
    scheduler = halfulp.AutoDrop(optimizer, **arguments)
    for point in path[1:]:
        optimizer.step()
        put(point)
        scheduler.step()
    return scheduler, optimizer


@pytest.mark.parametrize(
    ("path", "angle"),
    [
        ([[0.0, 0.0], [1.0, 2.0], [3.0, 6.0], [3.5, 7.0]], 0.0),
        ([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [1.0, 2.0]], 180.0),
        ([[0.0, 0.0], [1.0, 0.0], [1.0, 5.0], [0.0, 5.0]], 90.0),
    ],
    ids=["straight", "there and back", "square"],
)
def test_angular_velocity(path: list[list[float]], angle: float) -> None:
    scheduler, _ = angles_along(path)
    assert scheduler.angles == pytest.approx([angle] * 2, abs=1e-4)


def test_noise_around_a_minimum_turns_by_120_degrees() -> None:
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(12, 20_000, generator=generator).tolist()
    scheduler, _ = angles_along(path)
    assert sum(scheduler.angles) / 10 == pytest.approx(120.0, abs=0.3)


def test_rates_drop_after_the_patience_and_never_below_the_least() -> None:
    """On a straight path every change is small: the first drop can come after epoch 3."""
    path = [[float(t), 0.0] for t in range(13)]
    scheduler, optimizer = angles_along(path, factor=0.2, patience=3, min_lr=0.004, threshold=0.01, max_threshold=0.1)
    assert scheduler.drops == [5, 8, 11]
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.004, 0.004])
    assert scheduler.threshold == 0.1
    _, low = angles_along(path, patience=1, min_lr=0.07)  # a rate that is lower from the start is kept
    assert [g["lr"] for g in low.param_groups] == [0.07, 0.05]


def test_epochs_that_turn_do_not_drop() -> None:
    turning = [[0.0, 0.0]]
    for t in range(8):  # each step turns further than the one before
        angle = 0.05 * t * t
        turning.append([turning[-1][0] + math.cos(angle), turning[-1][1] + math.sin(angle)])
    scheduler, optimizer = angles_along(turning, patience=1)
    assert scheduler.drops == []
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_weights_become_their_weighted_average_at_a_drop() -> None:
    path = [[float(t), 0.0] for t in range(6)]
    _, optimizer = angles_along(path, patience=3, average=True)
    assert optimizer.param_groups[0]["params"][0].item() == pytest.approx((3 * 1 + 4 * 2 + 5 * 3) / 6)


def test_autodrop_resumes_from_its_state_dict(tmp_path: Path) -> None:
    path = [[math.sin(t / 3), t / 5] for t in range(5)] + [[t / 2, 1.0] for t in range(8)]
    whole, _ = angles_along(path, patience=2, average=True)
    half, optimizer = angles_along(path[:6], patience=2, average=True)
    torch.save(half.state_dict(), tmp_path / "autodrop.pt")
    resumed = halfulp.AutoDrop(optimizer, patience=2, average=True)
    resumed.load_state_dict(torch.load(tmp_path / "autodrop.pt", weights_only=True))
    for point in path[6:]:
        optimizer.step()
        for p, values in zip((g["params"][0] for g in optimizer.param_groups), (point[:1], point[1:]), strict=True):
            p.data.copy_(torch.tensor(values))
        resumed.step()
    assert (resumed.angles, resumed.drops, resumed.threshold) == (whole.angles, whole.drops, whole.threshold)
    assert whole.drops


def test_numbers_that_cannot_work_are_refused() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    for arguments in ({"factor": 1.0}, {"threshold": 0.0}, {"patience": 0}, {"keep": "disk"}):
        with pytest.raises(ValueError, match="got"):
            halfulp.AutoDrop(optimizer, **arguments)
