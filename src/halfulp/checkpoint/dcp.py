"""Reader of ``torch.distributed.checkpoint`` folders that neither runs nor imports anything they name.

The metadata is a pickle, read as plain data. Its sizes, offsets and file names are checked, and the tensors are
assembled from the pieces that it lists.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from halfulp.checkpoint.pickles import Name, Record, plain
from halfulp.checkpoint.torch_files import load_torch, refused

__all__ = ["read_dcp"]

METADATA = "torch.distributed.checkpoint.metadata"
FILESYSTEM = "torch.distributed.checkpoint.filesystem"


def read_dcp(folder: Path) -> dict[str, Any]:
    """Return the nested dictionary that was saved. Raise ``ValueError`` for a damaged folder or unsupported objects."""
    try:
        with (folder / ".metadata").open("rb") as file:
            found = _record(plain(file), METADATA, "Metadata")
        storage = _storage(folder, found.get("storage_data"))
        entries = found["state_dict_metadata"]
        paths = found.get("planner_data") or {}
        tree: dict[str, Any] = {}
        for name, entry in entries.items():
            if not isinstance(name, str):
                raise pickle.UnpicklingError(f"an entry named {name!r}")
            _put(tree, paths.get(name, (name,)), _entry(folder, name, entry, storage))
    except pickle.UnpicklingError as error:
        raise refused(folder, str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
        raise refused(folder, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error
    return tree


Place = tuple[str, int, int]
"""File, offset and length of a saved piece."""


def _record(value: Any, module: str, kind: str) -> dict[str, Any]:
    if not isinstance(value, Record) or not isinstance(value.kind, Name):
        raise pickle.UnpicklingError(f"the metadata has a {type(value).__name__} where a {kind} belongs")
    if value.kind != Name(module, kind):
        raise pickle.UnpicklingError(f"{'.'.join(value.kind)} is not allowed in checkpoint metadata")
    if not isinstance(value.state, dict):
        raise pickle.UnpicklingError(f"a {kind} without fields")
    return value.state


def _ints(value: Any) -> tuple[int, ...]:
    """Return a ``torch.Size`` as integers, and check that sizes and offsets are not negative."""
    if isinstance(value, Record) and value.kind == Name("torch", "Size") and len(value.args) == 1:
        value = value.args[0]
    if not isinstance(value, (tuple, list)) or not all(type(n) is int and 0 <= n < 1 << 62 for n in value):
        raise pickle.UnpicklingError("an invalid size or offset")
    return tuple(value)


def _storage(folder: Path, value: Any) -> dict[tuple[str, tuple[int, ...] | None], Place]:
    places: dict[tuple[str, tuple[int, ...] | None], Place] = {}
    for index, info in value.items():
        key, where = _record(index, METADATA, "MetadataIndex"), _record(info, FILESYSTEM, "_StorageInfo")
        if where.get("transform_descriptors"):
            raise pickle.UnpicklingError(f"the data are transformed by {where['transform_descriptors']!r}")
        file, numbers = where["relative_path"], (where["offset"], where["length"])
        parts = PurePosixPath(file).parts
        if not parts or ".." in parts or PurePosixPath(file).is_absolute() or "\\" in file or "\0" in file:
            raise pickle.UnpicklingError(f"the file {file!r} is not one of the folder")
        offset, length = _ints(numbers)
        at = None if key.get("offset") is None else _ints(key["offset"])
        places[key["fqn"], at] = (file, offset, length)
    files = {folder / file for file, _, _ in places.values()}
    if sum(length for _, _, length in places.values()) > sum(f.stat().st_size for f in files if f.is_file()):
        raise pickle.UnpicklingError("the metadata describes more data than the files hold: one of them is damaged")
    return places


def _entry(folder: Path, name: str, entry: Any, storage: dict[Any, Place]) -> Any:
    """Return one saved value. Its storage is removed from `storage`, so that nothing is read twice."""
    if isinstance(entry, Record) and entry.kind == Name(METADATA, "BytesStorageMetadata"):
        return _piece(folder, name, storage.pop((name, None)))
    fields = _record(entry, METADATA, "TensorStorageMetadata")
    size, dtype = _ints(fields["size"]), _dtype(fields["properties"])
    chunks = []
    for chunk in fields["chunks"]:
        shape = _record(chunk, METADATA, "ChunkStorageMetadata")
        chunks.append((_ints(shape["offsets"]), _ints(shape["sizes"])))
    if math.prod(size) > sum(math.prod(sizes) for _, sizes in chunks):
        raise pickle.UnpicklingError(f"{name} of size {size} is incomplete")
    pieces = []
    for offsets, sizes in chunks:
        piece = _piece(folder, name, storage.pop((name, offsets if (name, offsets) in storage else None)))
        if not isinstance(piece, Tensor) or tuple(piece.shape) != sizes or piece.dtype != dtype:
            raise pickle.UnpicklingError(
                f"a piece of {name} is not the {dtype} of size {sizes} that the metadata names"
            )
        if len(sizes) != len(size) or any(o + n > s for o, n, s in zip(offsets, sizes, size, strict=True)):
            raise pickle.UnpicklingError(f"a piece of {name} is outside of it")
        pieces.append((offsets, piece))
    if len(pieces) == 1 and tuple(pieces[0][1].shape) == size:
        return pieces[0][1]
    whole = torch.zeros(size, dtype=dtype, device="cpu")
    for offsets, piece in pieces:
        whole[tuple(slice(o, o + n) for o, n in zip(offsets, piece.shape, strict=True))] = piece
    return whole


def _dtype(properties: Any) -> torch.dtype:
    """Return the ``dtype`` of a tensor, the first of its saved properties."""
    state = properties.state
    name = state["dtype"] if isinstance(state, dict) else state[0]
    found = getattr(torch, name.name, None) if isinstance(name, Name) and name.module == "torch" else None
    if not isinstance(found, torch.dtype):
        raise pickle.UnpicklingError(f"{name!r} is not a dtype")
    return found


def _piece(folder: Path, name: str, place: Place) -> Any:
    file, offset, length = place
    path = folder / file
    if not path.is_file():
        raise pickle.UnpicklingError(f"the file {file!r} of {name} is missing, or no regular file")
    if offset + length > path.stat().st_size:
        raise pickle.UnpicklingError(f"the file {file!r} ends before {name} does")
    with path.open("rb") as opened:
        opened.seek(offset)
        data = opened.read(length)
    return load_torch(io.BytesIO(data), f"{path} ({name})")


def _put(tree: dict[str, Any], path: Any, value: Any) -> None:
    """Set a value at a path of names and list indices."""
    if not isinstance(path, tuple) or not path or not all(isinstance(k, (str, int)) for k in path):
        raise pickle.UnpicklingError(f"an invalid path: {str(path)[:60]}")
    at: Any = tree
    for key, after in zip(path, (*path[1:], None), strict=True):
        if isinstance(at, list):
            if not isinstance(key, int) or not 0 <= key <= len(at) + 4096:
                raise pickle.UnpicklingError(f"place {key!r} of a list of {len(at)}")
            at.extend([None] * (key + 1 - len(at)))
        elif not isinstance(at, dict):
            raise pickle.UnpicklingError(f"the path {path!r} leads through a value")
        if after is None:
            at[key] = value
        else:
            inner = at[key] if isinstance(at, list) else at.get(key)
            if inner is None:
                inner = at[key] = [] if isinstance(after, int) else {}
            at = inner
