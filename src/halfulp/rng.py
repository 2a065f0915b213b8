"""Counter-based random bits: a pure function of (seed; parameter, slot, step, element).

No generator state exists, so that the bits are the same after a resume, for any thread count, chunking or sharding, and
on every backend. Philox4x32-10 (Salmon et al., SC 2011) turns (seed; parameter, slot, step) into a key of 64 bits,
once per tensor and step. An element becomes a point of the Weyl sequence ``element * GOLDEN``, and two rounds of an
avalanche hash, the second key word added between them, turn (key; point) into 32 random bits. The multipliers are those
of the two-round 32-bit hash with the lowest known bias.

The Weyl sequence is not decoration: two rounds on the bare index leave elements 4096 apart correlated (36 standard
deviations in a bit over 2**20 elements). A kernel gets it for one addition per element, of ``GOLDEN``.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["random_bits", "slot_id", "stream_keys"]

_MASK = 0xFFFFFFFF
GOLDEN, HIGH_WORD = 0x9E3779B9, 0xBB67AE85
MULTIPLIERS = (0x21F0AAAD, 0xD35A2D97)


def slot_id(name: str) -> int:
    """Number of a slot in the random streams: the CRC-32 of its name, so that it does not hang on slot order."""
    return zlib.crc32(name.encode())


def stream_keys(
    seed: int, parameter: npt.ArrayLike, slot: npt.ArrayLike, step: npt.ArrayLike
) -> npt.NDArray[np.uint32]:
    """Keys of streams: Philox4x32-10 of the counter (parameter, slot, step), keyed by the seed.

    Parameters
    ----------
    seed
        64 bits.
    parameter, slot, step
        Broadcastable non-negative integers; `slot` as from :func:`slot_id`, `step` up to 64 bits.

    Returns
    -------
    ndarray
        uint32, shape ``(*broadcast, 2)``.

    Examples
    --------
    >>> stream_keys(0, 0, 0, 0).tolist()
    [1713891541, 3781805453]
    """
    parameter, slot, step = np.broadcast_arrays(
        np.asarray(parameter, np.uint64), np.asarray(slot, np.uint64), np.asarray(step, np.uint64)
    )
    mask, shift = np.uint64(_MASK), np.uint64(32)
    counter = [parameter & mask, slot & mask, step & mask, step >> shift]
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        p0, p1 = counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)
        counter = [
            (p1 >> shift) ^ counter[1] ^ np.uint64(k0),
            p1 & mask,
            (p0 >> shift) ^ counter[3] ^ np.uint64(k1),
            p0 & mask,
        ]
        k0, k1 = (k0 + GOLDEN) & _MASK, (k1 + HIGH_WORD) & _MASK
    return np.stack(counter[:2], axis=-1).astype(np.uint32)


def random_bits(
    key: tuple[int, int] | npt.NDArray[np.uint32], start: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Random words of elements ``start`` to ``start + count`` of a stream.

    Parameters
    ----------
    key
        Two 32-bit words, from :func:`stream_keys`.
    start
        Global index of the first element, up to 64 bits.
    count
        How many.

    Returns
    -------
    Tensor
        int64 of shape ``(count,)``, uniform on ``[0, 2**32)``.
    """
    return hash_elements(key, torch.arange(start, start + count, dtype=torch.int64, device=device))


def hash_elements(key: tuple[int, int] | npt.NDArray[np.uint32], element: Tensor) -> Tensor:
    """Random words of given global element indices (int64 tensor of any shape); see :func:`random_bits`."""
    k0, k1 = int(key[0]), int(key[1])
    x = ((element & _MASK) * GOLDEN & _MASK) ^ k0 ^ ((element >> 32) * HIGH_WORD & _MASK)
    x = ((x ^ (x >> 16)) * MULTIPLIERS[0] + k1) & _MASK
    x = ((x ^ (x >> 15)) * MULTIPLIERS[1]) & _MASK
    return x ^ (x >> 15)
