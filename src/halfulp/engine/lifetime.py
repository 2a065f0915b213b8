"""States of the parameters: they come with a first step, begin anew at a reset, and go when they are forgotten.

Each parameter that has made a step has an entry in ``optimizer.state``: its count of steps, and codes, scale and age of
each of its slots. Bindings, which a backend gets, hold the tensors of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.groups import RuleGroups
from halfulp.engine.resets import ResetSchedule, Site, SlotSite, as_schedule
from halfulp.engine.sharding import gathered, is_sharded, local, window
from halfulp.engine.slot_state import SlotState
from halfulp.kernels.binding import Binding
from halfulp.numbers.log import log_once
from halfulp.rules.base import Rule, Scalars

__all__ = ["RuleStates"]


@dataclass(eq=False)
class Bound:
    """A parameter with its states: what is known of it from step to step.

    Parameters
    ----------
    owner
        The optimizer's parameter.
    rule, states
        What it follows, and what it has.
    binding
        What a backend gets, and the entries that it was made of.
    scalars
        Of the last step.
    """

    owner: Tensor
    rule: Rule
    states: tuple[SlotState, ...]
    low: bool = field(init=False)
    names: tuple[str, ...] = field(init=False)
    binding: Binding | None = None
    held: list[Any] = field(init=False, default_factory=list)
    scalars: Scalars = field(init=False, default_factory=dict)
    counts: Tensor | None = None

    def __post_init__(self) -> None:
        self.low = any(not s.quantizer.format.is_float32 for s in self.states)
        self.names = (*(s.slot.name for s in self.states), "param")

    def bind(self) -> Binding:
        """The binding to the present tensors: the last one as long as they are the same."""
        held = [s.entries.get(key) for s in self.states for key in (s.slot.name, s.scale_key)]
        binding = self.binding
        if binding is not None and all(map(is_, held, self.held)) and not is_sharded(self.owner) and binding.intact():
            return binding
        param, first, stride = self.owner, 0, None  # itself: an alias would not notice that its data is replaced
        if is_sharded(self.owner):
            param = local(param.detach()) if self.rule.shardable else gathered(param.detach())
            if self.rule.shardable:
                here = window(self.owner)
                first = here.first_element
                stride = None if here.shape[1:] == tuple(self.owner.shape[1:]) else here.row_stride
        self.held = held
        self.binding = Binding(self.rule, param, tuple(s.stored() for s in self.states), first, stride)
        return self.binding


class RuleStates(RuleGroups):
    """States under a rule's groups; :class:`~halfulp.engine.optimizer.RuleOptimizer` makes the steps."""

    def _start_caches(self) -> None:
        super()._start_caches()
        self._bound: dict[Tensor, Bound] = {}
        self._schedules: dict[int, tuple[Any, ResetSchedule | None]] = {}
        self.reset_log: deque[tuple[int, int, tuple[str, ...]]] = deque(maxlen=100_000)
        """Resets made: (step after which, parameter number, slots)."""

    def _bind(self, group: dict[str, Any], param: Tensor) -> Bound:
        """Find the states of a parameter; create those that are not there, and drop those of no slot any more."""
        entries = self.state[param]
        entries.setdefault("step", 0)
        states = self._states_over(entries, group, param)
        for key in set(entries) - {"step", *(k for s in states for k in s.keys)}:
            del entries[key]
        for state in states:
            if state.slot.name not in entries:
                state.create(param)
        bound = self._bound[param] = Bound(param, self.active_rule(group, param), states)
        return bound

    def _states_over(self, entries: dict[str, Any], group: dict[str, Any], param: Tensor) -> tuple[SlotState, ...]:
        sharded = self._on_shards(group, param)
        return tuple(SlotState(slot, q, shape, entries, sharded) for slot, shape, q in self.slot_storage(group, param))

    # ---------------------------------------------------------------- resets

    def _schedule(self, group: dict[str, Any]) -> ResetSchedule | None:
        reset = group["reset"]
        cached = self._schedules.get(id(group))
        if cached is None or cached[0] is not reset:
            cached = self._schedules[id(group)] = (reset, as_schedule(reset))
        return cached[1]

    def _due(self, group: dict[str, Any], params: list[Tensor]) -> list[tuple[str, ...]]:
        """Slots to reset of each parameter before its next step; an empty list without a schedule."""
        schedule = self._schedule(group)
        if schedule is None:
            return []
        return [self._due_slots(schedule, group, self._bound.get(p) or self._bind(group, p)) for p in params]

    def _due_slots(self, schedule: ResetSchedule, group: dict[str, Any], bound: Bound) -> tuple[str, ...]:
        hyper = {**group, **bound.scalars}
        sites = tuple(SlotSite.of(s, hyper, bound.owner.shape) for s in bound.states)
        step: int = self.state[bound.owner]["step"]
        due = schedule.due(Site(step, self.registry[bound.owner].index, len(self.registry), sites))
        unknown = set(due) - {s.name for s in sites}
        if unknown:
            raise ValueError(f"the reset schedule names {sorted(unknown)}; slots are {[s.name for s in sites]}")
        return due

    def _reset(self, param: Tensor, states: tuple[SlotState, ...], step: int, names: tuple[str, ...]) -> None:
        for state in states:
            if state.slot.name in names:
                state.reset_(param)
        self.reset_log.append((step, self.registry[param].index, names))
        log_once(f"{type(self).__name__}: states reset (first at step {step}; all in optimizer.reset_log)")

    @torch.no_grad()
    def reset_state(self, names: Sequence[str] | None = None, params: Iterable[Tensor] | None = None) -> None:
        """Set states to their initial value (zero, for moments) and their ages to zero now.

        Parameters
        ----------
        names
            Slots; all without. Unknown names are a ``ValueError``.
        params
            Parameters; all without.
        """
        if isinstance(names, str):
            names = (names,)
        chosen = None if params is None else set(params)
        strangers = [tuple(p.shape) for p in chosen or () if p not in self.registry]
        if strangers:
            raise ValueError(f"reset_state got tensors of shape {strangers} that are no parameters of this optimizer")
        known = {s.name for group in self.param_groups for s in self.group_slots(group)}
        if names is not None and not set(names) <= known:
            raise ValueError(f"no states {sorted(set(names) - known)}; there are {sorted(known)}")
        for group in self.param_groups:
            for p in group["params"]:
                if (chosen is None or p in chosen) and self.state.get(p):
                    states = self.states(p)
                    due = tuple(s.slot.name for s in states if names is None or s.slot.name in names)
                    if due:
                        self._reset(p, states, self.state[p]["step"], due)

    @torch.no_grad()
    def forget(self, params: Iterable[Tensor]) -> None:
        """Drop the states of parameters, and their memory; a later step begins with new ones.

        Their count of steps goes on: the random bits follow it.
        """
        for p in params:
            entries = self.state.get(p)
            if entries:
                for key in set(entries) - {"step"}:
                    del entries[key]
            self._bound.pop(p, None)

    # ---------------------------------------------------------------- queries

    def states(self, param: Tensor) -> tuple[SlotState, ...]:
        """States of a parameter that has made a step; ``KeyError`` for any other."""
        entries = self.state.get(param)
        if not entries:
            raise KeyError(f"{self.registry[param].label} has no state yet: it has made no step")
        bound = self._bound.get(param)
        if bound is not None:
            return bound.states
        found = self._states_over(entries, self.registry[param].group, param)
        return tuple(state for state in found if state.slot.name in entries)

    def state_tensor(self, param: Tensor, name: str) -> Tensor:
        """A state decoded to fp32, of its own shape (the parameter's, unless it is factored)."""
        for state in self.states(param):
            if state.slot.name == name:
                return state.read()
        raise KeyError(f"no state {name!r}; there are {[s.slot.name for s in self.states(param)]}")

    def coefficients(self, param: Tensor) -> dict[str, tuple[float, float]]:
        """``(beta, gain)`` of each state of a parameter, as they were in its last step."""
        bound = self._bound.get(param)
        hyper = {**self.registry[param].group, **(bound.scalars if bound is not None else {})}
        return {s.slot.name: s.slot.coefficients(hyper) for s in self.states(param)}
