"""Replicas under DistributedDataParallel with and without gradient release, run by torchrun."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import halfulp
from halfulp.training import release_gradients


def weights(released: bool, accumulate: int) -> str:
    """Return a digest of the weights after some steps on batches that differ between ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = halfulp.AdamW(model.parameters(), lr=1e-2)
    if released:
        release_gradients(optimizer, accumulate=accumulate)
    data = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(4):
        for i in range(accumulate):
            with contextlib.nullcontext() if i == accumulate - 1 else wrapped.no_sync():
                wrapped(torch.randn(8, 64, generator=data)).square().mean().backward()
        if not released:
            optimizer.step()
            optimizer.zero_grad()
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = {
        "ordinary": weights(False, 1), "released": weights(True, 1),
        "accumulated, ordinary": weights(False, 3), "accumulated": weights(True, 3),
    }  # fmt: skip
    (Path(sys.argv[1]) / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
