"""Reading saved optimizers of any kind without running anything that is in them.

A torch file is loaded with ``weights_only``; the metadata of a DCP folder, which is a pickle, through an unpickler that
knows the classes of torch's checkpoint metadata and nothing else; safetensors hold no code.
"""

from __future__ import annotations

import builtins
import collections
import enum
import importlib
import io
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from halfulp.checkpoint.files import FORMAT, read_file

__all__ = ["find_optimizers", "read_saved"]

SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "exp_avg_slow")
TRAINER_FILES = ("optimizer.pt", "optimizer.bin", "optimizer.safetensors")


def read_saved(path: str | os.PathLike[str]) -> Any:
    """What a file or folder holds, as tensors, numbers, text and containers of them.

    Parameters
    ----------
    path
        A torch file, a safetensors file, a checkpoint folder of the HF Trainer (``optimizer.pt`` in it), or a folder of
        ``torch.distributed.checkpoint`` (``.metadata`` in it).

    Raises
    ------
    FileNotFoundError
        Nothing there.
    ValueError
        Damaged, of another kind, or with code in it; nothing in it was executed.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file or folder {path}")
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise ValueError(f"{path} is empty")
    length = int.from_bytes(head[:8], "little")  # of the header that safetensors begin with
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and 8 + length <= path.stat().st_size):
        return _read_safetensors(path)
    return _read_torch(path)


def _read_folder(path: Path) -> Any:
    if (path / ".metadata").is_file():
        return _read_dcp(path)
    for name in TRAINER_FILES:
        if (path / name).is_file():
            return read_saved(path / name)
    inner = sorted(p for p in path.iterdir() if p.is_dir() and (p / ".metadata").is_file())
    named = [p for p in inner if "optim" in p.name] or inner
    if named:  # the HF Trainer under FSDP keeps the optimizer in a folder of its own
        return _read_dcp(named[0])
    raise ValueError(
        f"{path} holds no optimizer: expected {', '.join(TRAINER_FILES)} (HF Trainer) or .metadata "
        "(torch.distributed.checkpoint)"
    )


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(262)
    if not head.startswith((b"PK", b"\x80")) and head[257:] != b"ustar":  # zip and pickle; tar of early versions
        raise ValueError(
            f"{path} is neither a torch checkpoint (torch.save) nor safetensors: it begins with {head[:24]!r}"
        )
    try:
        return _load(path)
    except pickle.UnpicklingError as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"{path} was not loaded, and nothing in it was executed: it is damaged, or holds Python objects beyond "
            f"tensors and containers ({_reason(lines)}). Save optimizer.state_dict() alone"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ValueError(f"{path} is truncated, damaged or no torch file ({reason})") from error


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "torchao.optim" not in str(error):
            raise
        try:  # importing it makes its state tensors known to torch as safe
            importlib.import_module("torchao.optim")
        except ImportError:
            raise error from None
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(lines: list[str]) -> str:
    found = next(
        (line for line in lines if "GLOBAL" in line or "business" in line or "Unsupported" in line or "opcode" in line),
        None,
    )
    return (found or (lines[0] if lines else "unreadable")).strip()


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("format") == FORMAT:
                return read_file(path)
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from error


class _MetadataUnpickler(pickle.Unpickler):
    """Knows torch's checkpoint metadata, sizes and dtypes; refuses everything else before it is looked up."""

    modules = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")

    def find_class(self, module: str, name: str) -> Any:
        if module in self.modules and name.isidentifier():
            found = getattr(importlib.import_module(module), name, None)
            if isinstance(found, type) and found.__module__ == module:
                return found
        if module == "torch" and name in ("Size", "device"):
            return getattr(torch, name)
        if module == "torch" and isinstance(getattr(torch, name, None), (torch.dtype, torch.layout)):
            return getattr(torch, name)
        if module == "torch.serialization" and name == "_get_layout":
            return lambda text: {str(v): v for v in (torch.strided, torch.sparse_coo)}[text]
        if (module, name) in (("collections", "OrderedDict"), ("builtins", "set"), ("builtins", "frozenset")):
            return getattr(collections if module == "collections" else builtins, name)
        if (module, name) == (
            "builtins",
            "getattr",
        ):  # how some versions of Python 3.11 write a member of an enumeration
            return self.member
        if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "WindowsPath", "PurePosixPath", "Path"):
            return PurePath
        raise pickle.UnpicklingError(f"{module}.{name} has no business in checkpoint metadata")

    def member(self, kind: Any, name: Any) -> Any:
        """A member of an enumeration of the modules known here, and nothing else that ``getattr`` would find."""
        if isinstance(kind, enum.EnumMeta) and kind.__module__ in self.modules and name in kind.__members__:
            return kind[name]
        raise pickle.UnpicklingError(f"attribute {name!r} of {kind!r} has no business in checkpoint metadata")


def _read_dcp(path: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner_helpers import ReadItem
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            with (Path(self.path) / ".metadata").open("rb") as file:
                metadata: Metadata = _MetadataUnpickler(file).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"the metadata is a {type(metadata).__name__}")
            if metadata.storage_meta is not None:
                metadata.storage_meta.load_id = self.load_id
            return metadata

    class Planner(_EmptyStateDictLoadPlanner):
        def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
            from torch.distributed.checkpoint._nested_dict import set_element

            found = torch.load(value, weights_only=True)
            name = read_item.dest_index.fqn
            if self.flatten_state_dict:
                set_element(self.original_state_dict, self.mappings[name], found)
            else:
                self.state_dict[name] = found

    state: dict[str, Any] = {}
    try:
        _load_state_dict(state, storage_reader=Reader(str(path)), planner=Planner(), no_dist=True)
    except (Exception, CheckpointException) as error:  # torch's own is no Exception
        cause = _innermost(error)
        raise ValueError(
            f"{path} was not loaded, and nothing in it was executed: it is damaged, or holds Python objects beyond "
            f"tensors and containers ({_reason(str(cause).strip().splitlines())})"
        ) from error
    return state


def _innermost(error: BaseException) -> BaseException:
    failures = getattr(error, "failures", None)  # torch's CheckpointException: rank -> (exception, traceback)
    if isinstance(failures, Mapping) and failures:
        first = next(iter(failures.values()))
        return _innermost(first[0] if isinstance(first, tuple) else first)
    return error


def find_optimizers(tree: Any, where: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every optimizer state dictionary in what was read, with its place; loose state tensors are put into one.

    Raises
    ------
    ValueError
        None there.
    """
    found = list(_walk(tree, where, 0))
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


def _walk(tree: Any, where: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(tree, Mapping):
        if isinstance(tree.get("state"), Mapping) and isinstance(tree.get("param_groups"), (list, tuple)):
            yield where, dict(tree)
        elif depth < 3:
            for key, value in tree.items():
                yield from _walk(value, f"{where}.{key}".lstrip("."), depth + 1)
    elif isinstance(tree, (list, tuple)) and depth < 3:
        for i, value in enumerate(tree):
            yield from _walk(value, f"{where}[{i}]", depth + 1)


def _loose(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors such as ``layer.weight.exp_avg`` as a state dictionary without hyper-parameters."""
    state: dict[str, dict[str, Any]] = {}
    for name, value in tree.items():
        parameter, _, slot = str(name).rpartition(".")
        if isinstance(value, Tensor) and slot in SLOTS:
            state.setdefault(parameter, {})[slot] = value
    return {"state": state, "param_groups": [{"params": list(state)}]}
