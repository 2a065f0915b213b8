"""Checkpoints of one arm: parameters, optimizer states and the rest of a run's state, in one safetensors file.

``param.NAME`` are the parameters, ``optimizer.INDEX.KEY`` the tensors of the optimizer's ``state_dict``,
``monitor.NAME`` those of the monitor's, ``average.PATH`` those of the averages of the weights, ``gradients.WIDTH`` the
recorded gradients. Steps, ages and groups
are JSON in the file's metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from halfulp.lab.averages import WeightAverages
from halfulp.lab.files import write_bytes
from halfulp.monitor import GradientSample, StallMonitor

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    monitor: StallMonitor,
    extra: dict[str, Any],
    averages: WeightAverages | None = None,
    gradients: GradientSample | None = None,
) -> None:
    """Write a checkpoint, all or nothing.

    Parameters
    ----------
    path
        The file.
    model, optimizer, monitor
        What to save; the optimizer one of halfulp's.
    extra
        Further values, as JSON.
    averages, gradients
        Of the weights, and recorded, if the run keeps any.
    """
    tensors: dict[str, Tensor] = {f"param.{n}": p.detach().contiguous() for n, p in model.named_parameters()}
    saved = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in saved["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.contiguous()
            else:
                numbers.setdefault(str(index), {})[key] = value
    tensors |= {f"monitor.{key}": shadow for key, shadow in monitor.state_dict().items()}
    if gradients is not None:
        tensors |= {f"gradients.{key}": values for key, values in gradients.state_dict().items()}
    metadata = {"extra": extra, "numbers": numbers, "groups": saved["param_groups"]}
    if averages is not None:
        entries = averages.state_dict()
        tensors |= {f"average.{k}": v.contiguous() for k, v in entries.items() if isinstance(v, Tensor)}
        metadata["averages"] = {k: v for k, v in entries.items() if not isinstance(v, Tensor)}
    write_bytes(path, safetensors.torch.save(tensors, {k: json.dumps(v) for k, v in metadata.items()}))


def load_checkpoint(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    monitor: StallMonitor,
    averages: WeightAverages | None = None,
    gradients: GradientSample | None = None,
) -> dict[str, Any]:
    """Read a checkpoint into objects built alike, the monitor a fresh one; return further values.

    Raises
    ------
    ValueError
        The file is damaged, or of another model or optimizer.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = {k: json.loads(v) for k, v in file.metadata().items()}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dictionary
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}. Delete it to start this arm anew") from error
    params = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    own = dict(model.named_parameters())
    if params.keys() != own.keys() or any(params[n].shape != p.shape for n, p in own.items()):
        raise ValueError(f"{path} is of another model")
    if (averages is not None) != ("averages" in metadata):
        raise ValueError(f"{path} is of a run with other averages of the weights. Delete it to start this arm anew")
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in metadata["numbers"].items()}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    groups = [{k: tuple(v) if k == "betas" else v for k, v in g.items()} for g in metadata["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    with torch.no_grad():
        for name, param in own.items():
            param.copy_(params[name])
    if averages is not None:
        found = {k.removeprefix("average."): t for k, t in tensors.items() if k.startswith("average.")}
        averages.load_state_dict(found | metadata["averages"])
    if gradients is not None:
        recorded = {k.removeprefix("gradients."): t for k, t in tensors.items() if k.startswith("gradients.")}
        if not recorded:
            raise ValueError(f"{path} is of a run that recorded no gradients. Delete it to start this arm anew")
        gradients.load_state_dict(recorded)
    monitor.load_state_dict({k.removeprefix("monitor."): t for k, t in tensors.items() if k.startswith("monitor.")})
    extra: dict[str, Any] = metadata["extra"]
    return extra
