"""Pulls that are lost in low precision: predicted, counted by the monitor, and absent under stochastic rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import halfulp
from halfulp.workers import DPPF, EASGD, DiLoCo, message_error, pull_stall, simulate


def pulled(rounding: str, share: float, relative: float, meetings: int) -> tuple[float, float]:
    """Share of pulls lost of bf16 weights that walk, as the monitor counts; and their distance from the mean.

    Four workers walk around their mean, independently, by steps that bf16 takes without a loss of its own.
    """

    def work(peers: Any) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(7)
        start = torch.exp2(torch.rand(64, 64, generator=generator))  # log-uniform mantissas
        weight = nn.Parameter(start.to(torch.bfloat16))
        inside = halfulp.SGD([weight], lr=1.0, param_rounding="stochastic", seed=peers.rank)
        optimizer = DPPF(inside, pull=share, push=0.0, every=1, rounding=rounding, group=peers)
        watch = halfulp.StallMonitor(optimizer.pull, every=1, sample=4096)
        walk = torch.Generator().manual_seed(100 + peers.rank)
        for _ in range(meetings):
            weight.grad = (relative * start * torch.randn(64, 64, generator=walk)).to(torch.bfloat16)
            optimizer.step()
        lost = watch.weights_stalled()
        assert lost is not None
        return lost, float(optimizer.distance or 0.0)

    found = simulate(4, work)
    return sum(lost for lost, _ in found) / 4, sum(away for _, away in found) / 4


@pytest.mark.parametrize("share", [0.03, 0.2])
def test_the_monitor_counts_the_pulls_that_theory_says_are_lost(share: float) -> None:
    relative, meetings = 2e-3, 80
    nearest, far = pulled("nearest", share, relative, meetings)
    stochastic, near = pulled("stochastic", share, relative, meetings)
    walk = relative * (3 / 4) ** 0.5  # around the mean of four
    for counted, rounding in ((nearest, "nearest"), (stochastic, "stochastic")):
        said = pull_stall("bf16", share, walk, rounding, meetings=meetings)  # type: ignore[arg-type]
        assert counted == pytest.approx(said.stalled, abs=0.06), rounding
    assert nearest > stochastic
    assert far > near


def test_a_centre_in_bf16_stands_still_under_nearest_rounding() -> None:
    """Workers drift by a little at each meeting; the centre has to follow."""

    def centre(state: str, rounding: str) -> float:
        def work(peers: Any) -> float:
            weight = nn.Parameter(torch.ones(64, 64))
            optimizer = EASGD(
                torch.optim.SGD([weight], lr=1.0), beta=0.02, every=1, centre=state, rounding=rounding, min_size=0,
                group=peers,
            )  # fmt: skip
            for _ in range(60):
                weight.grad = torch.full_like(weight, -1e-3)
                optimizer.step()
            return float(optimizer.reference.read("0").mean()) - 1.0

        return simulate(2, work)[0]

    exact = centre("fp32", "nearest")
    assert exact > 0.01
    assert abs(centre("bf16", "nearest")) < 0.1 * exact
    assert centre("bf16", "stochastic") == pytest.approx(exact, rel=0.1)
    assert centre("8bit", "stochastic") == pytest.approx(exact, rel=0.3)


@pytest.mark.parametrize(("message", "bits"), [("fp32", 32.0), ("bf16", 16.0), ("8bit", 8.25), ("4bit", 4.25)])
def test_error_of_messages_falls_with_bits_and_with_workers(message: str, bits: float) -> None:
    found = message_error(message, workers=16)
    assert found.bits == bits
    if message == "fp32":
        assert found.error == 0.0
        return
    assert found.of_mean == pytest.approx(found.error / 4, rel=0.05)
    nearest = message_error(message, "nearest", workers=16)
    assert nearest.error < found.error
    assert nearest.of_mean == pytest.approx(nearest.error, rel=1e-4)  # all have the same error
    step = {"8bit": 2.83 / 127}.get(message)  # expected largest of 128 normal values
    if step is not None:
        assert found.error == pytest.approx(step / 6**0.5, rel=0.05)
        assert nearest.error == pytest.approx(step / 12**0.5, rel=0.05)


def test_errors_of_different_values_do_not_add_up() -> None:
    """Under nearest rounding too, where workers that send the same values err alike."""
    found = message_error("8bit", "nearest", workers=16, similar=False)
    assert found.of_mean == pytest.approx(found.error / 4, rel=0.05)


def test_a_pull_meets_the_walk_since_the_last_one() -> None:
    """Independent steps add up as their squares do; so do those of workers in their mean."""
    for options, walk in (({"every": 16}, 4e-4), ({"workers": 4}, 5e-5), ({"every": 4, "workers": 4}, 1e-4)):
        assert pull_stall("bf16", 0.01, 1e-4, **options) == pull_stall("bf16", 0.01, walk)
    near, far = (pull_stall("linear8", 0.01, 1e-3, "nearest", absmax_ratio=ratio).stalled for ratio in (1.0, 100.0))
    assert near < far  # a weight far below the largest of its block meets a coarser grid


def test_what_is_no_pull_is_refused() -> None:
    with pytest.raises(ValueError, match="share of the way in"):
        pull_stall("bf16", 1.0, 1e-3)


def test_the_monitor_watches_the_outer_optimizer() -> None:
    def work(peers: Any) -> list[Any]:
        weight = nn.Parameter(torch.ones(64, 64))
        optimizer = DiLoCo(
            torch.optim.SGD([weight], lr=0.1), every=1, group=peers,
            outer=lambda p: halfulp.AdamW(p, lr=1e-3, state="bf16", rounding="nearest", min_size=0),
        )  # fmt: skip
        watch = halfulp.StallMonitor(optimizer.outer, every=1)
        generator = torch.Generator().manual_seed(peers.rank)
        for _ in range(40):
            weight.grad = torch.randn(64, 64, generator=generator)
            optimizer.step()
        return watch.measure()

    found = {m.slot: m for m in simulate(2, work)[0]}
    second = found["exp_avg_sq"]
    assert second.stalled == pytest.approx(second.predicted, abs=0.1)
    assert second.stalled > 0.2
