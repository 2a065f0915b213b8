"""Optimizers that contain another one give the same weights in fp32."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import halfulp

STEPS = 30


def run(name: str, arguments: dict[str, Any], shape: tuple[int, ...] = (6, 9), steps: int = STEPS) -> torch.Tensor:
    """Weights after random gradients, the same for every optimizer."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = getattr(halfulp, name)([weight], **{"lr": 0.01, "weight_decay": 0.0, "state": "fp32", **arguments})
    for _ in range(steps):
        weight.grad = torch.randn(shape, generator=generator)
        optimizer.step()
    return weight.detach()


DECAY = {"weight_decay": 0.1}
SAME: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "AdEMAMix without its slow average": ("AdEMAMix", {"alpha": 0.0, **DECAY}, "AdamW", DECAY),
    "FRUGAL, all columns": ("FRUGAL", {"density": 1.0, "period": 10**6, **DECAY}, "AdamW", DECAY),
    "FRUGAL, no column, is signSGD": ("FRUGAL", {"density": 0.0}, "Lion", {"betas": (0.0, 0.0)}),
    "SPAM without spikes or resets": ("SPAM", {"threshold": 0.0, "period": 0, "eps": 0.0}, "Adam", {"eps": 0.0}),
    "SWATS before its switch": ("SWATS", {"tolerance": 0.0, "eps": 0.0}, "Adam", {"eps": 0.0}),
    "MicroAdam, dense, within its window": ("MicroAdam", {"density": 1.0, "window": STEPS, **DECAY}, "AdamW", DECAY),
    "BAdam, one block": ("BAdam", DECAY, "AdamW", DECAY),
    "Subspace-Momentum of full rank": ("SubspaceMomentum", {"rank": 99, "period": 10**6}, "SubsetNorm", {}),
    "clipping no coordinate": ("Adam", {"transforms": [halfulp.clip_coordinates(0.0)]}, "Adam", {}),
    "complex momentum of phase 0": ("ComplexMomentum", {"phase": 0.0}, "SGD", {"momentum": 0.9}),
    "AdaLomo": ("AdaLomo", {"lr": 1e-3}, "Adafactor", {"lr": 1e-3, "relative_step": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_one_contains_the_other(name: str) -> None:
    """The same arithmetic in another order, so not to the last bit."""
    ours, arguments, base, base_arguments = SAME[name]
    torch.testing.assert_close(run(ours, arguments), run(base, base_arguments), rtol=0, atol=3e-6)


def test_madgrad_with_momentum_averages_what_it_reaches_without() -> None:
    """Where gradients do not follow the weights, momentum is an average of the targets alone."""
    average = run("MADGRAD", {}, steps=0)
    for step in range(1, STEPS + 1):
        average = average + 0.1 * (run("MADGRAD", {"momentum": 0.0}, steps=step) - average)
    torch.testing.assert_close(run("MADGRAD", {"momentum": 0.9}), average, rtol=0, atol=1e-5)
    assert float((run("MADGRAD", {"momentum": 0.0}) - average).abs().max()) > 0.1


def test_subsets_of_one_element_are_adam() -> None:
    """Vectors keep a second moment for each element."""
    assert torch.equal(run("SubsetNorm", {}, (40,)), run("SubspaceMomentum", {}, (40,)))
    torch.testing.assert_close(run("SubsetNorm", {}, (40,)), run("Adam", {}, (40,)), rtol=0, atol=1e-6)


def test_lion_without_memory_is_sign_descent() -> None:
    generator = torch.Generator().manual_seed(5)
    expected = torch.randn(6, 9, generator=generator)
    for _ in range(STEPS):
        expected -= 0.01 * torch.randn(6, 9, generator=generator).sign()
    torch.testing.assert_close(run("Lion", {"betas": (0.0, 0.0)}), expected, rtol=0, atol=1e-6)


def test_soap_in_the_bases_of_diagonal_matrices_is_adam_a_step_late() -> None:
    """Gradients with one element for each row and column have the identity as bases, up to order and sign."""
    generator = torch.Generator().manual_seed(0)
    grads = [torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]) * torch.randn(4, generator=generator)) for _ in range(8)]
    soap, adam = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    first = halfulp.SOAP([soap], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-6, state="fp32")
    second = halfulp.Adam([adam], lr=0.01, betas=(0.9, 0.95), eps=1e-6, state="fp32")
    for step, grad in enumerate(grads):
        soap.grad, adam.grad = grad.clone(), grad.clone()
        first.step()
        if step > 0:
            second.step()
    torch.testing.assert_close(soap, adam, rtol=0, atol=2e-6)


def test_adabound_ends_as_sgd() -> None:
    """Late, both bounds are the final rate: an EMA-momentum SGD, whatever the second moment."""
    from halfulp.rules.variants import ADABOUND, AdaBoundHyper

    hyper = {**vars(AdaBoundHyper(lr=1e-3, final_lr=0.1)), "bound_update": True}
    c = ADABOUND.scalars(hyper, {"step": 10**9, "exp_avg": 10**9, "exp_avg_sq": 10**9})
    grad, average = torch.randn(50), torch.randn(50)
    for square in (torch.full((50,), 1e-8), torch.full((50,), 1e4)):
        param, _ = ADABOUND.update(torch.zeros(50), grad, {"exp_avg": average, "exp_avg_sq": square}, c)
        torch.testing.assert_close(param, -0.1 * (0.9 * average + 0.1 * grad), rtol=1e-4, atol=1e-6)


def test_am_adamw_at_its_bound_is_adam() -> None:
    """Without `lam`, and while gradients shrink slowly enough that the coefficient stays at its bound."""
    ends = []
    for name, extra in (("AMAdamW", {"lam": 0.0}), ("Adam", {})):
        weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        curvature = torch.tensor([[1.0, 0.1], [0.01, 2.0]])
        optimizer = getattr(halfulp, name)(
            [weight], lr=0.1, betas=(0.9, 0.999), weight_decay=0.0, state="fp32", **extra
        )
        for _ in range(5):
            weight.grad = curvature * weight.detach()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)


def test_core_without_normalisation_has_the_steps_of_rprop() -> None:
    """A constant sign for n steps: lr * 1.2**(n - 1), up to the largest; the first step knows no sign before it."""
    w = torch.nn.Parameter(torch.zeros(4))
    optimizer = halfulp.CoRe([w], lr=1e-3, steps=(1e-6, 5e-3), weight_decay=0.0, state="fp32")
    for n in range(1, 15):
        w.grad = torch.full((4,), 0.3)
        optimizer.step()
        expected = min(1e-3 * 1.2 ** (n - 1), 5e-3)
        assert optimizer.state_tensor(w, "step_size").tolist() == pytest.approx([expected] * 4, rel=1e-5)


def test_global_clipping_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(6, 9)) for _ in range(2)]
    for p in params:
        p.grad = torch.randn(6, 9, generator=generator)
    twin = [torch.nn.Parameter(torch.zeros(6, 9)) for _ in range(2)]
    for p, q in zip(params, twin, strict=True):
        q.grad = p.grad.clone()
    halfulp.SGD(params, lr=0.1, state="fp32", transforms=[halfulp.clip_global(1.0)]).step()
    torch.nn.utils.clip_grad_norm_(twin, 1.0)
    halfulp.SGD(twin, lr=0.1, state="fp32").step()
    torch.testing.assert_close(params, twin, rtol=1e-5, atol=1e-7)
    assert math.isclose(float(torch.cat([p.detach() for p in params]).norm()), 0.1, rel_tol=1e-5)
