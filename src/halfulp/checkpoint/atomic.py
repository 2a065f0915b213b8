"""Atomic writes of files, and of folders of them."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["folder_written", "write_bytes"]


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
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no folder to write to", str(path.parent))
    temporary = _beside(path)
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


@contextlib.contextmanager
def folder_written(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write files to. At the end, they replace those of the same names in `path`.

    They are renamed in the order of their names, last the hidden ones, which describe the others. After an error,
    `path` is as before and the written files are removed. A killed process may leave them in a hidden folder.

    Raises
    ------
    OSError
        If `path` is no folder, or cannot be written.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise OSError(errno.ENOTDIR, "not a folder, and not written to", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        path.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir(), key=lambda file: (file.name.startswith("."), file.name)):
            os.replace(file, path / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(path)


def _beside(path: Path) -> Path:
    """Return a new hidden name in the same folder."""
    return path.with_name(f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(8)}.tmp")


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
