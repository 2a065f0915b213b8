"""Runs under torchrun: trains a sharded model, saves, loads, and leaves the whole of everything in a file.

usage: worker.py OUT.pt --case CASE --steps N [--save DIR] [--load DIR] [--wrap ddp|fsdp|tp|plain]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cases import CASES, build_model, gradients
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import halfulp


def whole(x: Any) -> Any:
    return x.full_tensor() if isinstance(x, DTensor) else x


def wrap(model: torch.nn.Module, how: str) -> torch.nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if how == "fsdp":
        for layer in model:  # type: ignore[attr-defined]
            if isinstance(layer, torch.nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif how == "tp":
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    elif how == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--case", required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save")
    parser.add_argument("--load")
    parser.add_argument("--wrap", default="fsdp")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    case = CASES[args.case]
    model = wrap(build_model(), args.wrap)
    optimizer = getattr(halfulp, case.optimizer)(model.named_parameters(), **case.arguments)
    if args.load:
        state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
        params = {"model": model.state_dict()}
        dcp.load({**params, **state}, checkpoint_id=args.load)
        model.load_state_dict(params["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
    for step in range(args.first, args.first + args.steps):
        for (name, param), grad in zip(model.named_parameters(), gradients(step), strict=True):
            if isinstance(param, DTensor):
                from torch.distributed.tensor import distribute_tensor

                param.grad = distribute_tensor(grad, param.device_mesh, param.placements)
            else:
                param.grad = grad
            assert param.grad is not None, name
        optimizer.step()
    if args.save:
        state = get_optimizer_state_dict(model, optimizer)
        dcp.save({"model": model.state_dict(), "optimizer": state}, checkpoint_id=args.save)
    found: dict[str, Any] = {"bytes": optimizer.memory().total}
    for name, param in model.named_parameters():
        found[name.removeprefix("module.")] = whole(param.detach()).clone()
        for key, value in optimizer.state[param].items():
            found[f"{name.removeprefix('module.')}/{key}"] = whole(value)
    found["resets"] = [list(map(str, entry)) for entry in optimizer.reset_log]
    if dist.get_rank() == 0:
        torch.save(found, args.out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
