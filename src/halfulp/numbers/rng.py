"""Counter-based random bits: a pure function of seed, parameter, slot, step and element.

There is no generator state. The bits are therefore the same after a resume, for any thread count, chunking or sharding,
and on every backend. Philox4x32-10 (Salmon et al., SC 2011) turns seed, parameter, slot and step into a 64-bit key,
once per tensor and step. An element maps to a point of the Weyl sequence ``element * GOLDEN``. Two rounds of an
avalanche hash, with the second key word added between them, turn key and point into 32 random bits. The multipliers are
those of the two-round 32-bit hash with the lowest known bias.

The streams of a parameter and of its states are used together, as *lanes* of one key. Lanes share the first round,
which a kernel computes once per element, and differ in the multiplier of the second. The words of two lanes are related
like successive outputs of a congruential generator. The ratios of the multipliers therefore have good spectra: a
shortest vector of at least 0.3 of the longest possible, and 0.55 among the first eight. The multipliers are the first
one times powers of 0xADB4A92D, filtered to mix as well as the first.

The Weyl sequence is necessary: two rounds on the bare index leave elements 4096 apart correlated (36 standard
deviations over about 2**20 elements). It costs a kernel one addition of ``GOLDEN`` per element.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halfulp.numbers.scaling import rows_and_cols

__all__ = ["LANES", "lanes", "part_bits", "random_bits", "slot_id", "step_keys", "stream_keys"]

_MASK = 0xFFFFFFFF
GOLDEN, HIGH_WORD = 0x9E3779B9, 0xBB67AE85
MULTIPLIERS = (0x21F0AAAD, 0xD35A2D97)
LANES = (
    MULTIPLIERS[1], 0x0CA6CB77, 0x17EAB64F, 0xABB33313, 0x1C462C97, 0xD22B7363,
    0xF2E926C3, 0x428C5A7B, 0x8FD3358F, 0x31D556B3, 0x8D934ABB, 0x7EE4A48B,
)  # fmt: skip
"""The multipliers of the second round: the first for a parameter, the others for its states in order."""


def slot_id(name: str) -> int:
    """Return the number of a slot in the random streams, the CRC-32 of its name, which is independent of slot order."""
    return zlib.crc32(name.encode())


def stream_keys(
    seed: int, parameter: npt.ArrayLike, slot: npt.ArrayLike, step: npt.ArrayLike
) -> npt.NDArray[np.uint32]:
    """Return the keys of streams: Philox4x32-10 of the counter (parameter, slot, step), keyed by the seed of 64 bits.

    The counter consists of broadcastable non-negative integers. The slot comes from :func:`slot_id`, and the step has
    up to 64 bits. The result is uint32 of shape ``(*broadcast, 2)``.

    Examples
    --------
    >>> stream_keys(0, 0, 0, 0).tolist()
    [1713891541, 3781805453]
    """
    arrays = np.broadcast_arrays(*(np.asarray(x, np.uint64) for x in (parameter, slot, step)))
    return np.stack(_philox(seed, arrays, np.uint64), axis=-1).astype(np.uint32)


def step_keys(seed: int, parameters: Sequence[int], slot: int, steps: Sequence[int]) -> list[Sequence[int]]:
    """Return :func:`stream_keys` of one slot of several parameters, as lists of two integers.

    A few are computed one by one in Python integers, since numpy takes as long for one as for twelve.
    """
    if len(parameters) > 12:
        return list(stream_keys(seed, parameters, slot, steps).tolist())
    return [_philox(seed, (p, slot, t), int) for p, t in zip(parameters, steps, strict=True)]


def _philox(seed: int, counter: Sequence[Any], word: Callable[[int], Any]) -> tuple[Any, Any]:
    """Return the first two words of Philox4x32-10, for integers or uint64 arrays."""
    mask, shift, first, second = word(_MASK), word(32), word(0xD2511F53), word(0xCD9E8D57)
    parameter, slot, step = counter
    c0, c1, c2, c3 = parameter & mask, slot & mask, step & mask, step >> shift
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        p0, p1 = c0 * first, c2 * second
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ word(k0), p1 & mask, (p0 >> shift) ^ c3 ^ word(k1), p0 & mask
        k0, k1 = (k0 + GOLDEN) & _MASK, (k1 + HIGH_WORD) & _MASK
    return c0, c1


@cache
def lanes(slots: tuple[str, ...]) -> dict[str, int]:
    """Return the multiplier of each state by name, and of ``"param"``. See :data:`LANES`.

    Raise ``ValueError`` if there are more states than lanes.
    """
    if len(slots) >= len(LANES):
        raise ValueError(
            f"random words are there for {len(LANES) - 1} states of a parameter, got {len(slots)}: {slots}"
        )
    return dict(zip(("param", *slots), LANES, strict=False))


def random_bits(
    key: Sequence[int] | npt.NDArray[np.uint32], start: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the random words of elements ``start`` to ``start + count`` of a stream, as int64 in ``[0, 2**32)``.

    The key is two 32-bit words from :func:`stream_keys`, and optionally one of :data:`LANES` (by default the first).
    The global index of the first element has up to 64 bits.
    """
    return hash_elements(key, torch.arange(start, start + count, dtype=torch.int64, device=device))


def part_bits(
    key: Sequence[int], shape: Sequence[int], first_element: int, row_stride: int | None, device: torch.device
) -> Tensor:
    """Return the random words of a tensor, or of a part of one, by the elements' positions in the whole, as int64.

    The part has a `shape`, the index of its first element in the whole, and the distance between the starts of
    consecutive rows, in elements of the whole; ``None`` for contiguous rows. The key is as in :func:`random_bits`.
    """
    rows, cols = rows_and_cols(tuple(shape))
    if row_stride is None:
        return random_bits(key, first_element, rows * cols, device).reshape(tuple(shape))
    starts = first_element + row_stride * torch.arange(rows, device=device)
    return hash_elements(key, starts.unsqueeze(1) + torch.arange(cols, device=device)).reshape(tuple(shape))


def hash_elements(key: Sequence[int] | npt.NDArray[np.uint32], element: Tensor) -> Tensor:
    """Return the random words of global element indices (int64, any shape). See :func:`random_bits`."""
    k0, k1, multiplier = (*(int(word) for word in key), LANES[0])[:3]
    x = ((element & _MASK) * GOLDEN & _MASK) ^ k0 ^ ((element >> 32) * HIGH_WORD & _MASK)
    x = ((x ^ (x >> 16)) * MULTIPLIERS[0] + k1) & _MASK
    x = ((x ^ (x >> 15)) * multiplier) & _MASK
    return x ^ (x >> 15)
