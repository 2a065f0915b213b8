"""Optimizers in fp32 against published trajectories and against torch.optim."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import halfulp
from halfulp import optim

# The weights after steps 1 and 5 on loss = sum(a * W**2) / 2, from float64 runs of torch.optim and pytorch_optimizer
# 4.1.0 at that package's defaults; the two adaptive-memory rows from a float64 script of the paper's rules.
W0 = [1.0, -2.0, 3.0, 0.5]
CURVATURE = [1.0, 0.1, 0.01, 2.0]
GOLDEN: list[tuple[str, dict[str, Any], list[float], list[float]]] = [
    ("Adam", {"lr": 0.1}, [0.9, -1.9, 2.9, 0.4], [0.507964, -1.502956, 2.50178, 0.027814]),
    (
        "AdamW",
        {"lr": 0.1, "weight_decay": 0.1},
        [0.89, -1.88, 2.87, 0.395],
        [0.469953, -1.415567, 2.365279, 0.01533],
    ),
    (
        "AdaBelief",
        {"lr": 0.1},
        [0.888889, -1.888889, 2.888889, 0.388889],
        [0.404493, -1.393014, 2.39049, -0.049146],
    ),
    ("AdaMod", {"lr": 0.1}, [0.99999, -1.99999, 2.99999, 0.49999], [0.999735, -1.999735, 2.999735, 0.499735]),
    ("AdaBound", {"lr": 0.1}, [0.9, -1.9, 2.900001, 0.4], [0.507964, -1.502956, 2.501783, 0.027815]),
    (
        "DiffGrad",
        {"lr": 0.1},
        [0.926894, -1.945017, 2.949251, 0.426894],
        [0.723113, -1.745165, 2.749605, 0.221111],
    ),
    (
        "CAME",
        {"lr": 0.1},
        [-0.556348, -1.700211, 2.951522, -1.056348],
        [-0.312619, -0.211994, 2.647148, 0.947999],
    ),
    ("Lion", {"lr": 0.01}, [0.99, -1.99, 2.99, 0.49], [0.95, -1.95, 2.95, 0.45]),
    (
        "AdEMAMix",
        {"lr": 0.1},
        [0.89995, -1.89995, 2.89995, 0.39995],
        [0.507233, -1.502211, 2.501033, 0.027159],
    ),
    ("ADOPT", {"lr": 0.1}, W0, [0.910886, -1.9102, 2.90997, 0.412249]),
    (
        "Conda",
        {"lr": 0.1},
        [0.85881, -1.991908, 2.991908, 0.35881],
        [0.316048, -1.953444, 2.958399, -0.123684],
    ),
    (
        "MADGRAD",
        {"lr": 0.01},
        [0.995358, -1.997285, 2.998558, 0.495358],
        [0.948194, -1.969619, 2.983846, 0.448405],
    ),
    (
        "EXAdam",
        {"lr": 0.1},
        [-0.595242, -0.40494, 1.413094, -1.095242],
        [-0.014621, 0.128728, 0.055032, 0.043031],
    ),
    (
        "LARS",
        {"lr": 0.1},
        [0.999736, -1.999947, 2.999992, 0.499736],
        [0.996526, -1.999305, 2.999896, 0.496528],
    ),
    ("AMSGD", {"lr": 0.1}, [0.9, -1.98, 2.997, 0.4], [0.519499, -1.900394, 2.985006, 0.038548]),
    (
        "AMAdamW",
        {"lr": 0.1},
        [0.901088, -1.90022, 2.900033, 0.401088],
        [0.515631, -1.504798, 2.502188, 0.034348],
    ),
]
# Published values have six decimals; the rest is fp32 round-off.
TOLERANCE = 2e-6


def build(name: str, params: list[torch.nn.Parameter], arguments: dict[str, Any]) -> halfulp.RuleOptimizer:
    """The optimizer with fp32 slots and, unless given, no weight decay."""
    cls = getattr(optim, name)
    probe = cls([torch.nn.Parameter(torch.zeros(2, 2))])
    if "weight_decay" in probe.defaults:
        arguments = {"weight_decay": 0.0, **arguments}
    return cls(params, **arguments, state="float32")


@pytest.mark.parametrize(("name", "arguments", "first", "fifth"), GOLDEN, ids=[row[0] for row in GOLDEN])
def test_published_trajectory(name: str, arguments: dict[str, Any], first: list[float], fifth: list[float]) -> None:
    weight = torch.nn.Parameter(torch.tensor(W0).reshape(2, 2))
    curvature = torch.tensor(CURVATURE).reshape(2, 2)
    optimizer = build(name, [weight], arguments)
    for step in range(1, 6):
        weight.grad = curvature * weight.detach()
        optimizer.step()
        if step in (1, 5):
            expected = torch.tensor(first if step == 1 else fifth).reshape(2, 2)
            torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adafactor", "SGD"])
def test_torch_agrees_over_200_random_steps(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(6, 5, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.double())
    arguments = {"lr": 0.01, "weight_decay": 0.0}
    mine = build(name, [ours], arguments)
    oracle = getattr(torch.optim, name)([theirs], **arguments)
    for _ in range(200):
        grad = torch.randn(6, 5, generator=generator)
        ours.grad, theirs.grad = grad, grad.double()
        mine.step()
        oracle.step()
    torch.testing.assert_close(ours.detach().double(), theirs.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size"),
    [("AdaBelief", 1 / 0.9), ("AdaMomentum", 10.0), ("EXAdam", 15.952), ("DiffGrad", 0.7311), ("ADOPT", 0.0)],
)
def test_size_of_the_first_step_in_units_of_lr(name: str, size: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(1, 4))
    optimizer = build(name, [weight], {"lr": 0.01})
    weight.grad = torch.ones(1, 4)  # 1: DiffGrad scales by sigmoid(|grad|)
    optimizer.step()
    expected = torch.full((1, 4), -0.01 * size)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-3, atol=0)
