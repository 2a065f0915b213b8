"""Facts that separate one optimizer from the next: identities, norms and counterexamples, all in fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from halfulp import optim


def trajectory(name: str, arguments: dict[str, Any], steps: int = 30) -> torch.Tensor:
    """Weights after `steps` random gradients, the same for every optimizer."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.nn.Parameter(torch.randn(4, 6, generator=generator))
    optimizer = getattr(optim, name)([weight], **{"lr": 0.01, "weight_decay": 0.0, "state": "float32", **arguments})
    for _ in range(steps):
        weight.grad = torch.randn(4, 6, generator=generator)
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(
    ("name", "arguments", "base", "base_arguments"),
    [
        ("AdEMAMix", {"alpha": 0.0, "weight_decay": 0.1}, "AdamW", {"weight_decay": 0.1}),
        ("FRUGAL", {"density": 1.0, "weight_decay": 0.1}, "AdamW", {"weight_decay": 0.1}),
        ("SPAM", {"threshold": 0.0, "period": 0, "eps": 1e-12}, "Adam", {"eps": 1e-12}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limit_is_adam(name: str, arguments: dict[str, Any], base: str, base_arguments: dict[str, Any]) -> None:
    expected = trajectory(base, base_arguments)
    torch.testing.assert_close(trajectory(name, arguments), expected, rtol=1e-6, atol=1e-7)


def test_lion_without_memory_is_sign_descent() -> None:
    generator = torch.Generator().manual_seed(5)
    expected = torch.randn(4, 6, generator=generator)
    for _ in range(30):
        expected -= 0.01 * torch.randn(4, 6, generator=generator).sign()
    torch.testing.assert_close(trajectory("Lion", {"betas": (0.0, 0.0)}), expected, rtol=1e-6, atol=1e-6)


def test_lamb_moves_by_lr_times_the_norm_of_the_weights() -> None:
    start, after = trajectory("LAMB", {}, 0), trajectory("LAMB", {}, 1)
    assert (after - start).norm().item() == pytest.approx(0.01 * start.norm().item(), rel=1e-5)


def test_amsgrad_counterexample() -> None:
    """Reddi et al., 1904.09237, section 3: Adam settles at the worst point, AMSGrad heads for the best."""
    ends = {}
    for amsgrad in (False, True):
        x = torch.nn.Parameter(torch.zeros(1))
        optimizer = optim.Adam([x], lr=0.1, betas=(0.0, 0.1), amsgrad=amsgrad, state="float32")
        for t in range(1, 1501):
            optimizer.param_groups[0]["lr"] = 0.1 / t**0.5
            x.grad = torch.full((1,), 3.0 if t % 3 == 1 else -1.0)
            optimizer.step()
            with torch.no_grad():
                x.clamp_(-1, 1)
        ends[amsgrad] = x.item()
    assert ends[False] > 0.99, ends
    assert ends[True] < -0.5, ends


def test_am_adamw_at_its_bound_is_adam() -> None:
    """Without `lam`, and while gradients shrink slowly enough that the coefficient stays at its bound."""
    ends = []
    for name, extra in (("AMAdamW", {"lam": 0.0}), ("Adam", {})):
        weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        curvature = torch.tensor([[1.0, 0.1], [0.01, 2.0]])
        optimizer = getattr(optim, name)(
            [weight], lr=0.1, betas=(0.9, 0.999), weight_decay=0.0, state="float32", **extra
        )
        for _ in range(5):
            weight.grad = curvature * weight.detach()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)


def test_spam_trajectory() -> None:
    """The value of pytorch_optimizer 4.1.0, which like the authors adds eps to the uncorrected root."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
    curvature = torch.tensor([[1.0, 0.1], [0.01, 2.0]])
    optimizer = optim.SPAM([weight], lr=0.1, weight_decay=0.0, state="float32")
    for _ in range(5):
        weight.grad = curvature * weight.detach()
        optimizer.step()
    expected = torch.tensor([[0.507974, -1.503008], [2.502127, 0.027824]])
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=2e-6)


def soap_in_double(start: np.ndarray, grads: list[np.ndarray], lr: float, beta: float, period: int) -> np.ndarray:
    """SOAP (arXiv 2409.11321) as its authors run it, in float64: the first gradient only sets the bases."""
    x, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    grams, bases = [np.zeros((n, n)) for n in start.shape], []
    for t, g in enumerate(grads):
        if t > 0:
            m, turned = beta * m + (1 - beta) * g, bases[0].T @ g @ bases[1]
            v = beta * v + (1 - beta) * turned**2
            step = (bases[0].T @ m @ bases[1]) / (1 - beta**t) / (np.sqrt(v / (1 - beta**t)) + 1e-8)
            x = x - lr * bases[0] @ step @ bases[1].T
        for i, outer in enumerate((g @ g.T, g.T @ g)):
            grams[i] = beta * grams[i] + (1 - beta) * outer
            if t == 0:
                bases.append(np.linalg.eigh(grams[i])[1][:, ::-1])
            elif t % period == 0:
                product = grams[i] @ bases[i]
                order = np.argsort(-(bases[i] * product).sum(0))
                v = np.take(v, order, axis=i)
                bases[i] = np.linalg.qr(product[:, order])[0]
    return x


@pytest.mark.parametrize("seed", range(3))
def test_soap_follows_its_float64_model(seed: int) -> None:
    """On square matrices: where a gram has a null space, its eigenvectors, and so the steps, are not determined."""
    rng = np.random.default_rng(seed)
    start, grads = rng.standard_normal((5, 5)), [rng.standard_normal((5, 5)) for _ in range(35)]
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = optim.SOAP([weight], lr=0.01, weight_decay=0.0, state="fp32")
    for grad in grads:
        weight.grad = torch.tensor(grad, dtype=torch.float32)
        optimizer.step()
    expected = soap_in_double(start, grads, 0.01, 0.95, 10)
    moved = np.abs(expected - start).max()
    assert np.abs(weight.detach().numpy() - expected).max() < 1e-4 * moved
