"""Counts of skipped elements, kept on the device of the tensors and read without waiting."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Skipped"]

Name = TypeVar("Name", bound=Hashable)
CHUNK = 1024
"""The number of counters that are allocated together."""


class Skipped(Generic[Name]):
    """Counters of elements skipped because of non-finite values, one per name, on the device of its tensors.

    Backends increment the counters, on a GPU without synchronization. :meth:`look` reads what has arrived, which on a
    GPU is one step late. :meth:`read` waits for the devices.

    Parameters
    ----------
    say
        Called with a name when more of its elements have been skipped.
    known
        The initial counts.
    """

    def __init__(self, say: Callable[[Name], None], known: Mapping[Name, int] | None = None) -> None:
        self._say = say
        self._known = dict(known or {})
        self._chunks: list[_Chunk[Name]] = []
        self._counters: dict[tuple[Name, torch.device], Tensor] = {}

    @torch.inference_mode(False)  # a counter made within inference_mode could not be changed outside
    def counter(self, name: Name, device: torch.device) -> Tensor:
        """Return the counter of a name on a device, a 0-dimensional int64 tensor."""
        found = self._counters.get((name, device))
        if found is not None:
            return found
        for chunk in self._chunks:
            if chunk.counts.device == device and len(chunk.names) < CHUNK:
                break
        else:
            chunk = _Chunk(torch.zeros(CHUNK, dtype=torch.int64, device=device))
            self._chunks.append(chunk)
        chunk.names.append(name)
        chunk.known.append(0)
        made = self._counters[name, device] = chunk.counts[len(chunk.names) - 1]
        return made

    def add(self, name: Name, elements: int) -> None:
        """Count elements that the host knows of."""
        if elements:
            self._known[name] = self._known.get(name, 0) + elements
            self._say(name)

    def look(self) -> None:
        """Add the counts that have arrived, without waiting for a device."""
        for chunk in self._chunks:
            for name, elements in chunk.look():
                self.add(name, elements)

    def read(self) -> dict[Name, int]:
        """Return the nonzero numbers of skipped elements so far, by name. This waits for the devices."""
        for chunk in self._chunks:
            for name, elements in chunk.news(chunk.counts.cpu().numpy()):
                self.add(name, elements)
        return dict(self._known)


@dataclass(eq=False)
class _Chunk(Generic[Name]):
    """Counters on one device, and the values that the host knows."""

    counts: Tensor
    names: list[Name] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    copy: Tensor | None = None
    arrived: torch.cuda.Event | None = None

    def __post_init__(self) -> None:
        self.on_host = self.counts.numpy() if self.counts.device.type == "cpu" else None

    def news(self, counts: npt.NDArray[np.int64]) -> list[tuple[Name, int]]:
        """Return what was added since the last call. `counts` may be older than those of the last call."""
        values = counts[: len(self.names)].tolist()
        if values == self.known:
            return []
        found = [(n, v - k) for n, v, k in zip(self.names, values, self.known, strict=True) if v > k]
        if found:
            self.known = list(map(max, values, self.known))
        return found

    def look(self) -> list[tuple[Name, int]]:
        """Return the counts that have arrived, and request the current ones for a later call."""
        if self.on_host is not None:
            return self.news(self.on_host)
        if self.counts.device.type != "cuda":
            return self.news(self.counts.cpu().numpy())
        found: list[tuple[Name, int]] = []
        if self.copy is None or self.arrived is None:
            self.copy = torch.zeros(CHUNK, dtype=torch.int64, pin_memory=True, device="cpu")
            self.arrived = torch.cuda.Event()
        elif self.arrived.query():
            found = self.news(self.copy.numpy())
        else:
            return found
        with torch.cuda.device(self.counts.device):
            self.copy.copy_(self.counts, non_blocking=True)
            self.arrived.record()
        return found
