"""Runs of workers, made by the tests in threads and in processes. The bits must be the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import halfulp
from halfulp import workers
from halfulp.workers import Centre, Graph, Matchings, Meeting, ring

Made = Callable[[torch.optim.Optimizer, Any], Meeting]
SMALL = {"min_size": 0, "block_size": 32}
CASES: dict[str, Made] = {
    "local": lambda o, group: workers.LocalSGD(o, every=2, group=group),
    "local 8bit": lambda o, group: workers.LocalSGD(o, every=2, message="8bit", group=group, **SMALL),
    "ring 4bit": lambda o, group: workers.DPSGD(o, graph="ring", message="4bit", group=group, **SMALL),
    "star bf16": lambda o, group: workers.DPSGD(
        o, graph=Graph(4, [(0, 1), (0, 2), (0, 3)]), message="bf16", group=group
    ),
    "pairs": lambda o, group: workers.DPSGD(o, graph="pairs", group=group),
    "matchings": lambda o, group: workers.DPSGD(o, graph=Matchings(ring(4), 0.6), message="8bit", group=group, **SMALL),
}
COMMON = {"local", "local 8bit"}
"""The cases after whose synchronization all workers have the same weights."""


def build(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return the same model everywhere, without torch's generator, which threads share."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    generator = torch.Generator().manual_seed(3)
    for param in model.parameters():
        param.data = 0.3 * torch.randn(param.shape, generator=generator)
    return model.to(dtype)


def served(**options: Any) -> tuple[dist.Store, Centre]:
    """Return a store within this process, and the centre of one matrix of zeros that asynchronous workers meet in."""
    store = dist.HashStore()
    return store, Centre({"w": torch.zeros(8, 64)}, store, **options)


def batch(rank: int, step: int) -> Tensor:
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(1000 * rank + step))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, first: int, steps: int) -> list[float]:
    losses = []
    dtype = next(model.parameters()).dtype
    for step in range(first, first + steps):
        x = batch(rank, step).to(dtype)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x).float(), x[:, :4].float().sin())
            loss.backward()
            return loss

        losses.append(float(optimizer.step(closure).detach()))
    return losses


def run(name: str, group: Any, rank: int, steps: int = 6, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return the final weights of one worker."""
    model = build(dtype)
    inside = halfulp.AdamW(model.named_parameters(), lr=1e-2, state="8bit", min_size=0, param_rounding="stochastic")
    train(model, CASES[name](inside, group), rank, 0, steps)
    return {n: p.detach().clone() for n, p in model.named_parameters()}


ROWS = {"min_size": 16, "block_size": 32}
"""Vectors stay in fp32, so that no shard cuts a block."""
SHARDED: dict[str, Made] = {
    "local": lambda o, group: workers.LocalSGD(o, every=2, message="8bit", group=group, **ROWS),
    "dppf": lambda o, group: workers.DPPF(o, pull=0.5, push=0.01, every=2, message="8bit", group=group, **ROWS),
    "diloco": lambda o, group: workers.DiLoCo(o, every=2, message="8bit", state="8bit", group=group, **ROWS),
}
"""The cases of two workers, each of which may be two processes."""


def run_inside(name: str, model: nn.Module, group: Any, worker: int) -> dict[str, Tensor]:
    inside = halfulp.AdamW(model.named_parameters(), lr=1e-2, state="8bit", **ROWS)
    train(model, SHARDED[name](inside, group), worker, 0, 6)
    whole = {n: getattr(p.detach(), "full_tensor", p.detach)().clone() for n, p in model.named_parameters()}
    return {n.removeprefix("module."): w for n, w in whole.items()}
