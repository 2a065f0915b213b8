"""Reader of saved optimizers of any kind that never runs code in them.

A torch file is loaded with ``weights_only``. The metadata of a DCP folder, a pickle, is read as plain data. safetensors
files hold no code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from halfulp.checkpoint.dcp import read_dcp
from halfulp.checkpoint.files import FORMAT, read_safetensors, unpack_file
from halfulp.checkpoint.torch_files import load_torch

__all__ = ["find_optimizers", "read_saved"]

SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "exp_avg_slow")
TRAINER_FILES = ("optimizer.pt", "optimizer.bin", "optimizer.safetensors")


def read_saved(path: str | os.PathLike[str]) -> Any:
    """Return the content of a file or folder as tensors, numbers, strings and containers of them.

    It is a torch file, a safetensors file, a checkpoint folder of the HF Trainer (with ``optimizer.pt``), or a folder
    of ``torch.distributed.checkpoint`` (with ``.metadata``).

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    ValueError
        If it is damaged, of another kind, or contains code. None of it was executed.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        if path.exists():
            raise ValueError(f"{path} is no regular file (a device, pipe or socket), and is not opened")
        raise FileNotFoundError(f"no file or folder {path}")
    with path.open("rb") as file:
        head = file.read(262)
    if not head:
        raise ValueError(f"{path} is empty")
    length = int.from_bytes(head[:8], "little")  # length of the safetensors header
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and 8 + length <= path.stat().st_size):
        tensors, metadata = read_safetensors(path)
        return unpack_file(path, tensors, metadata) if metadata.get("format") == FORMAT else tensors
    if not head.startswith((b"PK", b"\x80")) and head[257:] != b"ustar":  # zip and pickle, and tar in early versions
        raise ValueError(
            f"{path} is neither a torch checkpoint (torch.save) nor safetensors: it begins with {head[:24]!r}"
        )
    return load_torch(path, path)


def _read_folder(path: Path) -> Any:
    if (path / ".metadata").is_file():
        return read_dcp(path)
    inner = sorted(p for p in path.iterdir() if p.is_dir())
    saved = [p for p in inner if (p / ".metadata").is_file()]
    # under FSDP the HF Trainer keeps the optimizer in a folder beside the model's
    found = [path / name for name in TRAINER_FILES if (path / name).is_file()]
    found = found or [p for p in saved if "optim" in p.name] or saved
    if len(found) == 1:
        return read_saved(found[0])
    found = found or [p for p in inner if any((p / name).is_file() for name in TRAINER_FILES)]
    if found:
        names = ", ".join(p.name for p in found[:8]) + (" ..." if len(found) > 8 else "")
        raise ValueError(f"{path} holds {len(found)} saved optimizers, {names}: name one of them")
    raise ValueError(
        f"{path} holds no optimizer: expected {', '.join(TRAINER_FILES)} (HF Trainer) or .metadata "
        "(torch.distributed.checkpoint)"
    )


def find_optimizers(tree: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return every optimizer state dictionary found, with its path. Loose state tensors are collected into one.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = list(_walk(tree, "", 0, set()))
    if not found and isinstance(tree, Mapping):
        loose = _loose(tree)
        if loose["state"]:
            found = [("", loose)]
    if not found:
        raise ValueError(
            "no optimizer state in it: expected a dictionary with 'state' and 'param_groups' (optimizer.state_dict()), "
            f"or tensors named ...{SLOTS[0]}, ...{SLOTS[1]} and so on"
        )
    return found


def _walk(tree: Any, where: str, depth: int, seen: set[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    if id(tree) in seen or depth > 3 or not isinstance(tree, (Mapping, list, tuple)):
        return
    seen.add(id(tree))
    if not isinstance(tree, Mapping):
        for i, value in enumerate(tree):
            yield from _walk(value, f"{where}[{i}]", depth + 1, seen)
    elif isinstance(tree.get("state"), Mapping) and isinstance(tree.get("param_groups"), (list, tuple)):
        yield where, dict(tree)
    else:
        for key, value in tree.items():
            yield from _walk(value, f"{where}.{key}".lstrip("."), depth + 1, seen)


def _loose(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Collect tensors such as ``layer.weight.exp_avg`` in a state dictionary without hyper-parameters."""
    state: dict[str, dict[str, Any]] = {}
    for name, value in tree.items():
        parameter, _, slot = str(name).rpartition(".")
        if isinstance(value, Tensor) and slot in SLOTS:
            state.setdefault(parameter, {})[slot] = value
    return {"state": state, "param_groups": [{"params": list(state)}]}
