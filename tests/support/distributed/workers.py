"""Runs every case of ``support.workers`` between processes, by torchrun. Weights are saved in ``OUT/RANK.pt``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from support import workers


def averager() -> dict[str, torch.Tensor]:
    """Return the weights of plain SGD under torch's own averager, with period 2."""
    model, rank = workers.build(), dist.get_rank()
    optimizer, average = torch.optim.SGD(model.parameters(), lr=0.1), PeriodicModelAverager(period=2, warmup_steps=1)
    for step in range(6):
        workers.train(model, optimizer, rank, step, 1)
        average.average_parameters(model.parameters())
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {name: workers.run(name, None, rank) for name in workers.CASES}
    found["averager"] = averager()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("worker", "shard"))
    for name in workers.SHARDED:
        model = fully_shard(workers.build(), mesh=mesh["shard"])
        group, worker = mesh.get_group("worker"), mesh.get_local_rank("worker")
        found[f"sharded {name}"] = workers.run_inside(name, model, group, worker)
        replica = DistributedDataParallel(workers.build(), process_group=mesh.get_group("shard"))
        found[f"replicated {name}"] = workers.run_inside(name, replica, group, worker)
    torch.save(found, out / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
