"""Optimizers in fp32 against published trajectories, and step by step against torch.optim and float64 models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import halfulp

START = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
CURVATURE = torch.tensor([[1.0, 0.1], [0.01, 2.0]])

# The weights after steps 1 and 5 on loss = sum(a * W**2) / 2, from float64 runs of torch.optim and pytorch_optimizer
# 4.1.0 at that package's defaults; the two adaptive-memory rows from a float64 script of the paper's rules.
GOLDEN: list[tuple[str, dict[str, Any], list[float], list[float]]] = [
    ("Adam", {}, [0.9, -1.9, 2.9, 0.4], [0.507964, -1.502956, 2.50178, 0.027814]),
    ("Adam", {"amsgrad": True}, [0.9, -1.9, 2.9, 0.4], [0.507964, -1.502956, 2.50178, 0.027814]),
    ("AdamW", {"weight_decay": 0.1}, [0.89, -1.88, 2.87, 0.395], [0.469953, -1.415567, 2.365279, 0.01533]),
    ("AdaBelief", {}, [0.888889, -1.888889, 2.888889, 0.388889], [0.404493, -1.393014, 2.39049, -0.049146]),
    ("AdaMod", {}, [0.99999, -1.99999, 2.99999, 0.49999], [0.999735, -1.999735, 2.999735, 0.499735]),
    ("AdaBound", {}, [0.9, -1.9, 2.900001, 0.4], [0.507964, -1.502956, 2.501783, 0.027815]),
    ("DiffGrad", {}, [0.926894, -1.945017, 2.949251, 0.426894], [0.723113, -1.745165, 2.749605, 0.221111]),
    ("CAME", {}, [-0.556348, -1.700211, 2.951522, -1.056348], [-0.312619, -0.211994, 2.647148, 0.947999]),
    ("Lion", {"lr": 0.01}, [0.99, -1.99, 2.99, 0.49], [0.95, -1.95, 2.95, 0.45]),
    ("AdEMAMix", {}, [0.89995, -1.89995, 2.89995, 0.39995], [0.507233, -1.502211, 2.501033, 0.027159]),
    ("ADOPT", {}, [1.0, -2.0, 3.0, 0.5], [0.910886, -1.9102, 2.90997, 0.412249]),
    ("AdamP", {}, [0.9, -1.9, 2.9, 0.4], [0.507964, -1.502956, 2.50178, 0.027814]),
    ("Conda", {}, [0.85881, -1.991908, 2.991908, 0.35881], [0.316048, -1.953444, 2.958399, -0.123684]),
    ("SPAM", {}, [0.900003, -1.900016, 2.900105, 0.400003], [0.507974, -1.503008, 2.502127, 0.027824]),
    ("SWATS", {"eps": 1e-6}, [0.900003, -1.900016, 2.900105, 0.400003], [0.507974, -1.503008, 2.502127, 0.027824]),
    ("MADGRAD", {"lr": 0.01}, [0.995358, -1.997285, 2.998558, 0.495358], [0.948194, -1.969619, 2.983846, 0.448405]),
    ("EXAdam", {}, [-0.595242, -0.40494, 1.413094, -1.095242], [-0.014621, 0.128728, 0.055032, 0.043031]),
    ("LARS", {}, [0.999736, -1.999947, 2.999992, 0.499736], [0.996526, -1.999305, 2.999896, 0.496528]),
    ("LAMB", {"bias_correction": "step"}, [-0.888, -0.112239, 1.113928, -1.388],
     [-0.424368, 0.694005, -0.31972, -0.266257]),
    ("LAMB", {"bias_correction": "none"}, [0.8112, -1.811224, 2.811393, 0.3112],  # adam_debias=True there
     [0.18824, -1.164179, 2.160081, -0.192847]),
    # With a float64 first moment: the package rounds it to bfloat16 by default, to 0.965393, -1.993172, ... in step 5.
    ("Adafactor", {"lr": 0.01, "momentum": 0.9}, [0.997357, -1.999481, 2.999919, 0.497357],
     [0.965452, -1.993163, 2.998933, 0.465451]),
    ("AMSGD", {}, [0.9, -1.98, 2.997, 0.4], [0.519499, -1.900394, 2.985006, 0.038548]),
    ("AMAdamW", {}, [0.901088, -1.90022, 2.900033, 0.401088], [0.515631, -1.504798, 2.502188, 0.034348]),
    ("AdamW", {"weight_decay": 0.1, "transforms": [halfulp.adagc()]}, [0.89, -1.88, 2.87, 0.395],
     [0.462378, -1.410918, 2.361541, 0.002834]),
]  # fmt: skip


def golden_run(name: str, arguments: dict[str, Any], steps: int = 5) -> list[torch.Tensor]:
    """Weights after each step."""
    w = torch.nn.Parameter(START.clone())
    optimizer = getattr(halfulp, name)([w], state="fp32", **{"lr": 0.1, "weight_decay": 0.0, **arguments})
    found = []
    for _ in range(steps):
        w.grad = CURVATURE * w.detach()
        optimizer.step()
        found.append(w.detach().clone())
    return found


@pytest.mark.parametrize(
    ("name", "arguments", "first", "fifth"), GOLDEN, ids=[f"{g[0]}-{i}" for i, g in enumerate(GOLDEN)]
)
def test_published_trajectory(name: str, arguments: dict[str, Any], first: list[float], fifth: list[float]) -> None:
    """Published values have six decimals; the rest is the round-off of five steps in fp32."""
    found = golden_run(name, arguments)
    for weights, expected in ((found[0], first), (found[4], fifth)):
        torch.testing.assert_close(weights, torch.tensor(expected).reshape(2, 2), rtol=0, atol=2e-6)


# ---------------------------------------------------------------- torch.optim


ROUND_OFF = 100 * 2**-24 * 2
"""Half a unit a step, of weights below 2."""
TORCH: dict[str, tuple[str, dict[str, Any], dict[str, Any], float]] = {
    "Adam": ("Adam", {"lr": 0.01, "weight_decay": 0.1}, {}, ROUND_OFF),
    "AdamW": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}, {}, ROUND_OFF),
    "AMSGrad": ("AdamW", {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}, {}, ROUND_OFF),
    "SGD": ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {}, ROUND_OFF),
    "Adafactor": ("Adafactor", {"lr": 0.02}, {}, ROUND_OFF),
    "Adafactor decay": ("Adafactor", {"lr": 0.02, "weight_decay": 0.1}, {}, ROUND_OFF),
    "Muon": ("Muon", {"lr": 0.01, "weight_decay": 0.1}, {"adjust_lr_fn": "original"}, 1.5e-2),  # bfloat16 in torch
}


@pytest.mark.parametrize("case", TORCH)
def test_torch_agrees_over_100_random_steps(case: str) -> None:
    name, arguments, ours_only, tolerance = TORCH[case]
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(6, 9, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.double())
    mine = getattr(halfulp, name)([ours], state="fp32", **arguments, **ours_only)
    oracle = getattr(torch.optim, name)([theirs], **arguments)
    for _ in range(100):
        grad = torch.randn(6, 9, generator=generator)
        ours.grad, theirs.grad = grad, grad.double()
        mine.step()
        oracle.step()
    moved = float((theirs.detach() - start).abs().max())
    assert moved > 0.05
    assert float((ours.detach() - theirs.detach()).abs().max()) < tolerance


# ---------------------------------------------------------------- float64 models of the published rules


def soap_in_double(start: Any, grads: list[Any], lr: float, beta: float, period: int, eps: float = 1e-8) -> Any:
    """SOAP (arXiv 2409.11321) as its authors run it, in float64: the first gradient only sets the bases."""
    x, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    grams, bases = [np.zeros((n, n)) for n in start.shape], []
    for t, g in enumerate(grads):
        if t > 0:
            m, turned = beta * m + (1 - beta) * g, bases[0].T @ g @ bases[1]
            v = beta * v + (1 - beta) * turned**2
            step = (bases[0].T @ m @ bases[1]) / (1 - beta**t) / (np.sqrt(v / (1 - beta**t)) + eps)
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


def test_soap_reproduces_the_published_trajectory_in_double() -> None:
    """The rotated gradient of step 2 is diagonal there, and what fp32 leaves beside it is as large as eps = 1e-8.

    So the float64 model is held against the published weights, and the optimizer against the model at a larger eps.
    """
    for eps in (1e-8, 1e-2):
        weights, grads = START.double().numpy(), []
        for _ in range(5):
            grads.append(CURVATURE.double().numpy() * weights)
            weights = soap_in_double(START.double().numpy(), grads, 0.1, 0.95, 10, eps)
        if eps == 1e-8:
            assert weights.flatten().tolist() == pytest.approx([0.493573, -1.855337, 2.856313, 0.239648], abs=2e-6)
        else:
            found = golden_run("SOAP", {"eps": eps})[4]
            assert found.flatten().tolist() == pytest.approx(weights.flatten().tolist(), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_soap_follows_its_float64_model(seed: int) -> None:
    """On square matrices: where a gram has a null space, its eigenvectors, and so the steps, are not determined."""
    rng = np.random.default_rng(seed)
    start, grads = rng.standard_normal((5, 5)), [rng.standard_normal((5, 5)) for _ in range(35)]
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = halfulp.SOAP([weight], lr=0.01, weight_decay=0.0, state="fp32")
    for grad in grads:
        weight.grad = torch.tensor(grad, dtype=torch.float32)
        optimizer.step()
    expected = soap_in_double(start, grads, 0.01, 0.95, 10)
    moved = np.abs(expected - start).max()
    assert np.abs(weight.detach().numpy() - expected).max() < 1e-4 * moved


def lamb_in_double(start: Any, grads: list[Any], lr: float, decay: float, eps: float) -> Any:
    """Algorithm 2 of arXiv 1904.00962, with the identity as its scaling function."""
    x, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        r = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + eps) + decay * x
        x = x - lr * np.linalg.norm(x) / np.linalg.norm(r) * r
    return x


def test_lamb_is_the_published_algorithm() -> None:
    rng = np.random.default_rng(0)
    start, grads = 20 * rng.standard_normal((6, 9)), [rng.standard_normal((6, 9)) for _ in range(40)]
    w = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = halfulp.LAMB([w], lr=0.01, weight_decay=0.1, state="fp32")
    for grad in grads:
        w.grad = torch.tensor(grad, dtype=torch.float32)
        optimizer.step()
    np.testing.assert_allclose(w.detach().numpy(), lamb_in_double(start, grads, 0.01, 0.1, 1e-6), rtol=0, atol=1e-4)


def subspace_in_double(start: Any, grads: list[Any], lr: float, rank: int, period: int) -> Any:
    """Subset-Norm with Subspace-Momentum as its authors run it (arXiv 2411.07120), for more rows than columns."""
    x, v, m, basis = start.copy(), np.zeros(start.shape[1]), np.zeros((start.shape[0], rank)), None
    for t, g in enumerate(grads, 1):
        if basis is None or t % period == 0:
            basis, m = np.linalg.svd(g, full_matrices=False)[2][:rank].T, np.zeros_like(m)
        inside = g @ basis
        m, v = 0.9 * m + 0.1 * inside, 0.999 * v + 0.001 * (g * g).sum(0)
        direction = m @ basis.T + g - inside @ basis.T
        x = x - lr * direction / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return x


@pytest.mark.parametrize("turned", [False, True])
def test_subspace_momentum_follows_its_float64_model(turned: bool) -> None:
    rng = np.random.default_rng(1)
    start, grads = rng.standard_normal((9, 6)), [rng.standard_normal((9, 6)) for _ in range(35)]
    expected = subspace_in_double(start, grads, 0.01, 2, 10)
    w = torch.nn.Parameter(torch.tensor(start.T if turned else start, dtype=torch.float32))
    optimizer = halfulp.SubspaceMomentum([w], lr=0.01, rank=2, period=10, state="fp32")
    for grad in grads:
        w.grad = torch.tensor(grad.T if turned else grad, dtype=torch.float32).contiguous()
        optimizer.step()
    found = w.detach().numpy()
    np.testing.assert_allclose(found.T if turned else found, expected, rtol=0, atol=1e-5)
