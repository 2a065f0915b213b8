"""Files of a run folder, written atomically."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from halfulp.checkpoint.atomic import write_bytes

__all__ = ["check_new", "check_tokens", "read_config", "read_json", "read_jsonl", "write_json", "write_text"]

Config = TypeVar("Config")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raise ``ValueError`` with its name if it is invalid."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON-lines file. An incomplete last line (from a killed process) is dropped.

    A ``ValueError`` names the file if it is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    try:
        rows = [json.loads(line) for line in lines[:-1]]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is damaged: a line of it is no row")
    return rows


def read_config(path: Path, kind: type[Config]) -> Config:
    """Build a dataclass from ``config.json``. Raise ``ValueError`` for unknown keys and wrong types."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__} instead of a configuration")
    unknown = set(values) - {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"{path} has unknown keys {sorted(unknown)}: it was written by another version")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} has a value of another kind than was written: {error}") from error


def check_new(folder: Path) -> None:
    """Raise ``ValueError`` if a new run folder already holds something."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty. Continue it with --resume {folder}, or choose another --out")


def check_tokens(folder: Path) -> None:
    """Raise ``ValueError`` unless the text of a run folder is still there."""
    if not (folder / "tokens" / "tokens.json").exists():
        raise ValueError(f"{folder} cannot be continued: its tokens/ folder is gone")
