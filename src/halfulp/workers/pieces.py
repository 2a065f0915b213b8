"""Values of any length in a key-value store of ``torch.distributed``, which accepts at most 8 MiB per value."""

from __future__ import annotations

import struct

import torch.distributed as dist
from torch import Tensor

__all__ = ["as_bytes", "forget", "get", "put"]

PIECE = 4 << 20
"""Bytes per value."""
LIST = struct.Struct("<qq")
"""List of pieces: number of the first, and count."""


def as_bytes(message: Tensor) -> bytes:
    """Return the bytes of a message."""
    return message.cpu().numpy().tobytes()


def put(store: dist.Store, key: str, value: bytes) -> bytes:
    """Set a value of any length: first pieces under fresh names, then the key, which lists them."""
    pieces = [value[at : at + PIECE] for at in range(0, len(value), PIECE)]
    first = store.add("pieces", len(pieces)) - len(pieces)
    for i, piece in enumerate(pieces):
        store.set(f"piece/{first + i}", piece)  # type: ignore[arg-type]
    listed = LIST.pack(first, len(pieces))
    store.set(key, listed)  # type: ignore[arg-type]
    return listed


def get(store: dist.Store, key: str) -> bytes:
    """Return a value of :func:`put`, also while it is being replaced."""
    while True:
        names = _pieces(store.get(key))
        if store.check(names):  # not replaced in the meantime
            return b"".join(store.get(name) for name in names)


def forget(store: dist.Store, listed: bytes) -> None:
    """Delete the pieces of a value, given the result of :func:`put`."""
    for name in _pieces(listed):
        store.delete_key(name)


def _pieces(listed: bytes) -> list[str]:
    first, count = LIST.unpack(listed)
    return [f"piece/{first + i}" for i in range(count)]
