"""Files written all or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

__all__ = ["write_bytes"]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file all or nothing: under a temporary name beside it, flushed to disk, renamed, the folder flushed.

    After an error (a full disk, a folder that cannot be written) the old file is still there, and the temporary one is
    not; a process that is killed may leave the latter. Each writer has a temporary name of its own: of several that
    write to one path, the last to finish wins. A link is followed, so that it stays one.

    Raises
    ------
    OSError
        The file cannot be written, or `path` is a folder, device, pipe or socket.
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
    """Make a rename last through a power cut, where folders can be opened and flushed."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot; the file is there
            os.fsync(opened)
    finally:
        os.close(opened)
