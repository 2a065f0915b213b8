"""Optimizers in fp32 against published trajectories and against torch.optim."""

from __future__ import annotations

from typing import Any

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
    # With a float64 first moment. The package rounds it to bfloat16 by default, to 0.965393, -1.993172, ... in step 5.
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
    if not hasattr(torch.optim, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")
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
