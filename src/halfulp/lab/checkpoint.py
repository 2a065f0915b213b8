"""Checkpoints of one arm: parameters, optimizer states and the rest of the run's state, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from halfulp.checkpoint.files import read_file, write_file

__all__ = ["load_checkpoint", "save_checkpoint"]

Parts = Mapping[str, Any]
"""Objects with a ``state_dict`` by name, in the order of loading; ``None`` for those that a run does not have."""


def save_checkpoint(path: Path, model: torch.nn.Module, parts: Parts, extra: dict[str, Any]) -> None:
    """Write a checkpoint atomically, with further values (`extra`): plain numbers and strings."""
    saved = {name: part.state_dict() for name, part in parts.items() if part is not None}
    write_file({"model": dict(model.named_parameters()), **saved, "extra": extra}, path)


def load_checkpoint(path: Path, model: torch.nn.Module, parts: Parts) -> dict[str, Any]:
    """Read a checkpoint into objects built in the same way, with a new monitor. Return the further values.

    Raise ``ValueError`` if the file is damaged, or belongs to another model or optimizer.
    """
    again = "Delete it to start this arm anew"
    try:
        saved = read_file(path)
    except ValueError as error:
        raise ValueError(f"{error}. {again}") from error
    params, own = saved.get("model", {}), dict(model.named_parameters())
    if params.keys() != own.keys() or any(params[n].shape != p.shape for n, p in own.items()):
        raise ValueError(f"{path} is of another model")
    for name, part in parts.items():
        if (part is None) != (name not in saved):
            raise ValueError(f"{path} is of a run with other {name}. {again}")
        if part is not None:
            part.load_state_dict(saved[name])
    with torch.no_grad():
        for name, param in own.items():
            param.copy_(params[name])
    extra: dict[str, Any] = saved["extra"]
    return extra
