"""Counters of due and stalled updates, for states and for 16-bit weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from halfulp.monitor.binding import Binding, Member, Reader
from halfulp.monitor.prediction import Ages, Average
from halfulp.monitor.shadow import Course

__all__ = ["Counts", "Seen", "Tally", "WeightTally"]


@dataclass
class Tally:
    """Sums for one slot of one parameter over the counted steps."""

    updates: float = 0.0
    stalled: float = 0.0
    ages: Ages = field(default_factory=Ages)


@dataclass
class WeightTally:
    """Due and stalled updates of a 16-bit parameter, and its intended and actual movement."""

    due: float = 0.0
    stalled: float = 0.0
    intended: float = 0.0
    moved: float = 0.0


@dataclass(eq=False)
class Seen:
    """The states of a reader in a counted step.

    Parameters
    ----------
    stored, shadow
        Values after the step.
    updates
        Due and stalled updates of each member, of shape ``(members, 2)``.
    met
        Average that each member's update met (see :meth:`halfulp.rules.slots.StateSlot.average`), and its age.
    beta, kind
        Decay, and kind of drive.
    """

    reader: Reader
    stored: Tensor
    shadow: Tensor
    updates: Tensor
    met: dict[Member, tuple[Average | None, int]]
    beta: float
    kind: str


class Counts:
    """Sums over the counted steps, kept on the device until they are needed."""

    def __init__(self) -> None:
        self.tallies: dict[tuple[Member, str], Tally] = {}
        self.weights: dict[Member, WeightTally] = {}
        self.seen: list[Seen] = []
        """States seen in the last counted step."""
        self.latest: dict[tuple[Member, str], Seen] = {}
        """The last record of each state, including parameters that no longer exist."""
        self.weight_reason: str | None = None
        self._waiting: dict[Reader, Tensor] = {}
        self._waiting_weights: list[tuple[list[Member], Tensor]] = []

    def add_states(
        self, binding: Binding, courses: list[Course], before: dict[str, Tensor], marks: list[Tensor],
        exact: dict[str, Tensor], shadow: dict[str, Tensor], fine: Tensor,
    ) -> None:  # fmt: skip
        """Compare stored and exact successors of the elements that are `fine`.

        `before`, `exact` and `shadow` are group vectors by slot: what was stored before the step, its exact successor,
        and the shadow after it. `marks` are those of each reader before the step.
        """
        course_of = {m: course for course in courses for m in course.members}
        self.seen = []
        for reader, mark in zip(binding.readers, marks, strict=True):
            first = next((m for m in reader.members if m in course_of), None)
            if first is None:
                continue
            hyper, declared = course_of[first].hyper, course_of[first].slot(reader.slot)
            drive = declared.averages(hyper, tuple(first.shape))
            if drive is None:
                continue
            stored, new_marks = reader.read()
            old = reader.of_group(before[reader.slot])
            due = reader.of_group(fine) & (reader.of_group(exact[reader.slot]) != old)
            still = torch.eq(new_marks, mark)
            started = [i for i, m in enumerate(reader.members) if m.ages[reader.slot] == 1]
            if started:  # the old code has no meaning
                young = torch.zeros(len(reader.members), dtype=torch.bool, device=due.device)
                young[started] = True
                still = torch.where(young[reader.segment], stored == old, still)
            sums = torch.zeros(len(reader.members), 2, dtype=stored.dtype, device=stored.device)
            sums.index_add_(0, reader.segment, torch.stack([due, due & still], dim=-1).to(stored.dtype))
            waiting = self._waiting.get(reader)
            self._waiting[reader] = sums if waiting is None else waiting + sums
            met = {
                m: (course_of[m].average(reader.slot, m), m.ages[reader.slot] - 1)
                for m in reader.members
                if m in course_of
            }
            for m, (average, _) in met.items():
                self.tallies.setdefault((m, reader.slot), Tally()).ages.add(average)
            beta = declared.decay({k: v for k, v in hyper.items() if k != "age"})
            seen = Seen(reader, stored, reader.of_group(shadow[reader.slot]), sums, met, beta, drive.kind)
            self.seen.append(seen)
            self.latest |= {(m, reader.slot): seen for m in reader.members}

    def add_weights(
        self, binding: Binding, courses: list[Course], weight: Tensor, exact: Tensor, grad: Tensor, fine: Tensor
    ) -> None:
        """Count 16-bit weights that did not change although their update was not zero.

        If the rule does not say how weights move, a weight is due if its gradient is not zero.
        """
        known = torch.zeros_like(fine)
        for course in courses:
            known[slice(None) if course.pick is None else course.pick] = course.known
        update = torch.where(known, exact - weight, grad.sign() * weight.abs().clamp_min(1.0))
        due = fine & torch.isfinite(update) & (weight + update != weight)
        if binding.low is not None:
            due &= binding.low
        moved = binding.weights() - weight
        columns = (
            due, due & (moved == 0), torch.where(due & known, update.abs(), 0.0),
            torch.where(due & known, moved * update.sign(), 0.0),
        )  # fmt: skip
        sums = torch.zeros(len(binding.members), 4, dtype=weight.dtype, device=weight.device)
        sums.index_add_(0, binding.segment, torch.stack([c.to(weight.dtype) for c in columns], dim=-1))
        if self._waiting_weights and self._waiting_weights[-1][0] is binding.members:
            sums = sums + self._waiting_weights.pop()[1]
        self._waiting_weights.append((binding.members, sums))

    def flushed_weights(self) -> list[WeightTally]:
        """Return the sums of every parameter so far."""
        self.flush()
        return list(self.weights.values())

    def flush(self) -> None:
        """Add the device's counts to the tallies."""
        for reader, sums in self._waiting.items():
            for member, (updates, stalled) in zip(reader.members, sums.tolist(), strict=True):
                tally = self.tallies.setdefault((member, reader.slot), Tally())
                tally.updates += updates
                tally.stalled += stalled
        for members, sums in self._waiting_weights:
            for member, values in zip(members, sums.tolist(), strict=True):
                kept = self.weights.setdefault(member, WeightTally())
                for name, value in zip(("due", "stalled", "intended", "moved"), values, strict=True):
                    setattr(kept, name, getattr(kept, name) + value)
        self._waiting, self._waiting_weights = {}, []
