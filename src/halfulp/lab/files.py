"""Files of a run folder: written to a temporary name and renamed, so that none is ever half there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from halfulp.checkpoint.atomic import write_bytes

__all__ = ["read_json", "read_jsonl", "write_bytes", "write_json", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file all or nothing."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file all or nothing."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; ``ValueError`` names the file if it is none."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line without its end (a process killed while writing) is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]
