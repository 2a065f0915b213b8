"""Files written all or nothing."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_bytes"]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file all or nothing: under a temporary name beside it, flushed to disk, renamed.

    After an error the old file is still there, and the temporary one is not; a process that is killed may leave the
    latter.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
