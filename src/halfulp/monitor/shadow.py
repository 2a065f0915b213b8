"""Full-precision states: the rule itself, run in float64 on the sampled elements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfulp.monitor.binding import Binding, Member, precise
from halfulp.rules.base import Rule
from halfulp.rules.slots import Hyper, StateSlot

__all__ = ["Course", "Shadow", "courses", "exact_step", "needs_weights", "start_of"]

States = dict[str, Tensor]


@dataclass(frozen=True)
class Course:
    """Members that take the same step, with their rule, hyper-parameters and scalars.

    `pick` holds the indices of their elements in the group's vectors; ``None`` for all of them.
    """

    members: list[Member]
    pick: Tensor | None
    rule: Rule
    hyper: Hyper
    scalars: dict[str, float]
    known: bool
    """Whether the rule determines how the weights move."""

    def slot(self, name: str) -> StateSlot:
        """Return the declared slot of a state."""
        return next(s for s in self.rule.slots(self.hyper) if s.name == name)

    def average(self, slot: str, member: Member) -> Any:
        """Drive, decay and age of the average that this step meets; ``None`` if theory does not cover it."""
        hyper = {**self.hyper, **self.scalars}
        return self.slot(slot).average(hyper, tuple(member.shape), member.ages[slot] - 1)


def needs_weights(binding: Binding, group: Mapping[str, Any]) -> bool:
    """Whether the states after a step may depend on the weights before it."""
    if binding.unbound:
        return True
    for followed, param in {m.followed.rule: (m.followed, m.param) for m in binding.members if m.followed}.values():
        hyper = followed.hyper(group, param)
        coupled = hyper.get("weight_decay") and not hyper.get("decoupled_weight_decay", False)
        if hyper.get("l2", coupled) or any(s.alike or s.drive is None for s in followed.rule.slots(hyper)):
            return True
    return False


def exact_step(
    courses: list[Course], states: States, weight: Tensor, grad: Tensor, fine: Tensor
) -> tuple[Tensor, States]:
    """Return the exact successors of weights and states. Elements that are idle or not fine are unchanged."""
    if len(courses) == 1 and courses[0].pick is None:
        param, new = _update(courses[0], states, weight, grad)
        stepped = {name: torch.where(fine, state, states[name]) for name, state in new.items()}
        return torch.where(fine, param, weight), {**states, **stepped}
    weight, out = weight.clone(), {name: state.clone() for name, state in states.items()}
    for course in courses:
        at = slice(None) if course.pick is None else course.pick
        param, new = _update(course, {k: s[at] for k, s in states.items()}, weight[at], grad[at])
        weight[at] = torch.where(fine[at], param, weight[at])
        for name, state in new.items():
            out[name][at] = torch.where(fine[at], state, out[name][at])
    return weight, out


def _update(course: Course, states: States, weight: Tensor, grad: Tensor) -> tuple[Tensor, States]:
    names = [s.name for s in course.rule.slots(course.hyper)]
    return course.rule.update(weight, grad, {name: states[name] for name in names}, course.scalars)


class Shadow:
    """The states of a group in float64, tracked since they were first seen."""

    def __init__(self) -> None:
        self.values: States = {}
        """Values by slot, over the elements of the group; zero for members without that state."""

    def pieces(self, binding: Binding) -> dict[tuple[Member, str], Tensor]:
        """Return the part of each bound (member, slot)."""
        return {
            (m, reader.slot): self.values[reader.slot][m.piece] for reader in binding.readers for m in reader.members
        }

    def rebind(
        self, binding: Binding, kept: Mapping[tuple[Member, str], Tensor], *, fresh: bool, weight: Tensor | None,
        group: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Adopt a new binding, with the shadows in `kept`.

        The others are `fresh` if they were at their start until this step, for which some need the weights before it.
        Otherwise they begin with the present values.
        """
        now = {} if fresh else binding.assemble(reader.read()[0] for reader in binding.readers)
        size = len(binding.segment)
        self.values = {
            reader.slot: torch.zeros(size, dtype=precise(binding.device), device=binding.device)
            for reader in binding.readers
        }
        for reader in binding.readers:
            for m in reader.members:
                known = kept.get((m, reader.slot))
                if known is not None:
                    self.values[reader.slot][m.piece] = known
                elif fresh:
                    self.values[reader.slot][m.piece] = start_of(m, reader.slot, group, weight)
                    m.ages[reader.slot] = 0
                else:
                    self.values[reader.slot][m.piece] = now[reader.slot][m.piece]
                    m.ages[reader.slot] = _age(m, reader.slot, group)

    def is_dry_run(self, idle: set[int], members: Iterable[Member], group: Mapping[str, Any]) -> bool:
        """Whether the step only created states, as for ``torch.distributed.checkpoint``: their ages are still 0."""
        ages = []
        for number, m in enumerate(members):
            if number not in idle and m.adapter is not None and m.adapter.counts_resets and m.entries is not None:
                ages += [m.adapter.age(group, m.entries, slot) for slot in m.ages]
        return bool(ages) and all(age == 0 for age in ages)

    def count_ages(
        self, idle: set[int], members: Iterable[Member], group: Mapping[str, Any]
    ) -> Iterator[tuple[Member, str]]:
        """Add one to the ages of the members that stepped. Yield the states that were reset in this step."""
        for number, m in enumerate(members):
            if number in idle or m.adapter is None:
                continue
            resets = m.adapter.counts_resets
            for slot in m.ages:
                age = m.ages[slot] = m.ages[slot] + 1
                if resets and m.entries is not None:
                    found = m.adapter.age(group, m.entries, slot)
                    if found is not None and found < age:
                        m.ages[slot] = found
                        yield m, slot


def start_of(member: Member, slot: str, group: Mapping[str, Any], weight: Tensor | None) -> Tensor | float:
    """Return the initial value of a state."""
    declared, _ = _declared(member, slot, group)
    if declared is None or declared.init is None or weight is None:
        return 0.0
    return declared.init(weight[member.piece].float()).to(weight.dtype)


def _declared(member: Member, slot: str, group: Mapping[str, Any]) -> tuple[StateSlot | None, Hyper]:
    """Return the declared slot of a member's state, if there is one, and the hyper-parameters."""
    if member.followed is None:
        return None, {}
    hyper = member.followed.hyper(group, member.param)
    return next((s for s in member.followed.rule.slots(hyper) if s.name == slot), None), hyper


def _age(member: Member, slot: str, group: Mapping[str, Any]) -> int:
    """Return the age of a state that is older than the monitor. If unknown, it counts as past its build-up."""
    assert member.adapter is not None
    assert member.entries is not None
    age = member.adapter.age(group, member.entries, slot)
    if age is not None:
        return age
    declared, hyper = _declared(member, slot, group)
    beta = 0.0 if declared is None else declared.decay(hyper)
    return max(round(3 / (1 - beta)), 1) if 0.0 < beta < 1.0 else 1


def courses(binding: Binding, group: Mapping[str, Any], idle: set[int]) -> list[Course]:
    """Group the members that step by what they do."""
    sets: dict[tuple[Any, ...], list[Member]] = {}
    for number, m in enumerate(binding.members):
        if number not in idle and m.followed is not None:
            step = m.entries.get("step") if m.entries and m.adapter and m.adapter.counts_resets else None
            key = (m.followed.rule, m.followed.weights, step, *m.ages.items(), number if m.followed.apart else None)
            sets.setdefault(key, []).append(m)
    found = []
    for (rule, why, step, *_), members in sets.items():
        followed = members[0].followed
        assert followed is not None
        hyper, ages = followed.hyper(group, members[0].param), members[0].ages
        steps = max(ages.values(), default=1) if step is None else step
        pick = None
        if len(members) < len(binding.members):
            pick = torch.cat([torch.arange(m.piece.start, m.piece.stop, device=binding.device) for m in members])
        scalars = rule.scalars(hyper, {"step": steps, **ages})
        found.append(Course(members, pick, rule, hyper, scalars, why is None))
    return found
