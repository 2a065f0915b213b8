"""Runs under torchrun (and imported, in one process): averages of a model, sharded by FSDP2 or whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from cases import leave
from torch.distributed.tensor import DTensor, distribute_tensor

from halfulp.averaging import EMA, LAWA

OPTIONS: dict[str, dict[str, Any]] = {
    "bf16": {"state": "bf16"},
    "8bit": {"state": "8bit"},
    "4bit nearest": {"state": "4bit", "rounding": "nearest"},
    "difference": {"state": "8bit", "difference": True},
}


def build() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(96, 130), torch.nn.GELU(), torch.nn.Linear(130, 64))


def whole(tensor: Any) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def run(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Averages of a few steps, as whole tensors; swapped in and out on the way."""
    averages: dict[str, Any] = {name: EMA(model, 0.9, **o) for name, o in OPTIONS.items()}
    averages["lawa"] = LAWA(model, size=2, every=2, state="8bit")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(5):
        for k, p in enumerate(model.parameters()):
            grad = 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + k))
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else grad
        averages["difference"].before_step()
        optimizer.step()
        for average in averages.values():
            average.update()
    found = {}
    for name, average in averages.items():
        live = {n: whole(p.detach()).clone() for n, p in model.named_parameters()}
        with average.swap():
            found.update({f"{name}/{n}": whole(p.detach()).clone() for n, p in model.named_parameters()})
        for n, p in model.named_parameters():
            assert torch.equal(whole(p.detach()), live[n]), n
    return found


def main() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    model = build()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found = run(model)
    if dist.get_rank() == 0:
        torch.save(found, Path(sys.argv[1]))
    leave()


if __name__ == "__main__":
    main()
