"""Flat parameters of FSDP1, run by torchrun: trained, saved with FSDP's own function, loaded, trained again."""

from __future__ import annotations

import json
import logging
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

import halfulp
from support.distributed.cases import leave

CASES: dict[str, dict[str, Any]] = {
    "8bit": {"state": "8bit"},
    "8bit-nearest": {"state": "8bit", "rounding": "nearest"},
    "4bit": {"state": "4bit"},
    "bf16": {"state": "bf16"},
    "min_size": {"state": "8bit", "min_size": 0},
    "fp32": {"state": "fp32"},
    "remainder16": {"state": "8bit", "master_weights": "remainder16"},
    "master": {"state": "8bit", "master_weights": "fp32"},
}
"""Cases with master weights have bfloat16 parameters."""
STEPS = 3


def build(original: bool, dtype: torch.dtype) -> FSDP:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(96, 130), nn.Tanh(), nn.Linear(130, 96)).to(dtype)
    return FSDP(layers, use_orig_params=original, device_id=torch.device("cpu"))


def train(model: FSDP, optimizer: Any, first: int) -> None:
    for step in range(first, first + STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 96).to(next(model.parameters()).dtype)).square().mean().backward()
        optimizer.step()


def run(original: bool, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return whether a run through a checkpoint gives the same weights, the bytes per parameter, and states' dtypes."""
    dtype = torch.bfloat16 if "master_weights" in arguments else torch.float32
    straight = build(original, dtype)
    optimizer = halfulp.AdamW(straight.parameters(), lr=1e-2, **arguments)
    train(straight, optimizer, 0)
    own, saved = deepcopy(optimizer.state_dict()), FSDP.optim_state_dict(straight, optimizer)
    weights = deepcopy(straight.state_dict())
    size = optimizer.memory().bytes_per_parameter
    dtypes = {str(e["exp_avg"].dtype) for e in optimizer.state.values() if e and e["exp_avg"].numel() >= 4096}
    train(straight, optimizer, STEPS)

    resumed = build(original, dtype)
    resumed.load_state_dict(weights)
    other = halfulp.AdamW(resumed.parameters(), lr=1e-2, **arguments)
    if original:  # torch.optim.AdamW does not resume from `saved` either: on CPUs its tensors are views of one buffer
        other.load_state_dict(own)
    else:
        other.load_state_dict(FSDP.optim_state_dict_to_load(resumed, other, saved))
    train(resumed, other, STEPS)
    same = all(map(torch.equal, straight.parameters(), resumed.parameters()))
    return {"same": same, "bytes": size, "dtypes": sorted(dtypes), "saved": sorted(saved["state"])}


def said(name: str) -> list[str]:
    """Return the warnings of an optimizer whose rule needs whole parameters."""
    seen: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("halfulp").addHandler(handler)
    model = build(True, torch.float32)
    train(model, getattr(halfulp, name)(model.parameters(), lr=1e-3), 0)
    logging.getLogger("halfulp").removeHandler(handler)
    return seen


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found: dict[str, Any] = {
        f"{name}-{original}": run(original, case) for name, case in CASES.items() for original in (False, True)
    }
    found |= {name: said(name) for name in ("SOAP", "LAMB", "Lion")}
    (Path(sys.argv[1]) / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    leave()
