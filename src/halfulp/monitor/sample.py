"""The sampled coordinates of one parameter group: gradients, weights and states, side by side in flat vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.sharding import local
from halfulp.libraries.base import Adapter, Codec, Law, Stored
from halfulp.monitor.prediction import AgeBins
from halfulp.numbers.rng import hash_elements, slot_id, stream_keys

__all__ = ["Bucket", "Member", "Tally", "coordinates", "gather", "precise"]

LOW = (torch.bfloat16, torch.float16)


def gather(tensor: Tensor, index: Tensor) -> Tensor:
    """Elements of this rank's part by flat index, without copying the rest (also of one that is not contiguous)."""
    return torch.take(local(tensor.detach()), index)


def precise(device: torch.device) -> torch.dtype:
    """The dtype that shadows are kept in: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


RUN = 8
"""Elements sampled side by side: a cache line or less, since fetching it is what a gather costs."""


def coordinates(param: Tensor, number: int, count: int) -> Tensor:
    """A fixed sample of at most `count` flat indices of a parameter, in increasing order, in runs of eight."""
    size = local(param).numel()
    if count >= size:
        return torch.arange(size, device=param.device)
    words = hash_elements(stream_keys(0, number, slot_id("monitor"), 0), torch.arange(-(-count // RUN)))
    starts = (words.double() * (size // RUN / 2**32)).long().unique() * RUN
    return (starts.unsqueeze(-1) + torch.arange(RUN)).flatten()[:count].to(param.device)


@dataclass
class Member:
    """A watched parameter."""

    param: Tensor
    name: str
    index: Tensor
    entries: Mapping[Any, Any] | None = None
    adapter: Adapter | None = None
    steps: int = 0

    @property
    def low(self) -> bool:
        """Whether the weights have 16 bits."""
        return self.param.dtype in LOW


@dataclass
class Tally:
    """Sums of one slot of one parameter over the counted steps."""

    updates: float = 0.0
    stalled: float = 0.0
    ages: AgeBins = field(default_factory=AgeBins)


@dataclass
class Bucket:
    """States of one slot that are decoded alike, of some members of a group.

    Parameters
    ----------
    slot, law, codec
        As of the states in it.
    members, stored
        Number of each member in its group, and the state that it has here.
    pick
        Where the elements are in the group's vectors; ``None`` for all of them in order.
    segment
        Which of `members` each element belongs to.
    """

    slot: str
    law: Law
    codec: Codec
    members: list[int]
    stored: list[Stored]
    sizes: list[int]
    pick: Tensor | None
    segment: Tensor
    shadow: Tensor
    ages: list[int]
    tallies: list[Tally]
    sources: list[object]
    indices: list[tuple[Tensor, ...]]
    extra: Tensor | None
    before: Tensor | None = None
    marks: Tensor | None = None
    exact: Tensor | None = None
    after: Tensor | None = None
    reference: Tensor | None = None
    met: list[int] = field(default_factory=list)
    counts: Tensor | None = None
    last: Tensor | None = None

    @property
    def low(self) -> bool:
        """Whether anything is rounded here."""
        return self.codec.format != "float32"

    def of_group(self, x: Tensor) -> Tensor:
        """The part of a vector of the group that belongs here."""
        return x if self.pick is None else x[self.pick]

    def read(self) -> tuple[Tensor, Tensor]:
        """Stored values (precise) and marks of the sampled elements, now."""
        parts = [
            torch.cat([gather(s.tensors[i], at[i]) for s, at in zip(self.stored, self.indices, strict=True)])
            for i in range(len(self.indices[0]))
        ]
        values, marks = self.codec.decode(parts, self.extra)
        return values.to(self.shadow.dtype), marks

    def moved_away(self) -> bool:
        """Whether a stored tensor was replaced by another object since it was looked up."""
        return any(s.holder.get(s.key) is not o for s, o in zip(self.stored, self.sources, strict=True))

    def slices(self) -> list[slice]:
        """The elements of each member."""
        ends, start = [], 0
        for size in self.sizes:
            ends.append(slice(start, start + size))
            start += size
        return ends

    def flush(self) -> None:
        """Add what was counted on the device to the tallies."""
        if self.counts is None:
            return
        for tally, (updates, stalled) in zip(self.tallies, self.counts.tolist(), strict=True):
            tally.updates += updates
            tally.stalled += stalled
        self.counts = None
