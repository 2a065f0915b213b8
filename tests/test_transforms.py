"""Transforms: their effect on the gradient or parameter, their order, and their use with every format."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import halfulp
from halfulp.engine.optimizer import RuleOptimizer
from halfulp.rules.base import Rule
from halfulp.rules.transforms import Transform, compose, with_weight_decay
from support.optimizers import STATES, stored_bytes

ALL: dict[str, list[Transform]] = {
    "clip_global": [halfulp.clip_global(1.0)],
    "adagc": [halfulp.adagc(warmup=2)],
    "clip_coordinates": [halfulp.clip_coordinates(0.1)],
    "two": [halfulp.clip_coordinates(0.1), halfulp.adagc(warmup=2)],
}


def moves(gradients: list[Tensor], transforms: list[Transform], **more: Any) -> list[Tensor]:
    """What plain SGD with lr=1 takes off a parameter that starts each step at zero: the changed gradients."""
    p = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = halfulp.SGD([p], lr=1.0, state="fp32", transforms=transforms, **more)
    found = []
    for gradient in gradients:
        p.data.zero_()
        p.grad = gradient.clone()
        optimizer.step()
        found.append(-p.detach().clone())
    return found


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- AdaGC


def test_adagc_never_clips_a_constant_norm() -> None:
    gradients = [g / g.norm() for g in (random(8, 16, seed=i) for i in range(30))]
    for found, gradient in zip(moves(gradients, [halfulp.adagc(warmup=5)]), gradients, strict=True):
        assert torch.equal(found, gradient)


def test_adagc_clips_a_spike_to_the_limit() -> None:
    """After an average norm of 1, a gradient of norm 100 keeps its direction and 1.05 of its size."""
    unit = random(8, 16) / random(8, 16).norm()
    found = moves([unit] * 10 + [unit * 100] + [unit * 100], [halfulp.adagc(relative=1.05, beta=0.98, warmup=5)])
    assert found[10].double().norm().item() == pytest.approx(1.05, rel=1e-6)
    torch.testing.assert_close(found[10], unit * 1.05, rtol=1e-6, atol=0)
    after = 0.98 * 1.0 + 0.02 * 1.05  # the average includes the clipped norm, not the spike
    assert found[11].double().norm().item() == pytest.approx(1.05 * after, rel=1e-6)


def test_adagc_limits_the_norm_while_warming_up() -> None:
    found = moves([random(8, 16) * 50], [halfulp.adagc(warmup=5, absolute=2.0)])
    assert found[0].double().norm().item() == pytest.approx(2.0, rel=1e-6)


# ---------------------------------------------------------------- clipping


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e3])
def test_global_clipping_is_torchs_to_a_few_ulp(max_norm: float) -> None:
    """One norm over all parameters; torch adds 1e-6 to it, which its own factor is freed of here."""
    gradients = [random(7, 33, seed=1), random(129, seed=2) * 3]
    ours = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    theirs = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for params in (ours, theirs):
        for p, g in zip(params, gradients, strict=True):
            p.grad = g.clone()
    halfulp.SGD(ours, lr=1.0, state="fp32", transforms=[halfulp.clip_global(max_norm)]).step()
    size = torch.nn.utils.clip_grad_norm_(theirs, max_norm).item()
    freed = (size + 1e-6) / size if size > max_norm else 1.0
    for p, q in zip(ours, theirs, strict=True):
        assert q.grad is not None
        torch.testing.assert_close(-p.detach(), q.grad * freed, rtol=5 * 2**-23, atol=0)


def test_the_largest_coordinates_are_clipped() -> None:
    gradient = torch.tensor([[1.0, -10.0, 3.0, 2.0, -4.0], [0.5, 0.25, 9.0, -1.5, 0.0]])
    expected = gradient.clamp(-4.0, 4.0)
    assert torch.equal(moves([gradient], [halfulp.clip_coordinates(0.2)])[0], expected)
    assert torch.equal(moves([gradient], [halfulp.clip_coordinates(0.0)])[0], gradient)
    assert moves([torch.zeros(0)], [halfulp.clip_coordinates(0.2)])[0].shape == (0,)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [(halfulp.clip_global, (0.0,)), (halfulp.clip_global, (float("nan"),)), (halfulp.clip_coordinates, (1.0,)),
     (halfulp.clip_coordinates, (-0.1,))],
)  # fmt: skip
def test_numbers_that_cannot_work_are_refused(make: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"got"):
        make(*arguments)


def test_a_rule_with_sums_of_its_own_refuses_the_clips_it_would_not_see() -> None:
    for transform in (halfulp.clip_global(1.0), halfulp.adagc()):
        with pytest.raises(ValueError, match="sums over the model"):
            compose(halfulp.AMSGD.rule, (transform,))


# ---------------------------------------------------------------- decay, order


def decayed(decoupled: bool) -> Tensor:
    """One step of a rule that takes the gradient off, from weights of 2, lr 0.5, decay 0.1, gradient 1."""
    plain = Rule("plain", lambda h: (), lambda h, a: {"lr": float(h["lr"])}, lambda p, g, s, c: (p - g * c["lr"], {}))

    class Plain(RuleOptimizer):
        rule = with_weight_decay(plain)

    p = torch.nn.Parameter(torch.full((2, 3), 2.0))
    optimizer = Plain([p], {"lr": 0.5, "weight_decay": 0.1, "decoupled_weight_decay": decoupled})
    p.grad = torch.ones(2, 3)
    optimizer.step()
    return p.detach()


def test_weight_decay_coupled_and_decoupled() -> None:
    assert decayed(True).unique().item() == pytest.approx(2 * (1 - 0.5 * 0.1) - 0.5, abs=1e-6)
    assert decayed(False).unique().item() == pytest.approx(2 - 0.5 * (1 + 0.1 * 2), abs=1e-6)


def test_coupled_decay_passes_through_the_moments_and_decoupled_does_not() -> None:
    """AdaBelief's first step has the same size for any gradient, so that coupled decay changes nothing there."""
    ends = {}
    for decoupled in (False, True):
        p = torch.nn.Parameter(torch.full((4,), 2.0))
        optimizer = halfulp.AdaBelief(
            [p], lr=0.1, weight_decay=0.5, decoupled_weight_decay=decoupled, state="fp32", betas=(0.5, 0.999), eps=0.0
        )
        p.grad = torch.ones(4)
        optimizer.step()
        ends[decoupled] = 2.0 - p.detach()[0].item()
        assert optimizer.state_tensor(p, "exp_avg")[0].item() == (0.5 if decoupled else 1.0)
    assert ends[True] - ends[False] == pytest.approx(0.1 * 0.5 * 2.0, abs=1e-6)


def scaled(factor: float) -> Transform:
    """Multiplies the gradient: what a user's own transform looks like."""
    from dataclasses import replace

    def transform(rule: Rule) -> Rule:
        return replace(rule, update=lambda p, g, s, c: rule.update(p, g * factor, s, c))

    return transform


def test_the_first_transform_acts_on_the_gradient_first() -> None:
    gradient = torch.full((4, 4), 1.0)  # of norm 4
    clip, double = halfulp.adagc(warmup=5, absolute=1.0), scaled(2.0)
    assert moves([gradient], [clip, double])[0].norm().item() == pytest.approx(2.0, rel=1e-6)
    assert moves([gradient], [double, clip])[0].norm().item() == pytest.approx(1.0, rel=1e-6)


def test_what_is_no_transform_is_refused() -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    for wrong in (halfulp.adagc(), [1.0]):
        with pytest.raises(ValueError, match="functions from a rule to a rule"):
            halfulp.SGD([p], lr=0.1, transforms=wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------- with every format


def build_model() -> torch.nn.Sequential:
    torch.manual_seed(11)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8))


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Losses on a linear teacher, before each step."""
    x = random(128, 64, seed=5)
    y = x @ random(64, 8, seed=6) / 8 + 1.0
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", ALL)
def test_every_format_trains_and_resumes_under_transforms(name: str, state: str) -> None:
    def make(model: torch.nn.Module, seed: int) -> RuleOptimizer:
        return halfulp.AdamW(model.parameters(), lr=0.03, state=state, min_size=0, seed=seed, transforms=ALL[name])

    model, other = build_model(), build_model()
    optimizer = make(model, 1)
    losses = train(model, optimizer, 25)
    assert losses[-1] < 0.4 * losses[0]
    assert stored_bytes(optimizer) == optimizer.memory().total
    other.load_state_dict(model.state_dict())
    resumed = make(other, 2)
    resumed.load_state_dict(optimizer.state_dict())
    assert train(model, optimizer, 4) == train(other, resumed, 4)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        for state_of in optimizer.states(p):
            key = state_of.slot.name
            assert torch.equal(optimizer.state_tensor(p, key), resumed.state_tensor(q, key)), key
