"""Wrappers and AutoDrop around an optimizer of a sharded model, under torchrun or alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import halfulp
from support.distributed.cases import build_model, leave, train


def whole(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach().clone() for p in model.parameters()]


def run(model: torch.nn.Module) -> dict[str, Any]:
    """Return noisy weights, the weights after them, the weights after six Lookahead steps, and the path's angles."""
    storage = {"min_size": 64, "block_size": 32}
    inside = halfulp.AdamW(model.named_parameters(), lr=1e-2, state="8bit", seed=3, **storage)
    optimizer = halfulp.LowPass(halfulp.Lookahead(inside, 2, state="bf16", **storage), 0.1, seed=5)
    scheduler = halfulp.AutoDrop(optimizer, patience=2, threshold=0.1, average=True)
    found: dict[str, Any] = {"start": whole(model)}
    with optimizer.perturbed():
        found["noisy"] = whole(model)
    found["restored"] = whole(model)
    for step in range(6):
        train(model, optimizer, step, 1)
        scheduler.step()
    return {**found, "end": whole(model), "angles": scheduler.angles}


def main() -> None:
    dist.init_process_group("gloo")
    model = build_model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    found = run(fully_shard(model, mesh=mesh))
    if dist.get_rank() == 0:
        torch.save(found, Path(sys.argv[1]))
    leave()


if __name__ == "__main__":
    main()
