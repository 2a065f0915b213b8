"""Trains sharded models of several cases under torchrun, saves or loads them, and writes whole results to files."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import halfulp
from halfulp.training import offload
from support.copies import Late
from support.distributed.cases import CASES, LOADED, build_model, collect, counted, leave, optimizer_of, train

EVERY = 2
"""The number of steps between kept checkpoints."""


def wrap(model: torch.nn.Sequential, how: str) -> torch.nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if how == "fsdp":
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif how == "tp":
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    elif how == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    return model


def save(model: torch.nn.Module, optimizer: Any, folder: Path) -> None:
    saved = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(saved, checkpoint_id=folder)


def load(model: torch.nn.Module, optimizer: Any, folder: Path) -> None:
    saved = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(saved, checkpoint_id=folder)
    model.load_state_dict(saved["model"])
    set_optimizer_state_dict(model, optimizer, saved["optimizer"])


def train_keeping(model: torch.nn.Module, optimizer: Any, args: argparse.Namespace) -> None:
    """Continue from the last complete checkpoint. At step ``args.die``, die with one written but not renamed."""
    first = max((int(found.name) for found in args.keep.glob("[0-9]*") if found.suffix == ""), default=0)
    if first:
        load(model, optimizer, args.keep / str(first))
    if dist.get_rank() == 0:
        print(f"from step {first}")
    for step in range(first + 1, args.steps + 1):
        train(model, optimizer, step - 1, 1)
        if step % EVERY:
            continue
        unfinished = args.keep / f"{step}.tmp"
        save(model, optimizer, unfinished)
        dist.barrier()
        if step == args.die:
            os.kill(os.getpid(), signal.SIGKILL)
        if dist.get_rank() == 0:
            unfinished.rename(args.keep / str(step))


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    model = wrap(build_model(CASES[name].dtype), args.wrap)
    optimizer = optimizer_of(CASES[name], model)
    watch = halfulp.StallMonitor(optimizer, sample=10**6, every=1)  # all elements
    if args.offload:
        train(model, optimizer, 0, 2)
        optimizer = offload(optimizer, copies=Late())
        train(model, optimizer, 2, args.steps - 2)
        return collect(model, optimizer)
    if args.keep is not None:
        train_keeping(model, optimizer, args)
    elif args.load is None:
        train(model, optimizer, 0, args.steps)
    else:
        load(model, optimizer, args.load / name)
        train(model, optimizer, LOADED, args.steps)
    if args.save is not None:
        save(model, optimizer, args.save / name)
    found = collect(model, optimizer)
    found["counted"] = [None] * dist.get_world_size()
    dist.all_gather_object(found["counted"], counted(watch))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--wrap", default="fsdp")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--load", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--die", type=int)
    parser.add_argument("--offload", action="store_true", help="after two steps")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    for name in args.cases.split(","):
        found = run(name, args)
        if dist.get_rank() == 0:
            torch.save(found, args.out / f"{name}.pt")
    leave()


if __name__ == "__main__":
    main()
