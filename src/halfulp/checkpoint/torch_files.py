"""Reader of ``torch.save`` files with bounded memory and time that runs no code in them.

``torch.load(weights_only=True)`` reads the file. Checks around it cover its gaps: compressed archives, which may expand
to any size; keys whose hashing may not finish; and tensors that claim more elements than are stored.
"""

from __future__ import annotations

import importlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from halfulp.checkpoint.pickles import plain

__all__ = ["load_torch", "refused"]


def refused(where: object, reason: str) -> ValueError:
    """Return the error for a file that is damaged or holds unsupported data."""
    return ValueError(
        f"{where} was not loaded, and nothing in it was executed: it is damaged, or holds Python objects beyond "
        f"tensors and containers ({reason}). Save optimizer.state_dict() alone"
    )


def load_torch(source: Path | IO[bytes], where: object) -> Any:
    """Return the content of a torch file. Raise a ``ValueError`` that names `where` if it cannot be loaded."""
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                return _load(file)
        return _load(source)
    except pickle.UnpicklingError as error:
        raise refused(where, _reason(str(error).strip().splitlines())) from error
    except (
        RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError, AssertionError,
        MemoryError, OverflowError, NotImplementedError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ValueError(f"{where} is truncated, damaged or no torch file ({reason})") from error


def _load(file: IO[bytes]) -> Any:
    _check(file)
    file.seek(0)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "torchao.optim" not in str(error):
            raise
        try:  # importing it registers its state tensors with torch as safe
            importlib.import_module("torchao.optim")
        except ImportError:
            raise error from None
        file.seek(0)
        found = torch.load(file, map_location="cpu", weights_only=True)
    _check_tensors(found)
    return found


def _check(file: IO[bytes]) -> None:
    """Refuse archives that expand when read, and pickles that no saved data needs."""
    zipped = file.read(2) == b"PK"
    size = file.seek(0, 2)
    file.seek(0)
    if zipped:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = [m.filename for m in members]
            grown = sum(m.file_size for m in members) > size or any(m.compress_type for m in members)
            if grown or len(set(names)) < len(names):
                raise pickle.UnpicklingError("its archive is compressed, or names a member twice")
            for name in names:
                if name.endswith("data.pkl"):
                    plain(archive.read(name))
        return
    for _ in range(5):  # before torch 1.6: four pickles around the one with the data, then the storages
        if file.tell() < size:
            plain(file)


def _check_tensors(tree: Any) -> None:
    waiting, seen = [tree], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        elif type(value) in (Tensor, torch.nn.Parameter):
            if value.layout != torch.strided or value.is_meta:
                raise pickle.UnpicklingError("a tensor in it is sparse, or without data")
            stored = value.untyped_storage().nbytes()
            if value.numel() * value.element_size() > stored:
                raise pickle.UnpicklingError(
                    f"a tensor in it claims {value.numel()} elements, and {stored} bytes of them are stored"
                )


def _reason(lines: list[str]) -> str:
    found = next(
        (line for line in lines if "GLOBAL" in line or "business" in line or "Unsupported" in line or "opcode" in line),
        None,
    )
    return (found or (lines[0] if lines else "unreadable")).strip()
