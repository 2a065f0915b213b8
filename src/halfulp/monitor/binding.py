"""Sampled coordinates of a parameter group, and where their states are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.optimizer import RuleOptimizer
from halfulp.engine.sharding import local
from halfulp.libraries import adapter_for
from halfulp.libraries.base import Adapter, Codec, Followed, Skipped, Stored
from halfulp.numbers.remainder import weights
from halfulp.numbers.rng import hash_elements, slot_id, stream_keys

__all__ = ["Binding", "Member", "Reader", "coordinates", "gather", "precise"]

LOW = (torch.bfloat16, torch.float16)
RUN = 8
"""Contiguous elements per sampled run. A run fits in a cache line, and the cost of a gather is per cache line."""


def gather(tensor: Tensor, index: Tensor) -> Tensor:
    """Gather elements of this rank's part by flat index, without copying the rest. It need not be contiguous."""
    return torch.take(local(tensor.detach()), index)


def precise(device: torch.device) -> torch.dtype:
    """The dtype of the shadows: float64 if the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def coordinates(param: Tensor, number: int, count: int) -> Tensor:
    """Return a fixed sample of at most `count` flat indices of a parameter, in increasing order, in runs of eight."""
    size = local(param).numel()
    if count >= size:
        return torch.arange(size, device=param.device)
    words = hash_elements(stream_keys(0, number, slot_id("monitor"), 0), torch.arange(-(-count // RUN), device="cpu"))
    starts = (words.double() * (size // RUN / 2**32)).long().unique() * RUN
    return (starts.unsqueeze(-1) + torch.arange(RUN, device="cpu")).flatten()[:count].to(param.device)


@dataclass(eq=False)
class Member:
    """A watched parameter. `piece` is the slice of its elements in the vectors of its group."""

    param: Tensor
    name: str
    index: Tensor
    dtype: torch.dtype
    shape: torch.Size
    piece: slice = field(default_factory=lambda: slice(0, 0))
    entries: Mapping[Any, Any] | None = None
    adapter: Adapter | None = None
    followed: Followed | None = None
    ages: dict[str, int] = field(default_factory=dict)
    """Number of steps that each state has seen."""

    @classmethod
    def of(cls, param: Tensor, name: str, number: int, count: int) -> Member:
        """Sample `count` elements, always the same ones for the same `number` and shape of the parameter."""
        return cls(param, name, coordinates(param, number, count), param.dtype, param.shape)

    @property
    def low(self) -> bool:
        """Whether the weights have 16 bits."""
        return self.dtype in LOW

    @property
    def changed(self) -> bool:
        """Whether the parameter was cast, resized or moved."""
        param = self.param
        return param.dtype != self.dtype or param.shape != self.shape or param.device != self.index.device


@dataclass(eq=False)
class Reader:
    """States of one slot that are decoded in the same way.

    Parameters
    ----------
    slot, codec
        Slot and codec of the states.
    members, stored
        The parameters, and the state of each.
    pick
        Indices of the elements in the group's vectors; ``None`` for all of them in order.
    segment
        Index into `members` of each element.
    """

    slot: str
    codec: Codec
    members: list[Member]
    stored: list[Stored]
    pick: Tensor | None
    segment: Tensor
    sources: list[object]
    indices: list[tuple[Tensor, ...]]
    extra: Tensor | None

    @classmethod
    def of(cls, states: list[tuple[Member, Stored]], whole: bool, device: torch.device) -> Reader:
        """Build the reader of some members. `whole` says that they are all members of the group, in order."""
        members, stored = [m for m, _ in states], [s for _, s in states]
        located = [s.codec.locate(local(m.param).shape, m.index) for m, s in states]
        sizes = torch.tensor([len(m.index) for m in members], device=device)
        pieces = [torch.arange(m.piece.start, m.piece.stop, device=device) for m in members]
        return cls(
            stored[0].slot, stored[0].codec, members, stored, None if whole else torch.cat(pieces),
            torch.repeat_interleave(torch.arange(len(members), device=device), sizes),
            [s.holder.get(s.key) for s in stored], [at.indices for at in located],
            None if located[0].extra is None else torch.cat([at.extra for at in located if at.extra is not None]),
        )  # fmt: skip

    def read(self) -> tuple[Tensor, Tensor]:
        """Return the present stored values (precise) and marks of the sampled elements."""
        parts = [
            torch.cat([gather(s.tensors[i], at[i]) for s, at in zip(self.stored, self.indices, strict=True)])
            for i in range(len(self.indices[0]))
        ]
        values, marks = self.codec.decode(parts, self.extra)
        return values.to(precise(values.device)), marks

    def of_group(self, x: Tensor) -> Tensor:
        """Return the part of a group vector that belongs to this reader."""
        return x if self.pick is None else x[self.pick]

    def moved_away(self) -> bool:
        """Whether a stored tensor was replaced by another object since the last lookup."""
        return any(s.holder.get(s.key) is not o for s, o in zip(self.stored, self.sources, strict=True))

    def split(self, x: Tensor) -> Iterable[tuple[Member, Tensor]]:
        """Split a vector of this reader by member."""
        return zip(self.members, x.split([len(m.index) for m in self.members]), strict=True)


class Binding:
    """Members of one parameter group on one device. The group's vectors concatenate the elements of all members."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer, self.device = optimizer, device
        self.members: list[Member] = []
        self.readers: list[Reader] = []
        self.skipped: dict[tuple[str, str], str] = {}
        self.unbound = True
        """Whether members have no states yet."""

    def set_members(self, members: list[Member]) -> None:
        """Set the members to watch. Call :meth:`bind` afterwards."""
        self.members, self.unbound, start = members, True, 0
        self.readers = []
        for member in members:
            member.piece = slice(start, start + len(member.index))
            start = member.piece.stop
        sizes = torch.tensor([len(m.index) for m in members], dtype=torch.int64, device=self.device)
        self.segment = torch.repeat_interleave(torch.arange(len(members), device=self.device), sizes)
        self.low = torch.tensor([m.low for m in members], device=self.device)[self.segment] if members else None

    @property
    def any_low(self) -> bool:
        """Whether any member has 16-bit weights."""
        return any(m.low for m in self.members)

    def stale(self) -> bool:
        """Whether states were added, removed or replaced since the last lookup."""
        state = self.optimizer.state
        return any((state.get(m.param) or None) is not m.entries for m in self.members)

    def moved_away(self) -> bool:
        """Whether a stored tensor was replaced."""
        return any(reader.moved_away() for reader in self.readers)

    def bind(self, group: Mapping[str, Any], *, stepped: bool) -> None:
        """Look up every state again. A parameter without states after it `stepped` has a rule that keeps none."""
        found: dict[tuple[str, Codec], list[tuple[Member, Stored]]] = {}
        for member in self.members:
            member.entries = self.optimizer.state.get(member.param) or None
            if member.entries is None and (not stepped or member.param.grad is None):
                member.followed = None
                continue
            entries = member.entries or {}
            member.adapter = adapter_for(self.optimizer, entries)
            read = []
            for state in member.adapter.stored(self.optimizer, group, member.param, entries):
                if isinstance(state, Skipped):
                    self.skipped[member.name, state.slot] = state.reason
                else:
                    read.append(state)
            names = {state.slot for state in read}
            member.followed = member.adapter.follows(self.optimizer, group, member.param, names)
            for state in read:
                found.setdefault((state.slot, state.codec), []).append((member, state))
        self.unbound = any(m.followed is None for m in self.members)
        self.readers = [
            Reader.of(states, [m for m, _ in states] == self.members, self.device) for states in found.values()
        ]

    def weights(self) -> Tensor:
        """Return the sampled weights, including the master weights of our optimizers."""
        return torch.cat([self._weights_of(m) for m in self.members])

    def _weights_of(self, member: Member) -> Tensor:
        visible = gather(member.param, member.index)
        master = self.optimizer.master(member.param) if isinstance(self.optimizer, RuleOptimizer) else None
        if master is not None:
            visible = weights(visible, gather(master.codes, member.index))
        return visible.to(precise(self.device))

    def assemble(self, by_reader: Iterable[Tensor]) -> dict[str, Tensor]:
        """Combine the readers' states into group vectors by slot, with zeros for members without a state."""
        out: dict[str, Tensor] = {}
        for reader, values in zip(self.readers, by_reader, strict=True):
            if reader.pick is None:
                out[reader.slot] = values
            else:
                if reader.slot not in out:
                    out[reader.slot] = torch.zeros(len(self.segment), dtype=precise(self.device), device=self.device)
                out[reader.slot][reader.pick] = values
        return out

    def mask(self, members: Iterable[Member]) -> Tensor:
        """Return the mask of the group's elements that belong to some members."""
        chosen = torch.zeros(len(self.members), dtype=torch.bool, device=self.device)
        places = {id(m): i for i, m in enumerate(self.members)}
        chosen[[places[id(m)] for m in members]] = True
        return chosen[self.segment]
