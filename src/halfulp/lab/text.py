"""Real text from the standard library's own source, files and folders, or a Hugging Face dataset.

A source yields documents (name, text) in a fixed order. The last 5 % of the bytes are for validation. The split is
between documents, or inside a single document.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Corpus", "load_corpus"]

STDLIB_LEFT_OUT = {"test", "tests", "idlelib", "encodings", "site-packages", "dist-packages", "__pycache__"}
TEXT_KEYS = ("text", "content", "document", "body")
VALIDATION_SHARE = 0.05


@dataclass(frozen=True)
class Corpus:
    """Documents, split for training and validation. `info` describes their origin for readers."""

    train: list[str]
    validation: list[str]
    info: dict[str, Any]


def load_corpus(
    path: Path | None = None, dataset: str | None = None, *, text_key: str | None = None, max_mb: float = 64.0
) -> Corpus:
    """Read a text source. Reading stops after `max_mb` million bytes.

    Parameters
    ----------
    path
        A text, JSON-lines or parquet file, or a folder of them. Default, without `dataset`: the running interpreter's
        standard library.
    dataset
        A Hugging Face dataset, as ``name`` or ``name:configuration``. It is streamed, so only what is used is loaded.
    text_key
        Field or column with the text in JSON lines, parquet files and datasets. Default: the one named text, content,
        document or body.

    Raises
    ------
    ValueError
        If there is nothing to read: an empty or binary file, a folder without text, a missing field.
    FileNotFoundError
        If the path does not exist.
    """
    if path is not None and dataset is not None:
        raise ValueError("give a path or a dataset, not both")
    if not max_mb > 0:
        raise ValueError(f"max_mb is a number of million bytes above 0, got {max_mb}")
    if dataset is not None:
        source, documents = f"dataset {dataset}", _dataset(dataset, text_key)
    elif path is not None:
        source, documents = str(path), _path(path, text_key)
    else:
        source, documents = f"standard library of Python {platform.python_version()}", _stdlib()
    taken, size = [], 0
    for name, given in documents:
        text = given.encode("utf-8", "replace").decode()  # JSON may contain halves of surrogate pairs
        if text.strip():
            taken.append((name, text))
            size += len(text.encode())
        if size >= max_mb * 1e6:
            break
    if not taken:
        raise ValueError(f"{source} holds no text: every document is empty")
    train, validation = _split([text for _, text in taken], size)
    digest = hashlib.sha256("\0".join(text for _, text in taken).encode()).hexdigest()
    info = {
        "source": source,
        "documents": len(taken),
        "bytes": size,
        "train_bytes": sum(len(t.encode()) for t in train),
        "sha256": digest,
        "first_document": taken[0][0],
        "last_document": taken[-1][0],
    }
    return Corpus(train, validation, info)


def _split(texts: list[str], size: int) -> tuple[list[str], list[str]]:
    if len(texts) == 1:
        cut = round(len(texts[0]) * (1 - VALIDATION_SHARE))
        return [texts[0][:cut]], [texts[0][cut:]]
    seen, cut = 0, 0
    while cut < len(texts) - 1 and (cut == 0 or seen < (1 - VALIDATION_SHARE) * size):
        seen += len(texts[cut].encode())
        cut += 1
    return texts[:cut], texts[cut:]


def _stdlib() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in root.rglob("*.py") if not STDLIB_LEFT_OUT & set(f.relative_to(root).parts[:-1])]
    if not files:
        raise ValueError(
            f"this Python has no source of its standard library under {root}; give a text with --data PATH"
        )
    for file in sorted(files):
        text = _decode(file.read_bytes())
        if text is not None:
            yield file.relative_to(root).as_posix(), text


def _decode(data: bytes) -> str | None:
    """Return UTF-8 text, or ``None`` for other data."""
    if b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _path(path: Path, text_key: str | None) -> Iterator[tuple[str, str]]:
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.is_file():
        yield from _file(path, path.name, text_key)
        return
    files = [f for f in sorted(path.rglob("*")) if f.is_file() and not _hidden(f.relative_to(path))]
    found = False
    for file in files:
        name = file.relative_to(path).as_posix()
        if file.suffix in (".jsonl", ".parquet"):
            found = True
            yield from _file(file, name, text_key)
        else:
            text = _decode(file.read_bytes())
            if text is not None and text.strip():
                found = True
                yield name, text
    if not found:
        raise ValueError(
            f"no text in {path}: none of its {len(files)} files is UTF-8 text, .jsonl or .parquet"
            if files
            else f"no text in {path}: the folder is empty"
        )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _file(path: Path, name: str, text_key: str | None) -> Iterator[tuple[str, str]]:
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    if path.suffix == ".parquet":
        yield from _parquet(path, name, text_key)
        return
    text = _decode(path.read_bytes())
    if text is None:
        raise ValueError(
            f"{path} is not UTF-8 text but binary; text, JSON lines (.jsonl) and parquet (.parquet) files can be read"
        )
    if path.suffix == ".jsonl":
        yield from _json_lines(path, name, text, text_key)
    else:
        yield name, text


def _json_lines(path: Path, name: str, text: str, text_key: str | None) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if isinstance(row, str):
            yield f"{name}:{number}", row
            continue
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: neither an object nor a string")
        yield f"{name}:{number}", _field(row, text_key, f"{path}, line {number}")


def _parquet(path: Path, name: str, text_key: str | None) -> Iterator[tuple[str, str]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("parquet files need the pyarrow package: pip install 'halfulp[datasets]'") from error
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    key = _key(list(file.schema_arrow.names), text_key, str(path))
    number = 0
    for batch in file.iter_batches(columns=[key]):
        for value in batch.column(0).to_pylist():
            number += 1
            yield f"{name}:{number}", _text(value, key, str(path))


def _dataset(name: str, text_key: str | None) -> Iterator[tuple[str, str]]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--dataset needs the datasets package: pip install 'halfulp[datasets]'") from error
    path, _, configuration = name.partition(":")
    try:
        rows = datasets.load_dataset(path, configuration or None, split="train", streaming=True)
    except Exception as error:  # the library raises many types of errors, including those of its network client
        raise ValueError(
            f"Hugging Face datasets cannot load {name!r} (split train): {type(error).__name__}: {error}"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{name}:{number}", _field(row, text_key, f"dataset {name}, row {number}")


def _field(row: dict[str, Any], text_key: str | None, where: str) -> str:
    key = _key(list(row), text_key, where)
    return _text(row[key], key, where)


def _text(value: Any, key: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} holds {type(value).__name__}, not text")
    return value


def _key(names: list[str], text_key: str | None, where: str) -> str:
    wanted = TEXT_KEYS if text_key is None else (text_key,)
    for key in wanted:
        if key in names:
            return key
    raise ValueError(f"{where}: no field {' or '.join(wanted)}; its fields are {', '.join(names)} (choose: --text-key)")
