"""One parameter group on one device, watched around a step: a binding, the shadow of its states, and counters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfulp.libraries.base import COMPENSATED
from halfulp.monitor.binding import Binding, Member, Reader, gather, precise
from halfulp.monitor.counts import Counts
from halfulp.monitor.shadow import Shadow, courses, exact_step, needs_weights, start_of

__all__ = ["GroupWatch"]


@dataclass
class _Before:
    """The states before a step: group vectors by slot, and the marks of each reader."""

    values: dict[str, Tensor]
    readers: list[Reader]
    marks: list[Tensor]

    def recut(self, readers: list[Reader]) -> list[Tensor]:
        """Return the marks for other readers, with zeros for states that did not exist."""
        known = {
            (m, reader.slot): piece
            for reader, marks in zip(self.readers, self.marks, strict=True)
            for m, piece in reader.split(marks)
        }
        found = []
        for reader in readers:
            new = torch.zeros_like(reader.read()[1])
            for m, piece in reader.split(new):
                old = known.get((m, reader.slot))
                if old is not None and old.dtype == piece.dtype:
                    piece.copy_(old)
            found.append(new)
        return found


class GroupWatch:
    """Watch the members of one parameter group that are on one device."""

    def __init__(self, optimizer: torch.optim.Optimizer, group: dict[str, Any], device: torch.device) -> None:
        self.group, self.device = group, device
        self.binding, self.shadow, self.counts = Binding(optimizer, device), Shadow(), Counts()
        self.stopped = False
        """Whether an error stopped it."""
        self._before: _Before | None = None
        self._weight: Tensor | None = None
        self._grad: Tensor | None = None
        self._idle: set[int] = set()

    def stop(self) -> None:
        """Stop watching and keep the counts."""
        self.stopped, self._before, self._weight, self._grad = True, None, None, None

    @property
    def members(self) -> list[Member]:
        """The parameters being watched."""
        return self.binding.members

    def set_members(self, members: list[Member]) -> None:
        """Set the parameters to watch. The shadows of those that remain are kept."""
        kept = self.shadow.pieces(self.binding)
        self.counts.flush()
        self.binding.set_members(members)
        self.shadow.values = {}
        if any(m.entries is not None for m in members):
            self._bind(kept, fresh=False)

    def _bind(self, kept: dict[tuple[Member, str], Tensor], *, fresh: bool) -> None:
        self.binding.bind(self.group, stepped=fresh)
        self.shadow.rebind(self.binding, kept, fresh=fresh, weight=self._weight, group=self.group)

    def _look_up(self, *, fresh: bool) -> None:
        """Bind again. Shadows of states whose entries were replaced restart from the present values."""
        state = self.binding.optimizer.state
        kept = {
            (m, slot): piece
            for (m, slot), piece in self.shadow.pieces(self.binding).items()
            if (state.get(m.param) or None) is m.entries
        }
        self._bind(kept, fresh=fresh)

    def shadows(self) -> Iterator[tuple[Tensor, str, Tensor]]:
        """Yield (parameter, slot, shadow) of every watched state. The shadow is a view and may be written to."""
        for (member, slot), piece in self.shadow.pieces(self.binding).items():
            yield member.param, slot, piece

    # ---------------------------------------------------------------- around a step

    def before(self, counting: bool) -> None:
        """Gather the values that the step will overwrite."""
        binding, self._before, self._weight, self._grad = self.binding, None, None, None
        if not self.members:
            return
        if binding.stale() or (counting and binding.moved_away()):
            self._look_up(fresh=False)
        if counting:
            read = [reader.read() for reader in binding.readers]
            values = binding.assemble(values for values, _ in read)
            self._before = _Before(values, binding.readers, [marks for _, marks in read])
        if (counting and binding.any_low) or needs_weights(binding, self.group):
            self._weight = binding.weights()
        self._gather_grads()

    def _gather_grads(self) -> None:
        grads: list[Tensor] = []
        self._idle = set()
        for number, member in enumerate(self.members):
            grad = member.param.grad
            if grad is None or grad.is_sparse:
                self._idle.add(number)
                grads.append(torch.zeros(len(member.index), dtype=member.dtype, device=self.device))
            else:
                grads.append(gather(grad, member.index))
        self._grad = torch.cat([g.to(torch.float32) if g.dtype == torch.float16 else g for g in grads])

    def after(self, scale: float) -> None:
        """Advance the shadows by the gradient divided by `scale`, and count if this step is counted."""
        binding, grad = self.binding, self._grad
        if grad is None or len(self._idle) == len(self.members):
            return
        self._grad, grad = None, grad.to(precise(self.device)) / scale
        if self.group.get("maximize"):
            grad = -grad
        # between counted steps, states appear only where there were none
        if (binding.unbound or self._before) and (binding.unbound or binding.stale() or binding.moved_away()):
            self._look_up(fresh=True)
            if self._before is not None:
                self._complete(self._before)
        if self.shadow.is_dry_run(self._idle, self.members, self.group):
            self._before = None
            return
        restarted = list(self.shadow.count_ages(self._idle, self.members, self.group))
        for member, slot in restarted:
            start = start_of(member, slot, self.group, self._weight)
            self.shadow.values[slot] = self.shadow.values[slot].clone()  # the last report must not change
            self.shadow.values[slot][member.piece] = start
            if self._before is not None:
                self._before.values[slot][member.piece] = start
        fine = torch.isfinite(grad)
        if self._idle:
            fine &= ~binding.mask(self.members[i] for i in self._idle)
        weight = self._weight if self._weight is not None else torch.zeros_like(grad)
        taken = courses(binding, self.group, self._idle)
        self.shadow.values = exact_step(taken, self.shadow.values, weight, grad, fine)[1]
        if self._before is not None:
            exact_weight, exact = exact_step(taken, self._before.values, weight, grad, fine)
            self.counts.add_states(
                binding, taken, self._before.values, self._before.marks, exact, self.shadow.values, fine
            )
            reasons = {m.followed.weights for course in taken for m in course.members if m.followed is not None}
            if binding.any_low and COMPENSATED not in reasons:
                self.counts.add_weights(binding, taken, weight, exact_weight, grad, fine)
            self.counts.weight_reason = next((why for why in reasons if why is not None), self.counts.weight_reason)
            self._before = None

    def _complete(self, before: _Before) -> None:
        """Rearrange what was read before the step into the layout that is bound after it."""
        # new states have their start value
        values = {slot: shadow.clone() for slot, shadow in self.shadow.values.items()}
        old = {(m, r.slot): before.values[r.slot][m.piece] for r in before.readers for m in r.members}
        for (m, slot), piece in old.items():
            if slot in values:
                values[slot][m.piece] = piece
        before.marks, before.readers, before.values = before.recut(self.binding.readers), self.binding.readers, values
