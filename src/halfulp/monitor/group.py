"""One parameter group on one device, watched: what is gathered around a step, and what is counted from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.sharding import local
from halfulp.libraries import adapter_for
from halfulp.libraries.base import Adapter, Law, Skipped, Stored, WeightStep
from halfulp.monitor.sample import Bucket, Member, Tally, gather, precise

__all__ = ["GroupWatch"]


class GroupWatch:
    """Watches the members of one parameter group that lie on one device.

    Vectors of the group hold the sampled elements of all members in a row. Those that a step needs are gathered before
    it (`weight`, the buckets' `before`) or at its gradient (`grad`); the rest follows after it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, group: dict[str, Any], device: torch.device) -> None:
        self.optimizer, self.group, self.device = optimizer, group, device
        self.members: list[Member] = []
        self.buckets: list[Bucket] = []
        self.skipped: dict[tuple[str, str], str] = {}
        self.weight_reason: str | None = None
        self.weight_counts: Tensor | None = None
        self._slices: list[slice] = []
        self._low: Tensor | None = None
        self._segment = torch.zeros(0, dtype=torch.int64, device=device)
        self._grad: Tensor | None = None
        self._weight: Tensor | None = None
        self._idle: list[int] = []
        self._counting = False
        self._resets = False
        self._unbound = True

    # ---------------------------------------------------------------- membership

    def add(self, member: Member) -> None:
        """Watch one more parameter."""
        self.members.append(member)
        self._unbound = True
        start = self._slices[-1].stop if self._slices else 0
        self._slices.append(slice(start, start + len(member.index)))
        sizes = torch.tensor([len(m.index) for m in self.members], device=self.device)
        self._segment = torch.repeat_interleave(torch.arange(len(self.members), device=self.device), sizes)
        low = torch.tensor([m.low for m in self.members], device=self.device)
        self._low = low[self._segment] if any(m.low for m in self.members) else None
        counts = torch.zeros(len(self.members), 4, dtype=precise(self.device), device=self.device)
        if self.weight_counts is not None:
            counts[: len(self.weight_counts)] = self.weight_counts
        self.weight_counts = counts
        for bucket in self.buckets:  # a bucket of all members is one of some from now on
            if bucket.pick is None:
                bucket.pick = torch.arange(start, device=self.device)

    def _stale(self) -> bool:
        """Whether states came, went or were replaced since they were last looked up."""
        state = self.optimizer.state
        return any((state.get(m.param) or None) is not m.entries for m in self.members)

    def bind(self, *, fresh: bool) -> None:
        """Look every state up anew; shadows and tallies of those that are still there go on.

        Parameters
        ----------
        fresh
            States that were not there before were zero until this step, so that their shadows start at zero too.
        """
        old: dict[tuple[Tensor, str], _Carried] = {}
        for bucket in self.buckets:
            bucket.flush()
            for i, (number, piece) in enumerate(zip(bucket.members, bucket.slices(), strict=True)):
                old[self.members[number].param, bucket.slot] = _Carried(
                    bucket.tallies[i],
                    bucket.shadow[piece],
                    bucket.ages[i],
                    None if bucket.before is None else bucket.before[piece],
                    None if bucket.marks is None else bucket.marks[piece],
                )
        found: dict[tuple[Any, ...], list[tuple[int, Stored]]] = {}
        kept = set()
        for number, member in enumerate(self.members):
            entries = self.optimizer.state.get(member.param) or None
            if entries is member.entries:
                kept.add(number)
            member.entries = entries
            if entries is None:
                continue
            member.adapter = adapter_for(self.optimizer, entries)
            for state in member.adapter.stored(self.optimizer, self.group, member.param, entries):
                if isinstance(state, Skipped):
                    self.skipped[member.name, state.slot] = state.reason
                else:
                    found.setdefault((state.slot, state.law.drive, state.codec), []).append((number, state))
        self._resets = any(m.adapter is not None and m.adapter.counts_resets for m in self.members)
        self._unbound = any(m.entries is None for m in self.members)
        self.buckets = [self._bucket(list(states), old, kept, fresh) for states in found.values()]

    def _bucket(
        self,
        states: list[tuple[int, Stored]],
        old: dict[tuple[Tensor, str], _Carried],
        kept: set[int],
        fresh: bool,
    ) -> Bucket:
        first = states[0][1]
        numbers = [n for n, _ in states]
        sizes = [len(self.members[n].index) for n in numbers]
        located = [s.codec.locate(local(self.members[n].param).shape, self.members[n].index) for n, s in states]
        every = numbers == list(range(len(self.members)))
        pick = None if every else torch.cat([_range(self._slices[n], self.device) for n in numbers])
        bucket = Bucket(
            slot=first.slot,
            law=first.law,
            codec=first.codec,
            members=numbers,
            stored=[s for _, s in states],
            sizes=sizes,
            pick=pick,
            segment=torch.repeat_interleave(
                torch.arange(len(numbers), device=self.device), torch.tensor(sizes, device=self.device)
            ),
            shadow=torch.zeros(sum(sizes), dtype=precise(self.device), device=self.device),
            ages=[0] * len(numbers),
            tallies=[],
            sources=[s.holder.get(s.key) for _, s in states],
            indices=[at.indices for at in located],
            extra=None if located[0].extra is None else torch.cat([at.extra for at in located if at.extra is not None]),
        )
        self._carry(bucket, old, kept, fresh)
        return bucket

    def _carry(self, bucket: Bucket, old: dict[tuple[Tensor, str], _Carried], kept: set[int], fresh: bool) -> None:
        """Give a new bucket what is known of its members."""
        now = None
        if self._counting and fresh:  # bound within a counted step
            bucket.before, bucket.marks = torch.zeros_like(bucket.shadow), torch.zeros_like(bucket.read()[1])
        for i, (number, piece) in enumerate(zip(bucket.members, bucket.slices(), strict=True)):
            member = self.members[number]
            known = old.get((member.param, bucket.slot))
            bucket.tallies.append(Tally() if known is None else known.tally)
            if number in kept and known is not None:
                bucket.shadow[piece], bucket.ages[i] = known.shadow, known.age
                if bucket.before is not None and known.before is not None:
                    bucket.before[piece] = known.before
                if bucket.marks is not None and known.marks is not None:
                    bucket.marks[piece] = known.marks
            elif not fresh:
                now = bucket.read()[0] if now is None else now
                bucket.shadow[piece] = now[piece]
                assert member.adapter is not None
                assert member.entries is not None
                age = member.adapter.age(self.group, member.entries, bucket.slot)
                bucket.ages[i] = _settled(bucket.law, self.group) if age is None else age

    def shadows(self) -> Iterator[tuple[Tensor, str, Tensor]]:
        """(parameter, slot, shadow) of every watched state; the shadow is a view and may be written to."""
        for bucket in self.buckets:
            for number, piece in zip(bucket.members, bucket.slices(), strict=True):
                yield self.members[number].param, bucket.slot, bucket.shadow[piece]

    # ---------------------------------------------------------------- around a step

    def before(self, counting: bool) -> None:
        """Gather what the step will overwrite."""
        self._counting, self._grad = counting, None
        if self._stale() or (counting and any(b.moved_away() for b in self.buckets)):
            self.bind(fresh=False)
        for bucket in self.buckets:
            bucket.before, bucket.marks = bucket.read() if counting else (None, None)
        self._weight = None
        if (counting and self._low is not None) or self._l2():
            self._weight = self._vector([m.param for m in self.members])

    def gather_grads(self) -> None:
        """Gather the gradients, when they are those that the step will use."""
        zeros = None
        grads: list[Tensor] = []
        self._idle = []
        for number, member in enumerate(self.members):
            grad = member.param.grad
            if grad is None or grad.is_sparse:
                self._idle.append(number)
                zeros = torch.zeros(len(member.index), dtype=member.param.dtype, device=self.device)
                grads.append(zeros)
            else:
                grads.append(gather(grad, member.index))
        self._grad = (
            torch.cat([g.to(torch.float32) if g.dtype == torch.float16 else g for g in grads]) if grads else None
        )

    def after(self, scale: float) -> None:
        """Advance the shadows by the gradient, divided by `scale`, and count if the step is to be counted."""
        if self._grad is None or len(self._idle) == len(self.members):
            return
        grad = self._grad.to(precise(self.device)) / scale
        if self.group.get("maximize"):
            grad = -grad
        self._grad = None
        looking = self._unbound or self._counting  # between counted steps, states only come where there were none
        if looking and (self._stale() or any(b.moved_away() for b in self.buckets)):
            self.bind(fresh=True)
        ok = torch.isfinite(grad)
        if self._idle:
            idle = torch.zeros(len(self.members), dtype=torch.bool, device=self.device)
            idle[self._idle] = True
            ok &= ~idle[self._segment]
        decay = self._l2()
        judged = grad + decay * self._weight if decay and self._weight is not None else grad
        for bucket in self.buckets:
            self._advance(bucket, judged, ok)
        if self._counting and self._low is not None and self._weight is not None and self.buckets:
            self._count_weights(grad, ok)

    def _l2(self) -> float:
        adapter = next((m.adapter for m in self.members if m.adapter is not None), None)
        if adapter is None:
            return _coupled_decay(self.optimizer, self.group)
        return adapter.l2(self.optimizer, self.group)

    def _vector(self, tensors: list[Tensor]) -> Tensor:
        parts = [gather(t, m.index) for t, m in zip(tensors, self.members, strict=True)]
        return torch.cat([p.to(precise(self.device)) for p in parts])

    def _advance(self, bucket: Bucket, grad: Tensor, ok: Tensor) -> None:
        restarted = self._count_ages(bucket)
        started = [i for i, age in enumerate(bucket.ages) if age == 1] if 1 in bucket.ages else []
        if bucket.law.drive == "none":
            if self._counting:
                bucket.after = bucket.exact = bucket.read()[0]
            return
        if restarted:
            bucket.shadow = torch.where(self._of_members(bucket, restarted), 0.0, bucket.shadow)
            if bucket.before is not None:
                bucket.before = torch.where(self._of_members(bucket, restarted), 0.0, bucket.before)
        beta, gain = self._coefficients(bucket)
        x, fine = bucket.of_group(grad), bucket.of_group(ok)
        bucket.shadow = torch.where(fine, bucket.law.advance(bucket.shadow, x, beta, gain), bucket.shadow)
        if self._counting and bucket.before is not None:
            by_value = self._of_members(bucket, started) if started else None
            self._count(bucket, bucket.law.advance(bucket.before, x, beta, gain), fine, by_value)

    def _count_ages(self, bucket: Bucket) -> list[int]:
        """Add one to the ages of the members that made the step; those whose state was reset in it, by number."""
        bucket.met = bucket.ages
        if not self._idle and not self._resets:
            bucket.ages = [age + 1 for age in bucket.ages]
            return []
        idle, restarted = set(self._idle), []
        bucket.ages, bucket.met = list(bucket.ages), list(bucket.ages)
        for i, number in enumerate(bucket.members):
            if number in idle:
                continue
            member, age = self.members[number], bucket.ages[i] + 1
            if member.adapter is not None and member.adapter.counts_resets and member.entries is not None:
                found = member.adapter.age(self.group, member.entries, bucket.slot)
                if found is not None and found < age:
                    age = found
                    restarted.append(i)
            bucket.ages[i], bucket.met[i] = age, age - 1
        return restarted

    def _of_members(self, bucket: Bucket, numbers: list[int]) -> Tensor:
        """Mask of the elements of some members of a bucket."""
        mask = torch.zeros(len(bucket.members), dtype=torch.bool, device=self.device)
        mask[numbers] = True
        return mask[bucket.segment]

    def _coefficients(self, bucket: Bucket) -> tuple[float | Tensor, float | Tensor]:
        distinct = {age: bucket.law.coefficients(self.group, max(age, 1)) for age in set(bucket.ages)}
        if len(set(distinct.values())) == 1:
            return next(iter(distinct.values()))
        pairs = torch.tensor([distinct[a] for a in bucket.ages], dtype=precise(self.device), device=self.device)
        beta, gain = pairs[bucket.segment].unbind(-1)
        return beta, gain

    def _count(self, bucket: Bucket, exact: Tensor, fine: Tensor, by_value: Tensor | None) -> None:
        """Compare stored and exact successors; `by_value` masks states whose old code means nothing (just reset)."""
        assert bucket.before is not None
        values, marks = bucket.read()
        bucket.exact, bucket.after = exact, values
        due = fine & (exact != bucket.before)
        still = torch.eq(marks, bucket.marks) if bucket.marks is not None else values == bucket.before
        if by_value is not None:
            still = torch.where(by_value, values == bucket.before, still)
        bucket.reference = bucket.shadow
        both = torch.stack([due, due & still], dim=-1).to(precise(self.device))
        bucket.last = torch.zeros(len(bucket.members), 2, dtype=both.dtype, device=self.device)
        bucket.last.index_add_(0, bucket.segment, both)
        bucket.counts = bucket.last.clone() if bucket.counts is None else bucket.counts + bucket.last
        idle = set(self._idle)
        for i, number in enumerate(bucket.members):
            if number not in idle:
                bucket.tallies[i].ages.add(bucket.met[i])

    def _count_weights(self, grad: Tensor, ok: Tensor) -> None:
        """Count 16-bit weights that stood still although their update was not zero."""
        assert self._weight is not None
        assert self._low is not None
        assert self.weight_counts is not None
        weight = self._weight
        adapter: Adapter | None = next((m.adapter for m in self.members if m.adapter is not None), None)
        if adapter is None:
            return
        before: dict[str, Tensor] = {}
        exact: dict[str, Tensor] = {}
        after: dict[str, Tensor] = {}
        age = torch.ones_like(weight)
        for slot in {b.slot for b in self.buckets}:
            for into, which in ((before, "before"), (exact, "exact"), (after, "after")):
                into[slot] = self._assembled(slot, which)
        for bucket in self.buckets:
            ages = torch.tensor(bucket.ages, dtype=weight.dtype, device=self.device)[bucket.segment]
            if bucket.pick is None:
                age = ages
            else:
                age[bucket.pick] = ages
        step = WeightStep(weight, grad, before, exact, after, age)
        update = adapter.weight_update(self.optimizer, self.group, step)
        known = not isinstance(update, str)
        if isinstance(update, str):
            self.weight_reason = update
            first = exact.get("exp_avg", exact.get("momentum_buffer"))
            update = torch.where(grad != 0, grad, 0.0 if first is None else torch.nan_to_num(first))
            update = update.sign() * weight.abs().clamp_min(1.0)  # of unknown size: only whether it is zero counts
        moved = self._vector([m.param for m in self.members]) - weight
        due = ok & self._low & torch.isfinite(update) & (weight + update != weight)
        sums = torch.stack(
            [
                due.to(weight.dtype),
                (due & (moved == 0)).to(weight.dtype),
                torch.where(due & known, update.abs(), 0.0),
                torch.where(due & known, moved * update.sign(), 0.0),
            ],
            dim=-1,
        )
        self.weight_counts.index_add_(0, self._segment, sums)

    def _assembled(self, slot: str, which: str) -> Tensor:
        """A state over the whole group, NaN where a member has none."""
        out = torch.full_like(self._weight, torch.nan)  # type: ignore[arg-type]
        for bucket in self.buckets:
            values = getattr(bucket, which)
            if bucket.slot == slot:
                values = torch.zeros_like(bucket.shadow) if values is None else values
                if bucket.pick is None:
                    return values
                out[bucket.pick] = values
        return out


@dataclass
class _Carried:
    """What is kept of a state when the buckets are built anew."""

    tally: Tally
    shadow: Tensor
    age: int
    before: Tensor | None
    marks: Tensor | None


def _settled(law: Law, group: Mapping[str, Any]) -> int:
    """Age of a state that was there before the monitor, where nothing says: past its build-up."""
    beta = law.decay(group) if law.decay is not None else 0.0
    return max(round(3 / (1 - beta)), 1) if 0.0 < beta < 1.0 else 1


def _coupled_decay(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> float:
    """Weight decay that may enter a state, before any state says which library this is: gathered to be safe."""
    return float(group.get("weight_decay") or 0.0)


def _range(piece: slice, device: torch.device) -> Tensor:
    return torch.arange(piece.start, piece.stop, device=device)
