"""Optimizer state files: written atomically, checked when read, without pickle.

A file is in the safetensors format. The tensors are named by number. The rest of the state dictionary is JSON in the
header, with a CRC-32 of all tensor bytes, since safetensors itself does not detect a flipped bit.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfulp.checkpoint.atomic import write_bytes

__all__ = [
    "FORMAT", "load_optimizer", "pack", "read_file", "read_safetensors", "save_optimizer", "unpack", "unpack_file",
    "write_file",
]  # fmt: skip

FORMAT = "halfulp-optimizer-1"


def save_optimizer(optimizer: torch.optim.Optimizer, path: str | os.PathLike[str]) -> None:
    """Write an optimizer's state dictionary to a safetensors file, atomically.

    The file is written under a temporary name beside `path`, flushed to disk and renamed, so a crash leaves the old
    file. It works for any optimizer whose state dictionary holds plain tensors, numbers, strings and containers of
    them.

    Parameters
    ----------
    optimizer
        Any ``torch.optim.Optimizer``.
    path
        The file to write. Its folder must exist.

    Raises
    ------
    ValueError
        If the state dictionary holds anything else. The message says where.

    Examples
    --------
    >>> import tempfile, torch, halfulp
    >>> optimizer = halfulp.AdamW(torch.nn.Linear(64, 64).parameters(), state="fp8")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     halfulp.save_optimizer(optimizer, f"{folder}/optimizer.safetensors")
    ...     halfulp.load_optimizer(optimizer, f"{folder}/optimizer.safetensors")
    """
    write_file(optimizer.state_dict(), path)


def load_optimizer(optimizer: torch.optim.Optimizer, path: str | os.PathLike[str], *, convert: bool = False) -> None:
    """Load a file written by :func:`save_optimizer`. The optimizer is unchanged if anything does not fit.

    Parameters
    ----------
    optimizer
        Optimizer of the same kind and format as the saved one.
    path
        The file.
    convert
        Whether to convert from another format or library (:func:`~halfulp.checkpoint.convert.convert_state_dict`).

    Raises
    ------
    ValueError
        If the file was not written by :func:`save_optimizer` or is damaged, or a state does not fit.

    Examples
    --------
    >>> import tempfile, torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> before, after = torch.optim.AdamW(model.parameters()), halfulp.AdamW(model.parameters(), state="fp8")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     halfulp.save_optimizer(before, f"{folder}/optimizer.safetensors")
    ...     halfulp.load_optimizer(after, f"{folder}/optimizer.safetensors", convert=True)
    """
    from halfulp.checkpoint.convert import convert_state_dict

    state_dict = read_file(path)
    optimizer.load_state_dict(convert_state_dict(state_dict, to=optimizer) if convert else state_dict)


def write_file(tree: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state dictionary; see :func:`save_optimizer`."""
    from safetensors.torch import save

    tensors, header = pack(tree)
    data = save(tensors, {"format": FORMAT, "tree": header, "crc32": str(_crc(tensors))})
    write_bytes(Path(path), data)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of a safetensors file. It is opened once, since it may be replaced meanwhile.

    Raises
    ------
    ValueError
        If the file is not a safetensors file, or is truncated.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = path.read_bytes()
    try:
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from error
    return tensors, metadata


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a state dictionary written by :func:`write_file`. Raise ``ValueError`` if it is damaged or another file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return unpack_file(path, *read_safetensors(path))


def unpack_file(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the state dictionary in the content of a file; see :func:`read_file`."""
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file, but not of an optimizer saved by halfulp")
    if str(_crc(tensors)) != metadata.get("crc32"):
        raise ValueError(f"{path} is damaged: its tensors do not have the checksum that was written with them")
    try:
        tree = unpack(tensors, metadata["tree"])
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its header does not describe its tensors ({error})") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is damaged: its header is no state dictionary")
    return tree


def pack(tree: Any) -> tuple[dict[str, Tensor], str]:
    """Return the tensors by number, and the rest as JSON; see :func:`unpack`."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, where: str) -> Any:
        if isinstance(value, Tensor):
            if type(value) not in (Tensor, torch.nn.Parameter):
                raise ValueError(f"{where} is a {type(value).__name__}, not a plain tensor: convert it first")
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Mapping):
            return {"map": [[walk(k, where), walk(v, f"{where}[{k!r}]")] for k, v in value.items()]}
        if isinstance(value, (list, tuple)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [walk(v, f"{where}[{i}]") for i, v in enumerate(value)]}
        raise ValueError(f"{where} is a {type(value).__name__}, which cannot be stored")

    return tensors, json.dumps(walk(tree, "state_dict"))


def unpack(tensors: Mapping[str, Tensor], header: str) -> Any:
    """Undo :func:`pack`."""

    def walk(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, inner),) = value.items()
        if kind == "tensor":
            return tensors[inner]
        if kind == "map":
            return {walk(k): walk(v) for k, v in inner}
        return tuple(walk(v) for v in inner) if kind == "tuple" else [walk(v) for v in inner]

    return walk(json.loads(header))


def _crc(tensors: Mapping[str, Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc
