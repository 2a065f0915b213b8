"""Averages of a model, sharded by FSDP2 or whole, under torchrun or imported in one process.

``averages.py OUT run FOLDER`` makes five steps, with checkpoints of both kinds after the third.
``averages.py OUT resume FOLDER`` makes the last two steps from the checkpoints.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import DTensor, distribute_tensor

from halfulp.averaging import BEMA, EMA, LAWA, whole
from halfulp.checkpoint.files import read_file, write_file
from support.distributed.cases import leave

OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {"state": "fp32"},
    "bf16": {"state": "bf16"},
    "8bit": {"state": "8bit"},
    "4bit nearest": {"state": "4bit", "rounding": "nearest"},
    "difference": {"state": "8bit", "difference": True},
}
STEPS, SAVED = 5, 3
FILE = "averages.safetensors"


def build() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(96, 130), torch.nn.GELU(), torch.nn.Linear(130, 64))


def gathered(tensor: Any) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def averages_of(model: torch.nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {name: EMA(model, 0.9, **o) for name, o in OPTIONS.items()}
    found["lawa"] = LAWA(model, size=2, every=2, state="8bit")
    found["bema"] = BEMA(model, update_every=1, state="8bit")
    return found


def train(model: torch.nn.Module, averages: dict[str, Any], steps: range) -> None:
    """Make steps with the same gradients on every rank."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in steps:
        for k, p in enumerate(model.parameters()):
            grad = 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + k))
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else grad
        averages["difference"].before_step()
        optimizer.step()
        for average in averages.values():
            average.update()


def collect(model: torch.nn.Module, averages: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the averages as whole tensors, after swapping each in and out, and as the state dictionary for export."""
    found = {}
    for name, average in averages.items():
        live = {n: gathered(p.detach()).clone() for n, p in model.named_parameters()}
        with average.swap():
            inside = {n: gathered(p.detach()).clone() for n, p in model.named_parameters()}
        found.update({f"{name}/{n}": p for n, p in inside.items()})
        for n, p in model.named_parameters():
            assert torch.equal(gathered(p.detach()), live[n]), n
        for n, value in average.averaged_state_dict().items():
            assert torch.equal(gathered(value), inside[n]), n
    return found


def by_dcp(model: torch.nn.Module, averages: dict[str, Any]) -> dict[str, Any]:
    """Return what ``torch.distributed.checkpoint`` fills in a new average, without LAWA's snapshots."""
    states = {name: average.state_dict() for name, average in averages.items() if name != "lawa"}
    return {"model": model.state_dict(), "averages": states}


def save(model: torch.nn.Module, averages: dict[str, Any], folder: Path, writes: bool) -> None:
    dcp.save(by_dcp(model, averages), checkpoint_id=folder / "dcp")
    state = whole({name: average.state_dict() for name, average in averages.items()})
    if writes:
        write_file(state, folder / FILE)


def resume(model: torch.nn.Module, folder: Path, way: str) -> dict[str, Any]:
    """Return new averages of a new model, both loaded from the save."""
    averages = averages_of(model)
    saved = by_dcp(model, averages)
    dcp.load(saved, checkpoint_id=folder / "dcp")
    model.load_state_dict(saved["model"])
    states = saved["averages"] if way == "dcp" else read_file(folder / FILE)
    if way == "dcp":
        del averages["lawa"]
    for name, average in averages.items():
        average.load_state_dict(states[name])
    return averages


def sharded() -> torch.nn.Sequential:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = build()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def main() -> None:
    import torch.distributed as dist

    out, mode, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    found: dict[str, torch.Tensor] = {}
    if mode == "run":
        model = sharded()
        averages = averages_of(model)
        train(model, averages, range(SAVED))
        save(model, averages, folder, first)
        train(model, averages, range(SAVED, STEPS))
        found = collect(model, averages)
    else:
        for way in ("dcp", "file"):
            model = sharded()
            averages = resume(model, folder, way)
            train(model, averages, range(SAVED, STEPS))
            found.update({f"{way}/{n}": t for n, t in collect(model, averages).items()})
    if first:
        torch.save(found, out)
    leave()


if __name__ == "__main__":
    main()
