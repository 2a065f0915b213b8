"""Cases of the distributed tests: an optimizer and its arguments, a model with uneven shapes, gradients by step."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

import halfulp


@dataclass(frozen=True)
class Case:
    """An optimizer of the library and its arguments."""

    optimizer: str = "AdamW"
    arguments: dict[str, Any] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    """The states that every rank holds whole, since the rule needs whole parameters. No monitor watches them."""
    dtype: torch.dtype = torch.float32
    """The dtype of the parameters."""


COMMON = {"lr": 1e-2, "rounding": "stochastic", "min_size": 64, "seed": 3, "block_size": 32}
CASES = {
    "fp32": Case(arguments={**COMMON, "state": "fp32"}),
    "bf16": Case(arguments={**COMMON, "state": "bf16"}),
    "fp8": Case(arguments={**COMMON, "state": "fp8", "block_size": 128}),
    "8bit-reset": Case(arguments={**COMMON, "state": "8bit", "reset": 3}),
    "4bit": Case(arguments={**COMMON, "state": "4bit"}),
    "int8": Case(arguments={**COMMON, "state": "int8", "scale": "fp32"}),
    "staggered": Case(arguments={**COMMON, "state": "fp8", "rounding": "nearest", "reset": halfulp.Staggered(4)}),
    "lion": Case("Lion", {**COMMON, "lr": 1e-3, "state": "fp8"}),
    "sgd": Case("SGD", {**COMMON, "momentum": 0.9, "state": "fp8", "rounding": "nearest"}),
    "adafactor": Case("Adafactor", {**COMMON, "momentum": 0.9, "state": "fp8"}, ("exp_avg_sq", "exp_avg")),
    "muon": Case("Muon", {**COMMON, "state": "int8"}, ("momentum_buffer",)),
    "remainder16": Case(arguments={**COMMON, "state": "8bit", "master_weights": "remainder16"}, dtype=torch.bfloat16),
    "remainder8": Case("Lion", {**COMMON, "state": "8bit", "master_weights": "remainder8"}, dtype=torch.bfloat16),
}
LOADED = 5
"""The number of steps before the checkpoint that is loaded."""


def build_model(dtype: torch.dtype = torch.float32) -> torch.nn.Sequential:
    """Return a model with rows that are not divisible by the number of ranks, and columns of whole blocks of 32."""
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 37)).to(dtype)


def optimizer_of(case: Case, model: torch.nn.Module) -> Any:
    return getattr(halfulp, case.optimizer)(model.named_parameters(), **case.arguments)


def train(model: torch.nn.Module, optimizer: Any, first: int, steps: int) -> None:
    """Make steps with the same gradients on every rank."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for param in model.parameters():
            grad = 0.1 * torch.randn(param.shape, generator=generator).to(param.dtype)
            if isinstance(param, DTensor):
                param.grad = distribute_tensor(grad, param.device_mesh, param.placements)
            else:
                param.grad = grad
        optimizer.step()


def collect(model: torch.nn.Module, optimizer: Any) -> dict[str, Any]:
    """Return parameters and states as whole tensors by name, and this rank's bytes of state and resets."""
    stepping = getattr(optimizer, "optimizer", optimizer)  # inside an offload
    found: dict[str, Any] = {"bytes": optimizer.memory().total, "resets": len(stepping.reset_log)}
    for name, param in model.named_parameters():
        entries = {"": param.detach(), **{f"/{k}": v for k, v in optimizer.state[param].items()}}
        for key, value in entries.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            found[name.removeprefix("module.") + key] = whole.clone() if torch.is_tensor(whole) else whole
    return found


def counted(watch: halfulp.StallMonitor) -> dict[str, list[int]]:
    """Return the updates and stalled updates that this rank's monitor counted, by slot."""
    found: dict[str, list[int]] = {}
    for row in watch.table().rows:
        sums = found.setdefault(row.slot, [0, 0])
        sums[0] += row.updates
        sums[1] += round(row.stalled * row.updates)
    return found


def leave() -> NoReturn:
    """End the process group on all ranks together, and then the process.

    A barrier would not do: the first rank to leave it closes connections that others may still be reading from.
    """
    store = dist.distributed_c10d._get_default_store()
    store.add("finished", 1)
    while store.add("finished", 0) < dist.get_world_size():
        time.sleep(0.02)
    dist.destroy_process_group()
    end_process()


def end_process() -> NoReturn:
    """End the process without the interpreter's shutdown.

    A device mesh keeps gloo's threads alive beyond the process group. If one of them releases a tensor during the
    interpreter's shutdown, the process occasionally ends in ``terminate called without an active exception``.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
