"""Optimizers in fp32, step by step, against float64 models of the published rules, written in numpy.

Each model is a function of the initial weights and all gradients, and shares no code with the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import halfulp

Array = npt.NDArray[np.float64]
LR = 0.01


def adam_moments(grads: list[Array], beta1: float = 0.9, beta2: float = 0.999) -> list[tuple[Array, Array]]:
    """Bias-corrected moments of each step."""
    m, v, found = np.zeros_like(grads[0]), np.zeros_like(grads[0]), []
    for t, g in enumerate(grads, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        found.append((m / (1 - beta1**t), v / (1 - beta2**t)))
    return found


def adamomentum(x: Array, grads: list[Array]) -> Array:
    """arXiv 2106.11514, algorithm 1: the second moment is of the first; eps is inside it."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(grads, 1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * m * m + 1e-8
        x = x - LR * m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.999**t))
    return x


def amsbound(x: Array, grads: list[Array]) -> Array:
    """arXiv 1902.09843, with the largest second moment, final rate 0.1 and gamma 0.05."""
    m, v, largest = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        largest = np.maximum(largest, v)
        rate = LR * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) / (np.sqrt(largest) + 1e-8)
        x = x - np.clip(rate, 0.1 * (1 - 1 / (0.05 * t + 1)), 0.1 * (1 + 1 / (0.05 * t))) * m
    return x


def ademamix(x: Array, grads: list[Array]) -> Array:
    """arXiv 2409.03137 with both schedules over 20 steps, alpha 5 and decoupled decay 0.1."""
    slow = np.zeros_like(x)
    half = [math.log(0.5) / math.log(b) - 1 for b in (0.9, 0.9999)]
    for t, (g, (m, v)) in enumerate(zip(grads, adam_moments(grads), strict=True), 1):
        share = min(t / 20, 1.0)
        beta3 = 0.9999 if t >= 20 else 0.5 ** (1 / ((1 - share) * half[0] + share * half[1] + 1))
        slow = beta3 * slow + (1 - beta3) * g
        x = x - LR * ((m + 5 * share * slow) / (np.sqrt(v) + 1e-8) + 0.1 * x)
    return x


def spam(x: Array, grads: list[Array]) -> Array:
    """arXiv 2501.06842 with threshold 2, a reset each 8 steps, a warm-up of 4 and a patience of 3."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(grads, 1):
        since = t % 8
        if since == 0:
            m, v = np.zeros_like(x), np.zeros_like(x)
        if since >= 3:
            g = np.where(g * g > 2 * v, np.sign(g) * np.sqrt(2 * v), g)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = 1 - 0.99 * 0.5 * (1 + math.cos(math.pi * since / 4)) if t >= 8 and since < 4 else 1.0
        x = x - LR * rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-6)
    return x


def subset_norm(x: Array, grads: list[Array]) -> Array:
    """arXiv 2411.07120: one sum of squares a row, there being fewer rows than columns."""
    m, v = np.zeros_like(x), np.zeros((x.shape[0], 1))
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * (g * g).sum(1, keepdims=True)
        x = x - LR * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return x


def smmf(x: Array, grads: list[Array]) -> Array:
    """arXiv 2412.08894, algorithm 1, for 54 elements as 9 by 6: decompress, step, compress."""
    row, col, row_sq, col_sq, sign = np.zeros(9), np.zeros(6), np.zeros(9), np.zeros(6), np.ones((9, 6))
    for t, grad in enumerate(grads, 1):
        g, beta1, beta2 = grad.reshape(9, 6), 0.9 * 0.999 ** (t - 1), 1 - t**-0.8
        m = beta1 * sign * np.outer(row, col) + (1 - beta1) * g
        v = beta2 * np.outer(row_sq, col_sq) + (1 - beta2) * g * g
        x = x - LR * (m / (np.sqrt(v) + 1e-8)).reshape(x.shape)
        sign = np.where(m < 0, -1.0, 1.0)
        row, col = np.abs(m).sum(1), np.abs(m).sum(0) / np.abs(m).sum()
        row_sq, col_sq = v.sum(1), v.sum(0) / v.sum()
    return x


def came(x: Array, grads: list[Array]) -> Array:
    """arXiv 2307.02047, algorithm 2."""
    m = np.zeros_like(x)
    means = [np.zeros(n) for n in (*x.shape, *x.shape)]
    for g in grads:
        square = g * g + 1e-30
        means[0] = 0.999 * means[0] + 0.001 * square.mean(1)
        means[1] = 0.999 * means[1] + 0.001 * square.mean(0)
        u = g / np.sqrt(np.outer(means[0], means[1]) / means[0].mean())
        u = u / max(1.0, math.sqrt((u * u).mean()))
        m = 0.9 * m + 0.1 * u
        residual = (u - m) ** 2 + 1e-16
        means[2] = 0.9999 * means[2] + 0.0001 * residual.mean(1)
        means[3] = 0.9999 * means[3] + 0.0001 * residual.mean(0)
        x = x - LR * m / np.sqrt(np.outer(means[2], means[3]) / means[2].mean())
    return x


def gravity(x: Array, grads: list[Array]) -> Array:
    """arXiv 2101.09192 from velocities of zero."""
    velocity = np.zeros_like(x)
    for t, g in enumerate(grads, 1):
        beta = (0.9 * t + 1) / (t + 2)
        velocity = beta * velocity + (1 - beta) * g / (1 + (g * np.abs(g).max()) ** 2)
        x = x - LR * velocity
    return x


def core(x: Array, grads: list[Array]) -> Array:
    """arXiv 2307.15663 without frozen weights; step sizes in [1e-6, 1e-2] from LR / 10."""
    m, v, size = np.zeros_like(x), np.zeros_like(x), np.full_like(x, LR / 10)
    for t, g in enumerate(grads, 1):
        beta = 0.8125 + (0.7375 - 0.8125) * math.exp(-(((t - 1) / 250) ** 2))
        before, m = m, beta * m + (1 - beta) * g
        v = 0.99 * v + 0.01 * g * g
        same = before * m
        size = np.where(
            same > 0, np.minimum(1.2 * size, 1e-2), np.where(same < 0, np.maximum(0.7375 * size, 1e-6), size)
        )
        u = m / (1 - beta**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        x = (1 - 0.1 * np.abs(u) * size) * x - u * size
    return x


def muon(x: Array, grads: list[Array]) -> Array:
    """Nesterov momentum, five Newton-Schulz steps, sized as Adam's updates (Liu et al., arXiv 2502.16982)."""
    buffer = np.zeros_like(x)
    for g in grads:
        buffer = 0.95 * buffer + 0.05 * g
        o = 0.05 * g + 0.95 * buffer
        o = o / np.linalg.norm(o)
        for _ in range(5):
            gram = o @ o.T
            o = 3.4445 * o + (-4.775 * gram + 2.0315 * gram @ gram) @ o
        x = x - LR * 0.2 * math.sqrt(max(x.shape)) * o
    return x


def am_adamw(x: Array, grads: list[Array]) -> Array:
    """arXiv 2510.04988 by its closed form, which holds without weight decay at a constant rate."""
    d, v, product, lam = np.zeros_like(x), np.zeros_like(x), 1.0, 0.1
    for t, g in enumerate(grads, 1):
        v = 0.999 * v + 0.001 * g * g
        p = (1 - 0.89 * product) * (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        beta = 0.89
        if t > 1:
            apart = (d - g) ** 2
            free = ((g * g / p).sum() - lam * (apart / (1 + lam * p)).sum()) / (apart / (p * (1 + lam * p))).sum()
            beta = min(max(free, 0.0), 0.89)
        d = ((1 - beta) * g + (lam * p + beta) * d) / (1 + lam * p)
        x, product = x - LR * d / p, product * beta
    return x


def micro_adam(x: Array, grads: list[Array]) -> Array:
    """arXiv 2405.15593, algorithm 1, with a window of 4 and 6 of 54 elements kept; the error uncompressed."""
    error, window = np.zeros(x.size), []
    for t, grad in enumerate(grads, 1):
        total = error + grad.ravel()
        kept = np.zeros(x.size)
        largest = np.argsort(-np.abs(total))[:6]
        kept[largest] = total[largest]
        error, window = total - kept, [kept, *window][:4]
        m = 0.1 / (1 - 0.9**t) * sum(0.9**r * g for r, g in enumerate(window))
        v = 0.001 / (1 - 0.999**t) * sum(0.999**r * g * g for r, g in enumerate(window))
        x = x - LR * (m / (np.sqrt(v) + 1e-8)).reshape(x.shape)
    return x


def lamb(x: Array, grads: list[Array]) -> Array:
    """arXiv 1904.00962, algorithm 2, with the identity as its scaling function and decay 0.1."""
    for m, v in adam_moments(grads):
        r = m / (np.sqrt(v) + 1e-6) + 0.1 * x
        x = x - LR * np.linalg.norm(x) / np.linalg.norm(r) * r
    return x


def subspace_momentum(x: Array, grads: list[Array]) -> Array:
    """arXiv 2411.07120 as its authors run it, for fewer rows than columns: rank 2, a new subspace each 10 steps."""
    v, m, basis = np.zeros((x.shape[0], 1)), np.zeros((2, x.shape[1])), None
    for t, g in enumerate(grads, 1):
        if basis is None or t % 10 == 0:
            basis, m = np.linalg.svd(g, full_matrices=False)[0][:, :2], np.zeros_like(m)
        inside = basis.T @ g
        m, v = 0.9 * m + 0.1 * inside, 0.999 * v + 0.001 * (g * g).sum(1, keepdims=True)
        direction = basis @ m + g - basis @ inside
        x = x - LR * direction / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return x


MODELS: dict[str, tuple[str, dict[str, Any], Callable[[Array, list[Array]], Array]]] = {
    "AdaMomentum": ("AdaMomentum", {}, adamomentum),
    "AMSBound": ("AdaBound", {"amsbound": True, "gamma": 0.05}, amsbound),
    "AdEMAMix": ("AdEMAMix", {"warmup": 20, "weight_decay": 0.1}, ademamix),
    "SPAM": ("SPAM", {"threshold": 2.0, "period": 8, "warmup": 4, "patience": 3}, spam),
    "SubsetNorm": ("SubsetNorm", {}, subset_norm),
    "SubspaceMomentum": ("SubspaceMomentum", {"rank": 2, "period": 10}, subspace_momentum),
    "SMMF": ("SMMF", {}, smmf),
    "CAME": ("CAME", {}, came),
    "Gravity": ("Gravity", {"alpha": 0.0}, gravity),
    "CoRe": ("CoRe", {"lr": LR / 10, "weight_decay": 0.1}, core),
    "Muon": ("Muon", {}, muon),
    "AMAdamW": ("AMAdamW", {}, am_adamw),
    "MicroAdam": ("MicroAdam", {"window": 4, "density": 0.1}, micro_adam),
    "LAMB": ("LAMB", {"weight_decay": 0.1}, lamb),
}


def run(name: str, arguments: dict[str, Any], start: Array, grads: list[Array]) -> Array:
    """Weights of the library's optimizer after all gradients."""
    w = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = getattr(halfulp, name)([w], **{"lr": LR, "weight_decay": 0.0, "state": "fp32", **arguments})
    for grad in grads:
        w.grad = torch.tensor(grad, dtype=torch.float32)
        optimizer.step()
    return w.detach().double().numpy()


BY_SIDE = ("CAME", "SMMF", "MicroAdam")
"""Whose rows and columns have roles of their own: the transposed matrix is another problem."""


@pytest.mark.parametrize(
    ("case", "transposed"), [(c, t) for c in MODELS for t in (False, True) if not (t and c in BY_SIDE)]
)
def test_follows_its_model_in_double(case: str, transposed: bool) -> None:
    """Over 30 random steps of changing size, to a few thousandths of one step; tall matrices too."""
    name, arguments, model = MODELS[case]
    rng = np.random.default_rng(7)
    start, sizes = rng.standard_normal((6, 9)), [0.2 + 1.5 * math.sin(t) ** 2 for t in range(30)]
    grads = [size * rng.standard_normal((6, 9)) for size in sizes]
    expected = model(start, grads)
    if transposed:
        found = run(name, arguments, start.T.copy(), [g.T.copy() for g in grads]).T
    else:
        found = run(name, arguments, start, grads)
    steps = np.abs(expected - start).max() / 30
    assert steps > 1e-4
    assert np.abs(found - expected).max() < 3e-3 * steps


def test_frugal_is_adam_on_its_columns_and_signs_on_the_rest() -> None:
    """Which columns are whose shows from the second step on: signs move by LR, neither more nor less."""
    rng = np.random.default_rng(3)
    start, grads = rng.standard_normal((5, 12)), [rng.standard_normal((5, 12)) for _ in range(6)]
    ends = [run("FRUGAL", {"density": 0.25}, start, grads[:n]) for n in range(7)]
    moved = -np.diff(np.stack(ends), axis=0)
    signs = (np.abs(np.abs(moved[1:]) - LR) < 1e-6).all((0, 1))
    assert signs.sum() == 9
    np.testing.assert_allclose(moved[:, :, signs], LR * np.sign(np.stack(grads))[:, :, signs], atol=1e-6)
    adam = np.stack([LR * m / (np.sqrt(v) + 1e-8) for m, v in adam_moments(grads)])
    np.testing.assert_allclose(moved[:, :, ~signs], adam[:, :, ~signs], atol=1e-6)


# ---------------------------------------------------------------- SOAP


START = np.array([[1.0, -2.0], [3.0, 0.5]])
CURVATURE = np.array([[1.0, 0.1], [0.01, 2.0]])


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
        weights, grads = START, []
        for _ in range(5):
            grads.append(CURVATURE * weights)
            weights = soap_in_double(START, grads, 0.1, 0.95, 10, eps)
        if eps == 1e-8:
            assert weights.flatten().tolist() == pytest.approx([0.493573, -1.855337, 2.856313, 0.239648], abs=2e-6)
        else:
            found = run("SOAP", {"lr": 0.1, "eps": eps}, START, grads)
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
