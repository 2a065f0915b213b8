"""The predicted loss gap: replayed updates beside those of real optimizers, and the formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import halfulp
from halfulp.theory.loss_gap import LossByRate, UpdateChange, loss_gap, update_change

Single = npt.NDArray[np.float32]
BETAS = (0.8, 0.98)


def updates(gradients: Single, build: Callable[[torch.nn.Parameter], torch.optim.Optimizer]) -> Single:
    """The steps that an optimizer takes from zero, at a rate of 1."""
    weight = torch.nn.Parameter(torch.zeros(gradients.shape[1:]))
    optimizer, found = build(weight), []
    for gradient in gradients:
        weight.data.zero_()
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
        found.append(-weight.detach().numpy().copy())
    return np.stack(found)


def bf16(x: Single) -> Single:
    return np.asarray(torch.from_numpy(x).bfloat16().float().numpy())


def e4m3(x: Single) -> Single:
    """Rounding in rows of 128 under power-of-two scales."""
    rows = torch.from_numpy(x).reshape(-1, 128)
    scale = torch.exp2(torch.ceil(torch.log2(rows.amax(1, keepdim=True) / 448)))
    return np.asarray(((rows / scale).to(torch.float8_e4m3fn).float() * scale).reshape(x.shape).numpy())


@pytest.mark.parametrize("period", [None, 9])
@pytest.mark.parametrize(
    ("state", "store"),
    [
        ({"exp_avg": "bf16", "exp_avg_sq": "bf16"}, (bf16, bf16)),
        ({"exp_avg": "fp32", "exp_avg_sq": "bf16"}, (None, bf16)),
        ({"exp_avg": "fp32", "exp_avg_sq": "float8_e4m3fn"}, (None, e4m3)),
    ],
)
def test_replayed_updates_are_those_of_the_optimizers(state: dict[str, str], store: Any, period: int | None) -> None:
    rng = np.random.default_rng(0)
    falling = np.geomspace(1, 0.1, 60)[:, None, None]
    gradients = (falling * rng.standard_normal((60, 32, 128)) * rng.uniform(0.5, 2, (32, 128))).astype(np.float32)
    weights = np.linspace(1, 0, 60)
    exact = updates(gradients, lambda p: torch.optim.Adam([p], lr=1.0, betas=BETAS)).astype(float)
    stored = updates(
        gradients,
        lambda p: halfulp.AdamW(
            [p], lr=1.0, betas=BETAS, weight_decay=0.0, state=state, rounding="nearest", reset=period, zero_floor=False
        ),
    ).astype(float)
    change = update_change(gradients, betas=BETAS, store=store, periods=(period, period), weights=weights)
    squares, product, found = (np.einsum("t,tij,tij->", weights, a, b) for a, b in
                               ((exact, exact), (exact, stored), (stored, stored)))  # fmt: skip
    assert change.factor == pytest.approx(product / squares, rel=1e-4)
    assert change.residual == pytest.approx(1 - product**2 / squares / found, rel=0.02, abs=2e-7)
    assert change.residual > 2e-6


def test_the_residual_is_what_no_common_factor_removes() -> None:
    rng = np.random.default_rng(1)
    exact, noise = rng.standard_normal((2, 1000))
    noise -= exact * (exact @ noise) / (exact @ exact)
    found = 1.3 * exact + 0.4 * noise
    change = UpdateChange(exact @ exact, found @ exact, found @ found)
    assert change.factor == pytest.approx(1.3)
    assert change.residual == pytest.approx(0.16 * (noise @ noise) / (found @ found))
    both = change + UpdateChange(2.0, 4.0, 8.0)
    assert both.factor == pytest.approx((found @ exact + 4) / (exact @ exact + 2))


@pytest.mark.parametrize(
    ("lr", "loss"), [(1e-3, 2.4), (2e-3, 2.0), (math.sqrt(2) * 1e-3, 2.2), (4e-3, 2.1), (8e-3, 2.2), (2.5e-4, 3.2)]
)
def test_losses_between_rates_lie_on_lines(lr: float, loss: float) -> None:
    assert LossByRate({4e-3: 2.1, 1e-3: 2.4, 2e-3: 2.0})(lr) == pytest.approx(loss)


def test_a_gap_is_that_of_another_rate_and_of_the_residual() -> None:
    curve = LossByRate({1e-3: 2.2, 2e-3: 2.0, 4e-3: 2.2})
    change = UpdateChange(1.0, 0.5, 0.3)
    for lr, rate in ((2e-3, 0.2), (4e-3, -0.2)):
        assert loss_gap(change, curve, lr, per_residual=0.6) == pytest.approx(rate + 0.6 * (1 - 0.25 / 0.3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: update_change(np.zeros((0, 2), np.float32), betas=BETAS, store=(None, None)), "at least one step"),
        (lambda: update_change(np.ones((3, 2), np.float32), betas=BETAS, store=(None, None), weights=[1]), "3 steps"),
        (lambda: update_change(np.ones((3, 2), np.float32), betas=BETAS, store=(None, None), periods=(0, 5)), "period"),
        (lambda: LossByRate({1e-3: 2.0}), "two positive rates"),
        (lambda: LossByRate({0.0: 2.0, 1e-3: 2.1}), "two positive rates"),
    ],
)
def test_bad_input(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
