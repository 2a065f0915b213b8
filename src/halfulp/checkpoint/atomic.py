"""Atomic file writes."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

__all__ = ["write_bytes"]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: write a temporary file beside it, flush it to disk, rename it, and flush the folder.

    After an error (a full disk, an unwritable folder) the old file remains and the temporary one is removed. A killed
    process may leave the temporary file. Each writer has its own temporary name, so of several writers to one path the
    last to finish wins. Links are followed.

    Raises
    ------
    OSError
        If the file cannot be written, or `path` is a folder, device, pipe or socket.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file, and not written to", str(path))
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure, if the system can open and flush folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot, and the file is there anyway
            os.fsync(opened)
    finally:
        os.close(opened)
