"""The states of an optimizer's parameters, bound to ``optimizer.state`` and bound again when that changes.

``optimizer.state`` is the truth. It has an entry for each parameter that has made a step: its step count, and the
codes, scales and age of each slot. A :class:`Bound` is a cache. It holds the tensors that it was made from, and detects
when they were replaced or moved, or changed their length or dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import is_
from typing import Any

import torch
from torch import Tensor

from halfulp.engine.master import MASTER, MasterState
from halfulp.engine.plan import GroupPlan, StatePlan
from halfulp.engine.registry import Place
from halfulp.engine.resets import ResetSchedule, Site, SlotSite
from halfulp.engine.sharding import (
    Part,
    copy_back_,
    has_memory,
    is_sharded,
    is_wrapper,
    local,
    local_part,
    whole_values,
)  # fmt: skip
from halfulp.engine.slot_state import SlotState, count
from halfulp.engine.zeroed import Written
from halfulp.kernels.binding import Binding
from halfulp.numbers.log import log_once, warn_once
from halfulp.numbers.quantizer import Quantizer
from halfulp.rules.base import Rule, Scalars

__all__ = ["Bound", "bind", "check_apart", "check_memory", "drop_leftovers", "version_of"]


@dataclass(eq=False)
class Bound:
    """A parameter with its states, as they were when bound, and its master weights, if any.

    `entries` are those of the parameter in ``optimizer.state``, `quantizers` those of the plan at the time, and `index`
    is the number of the parameter.
    """

    param: Tensor
    rule: Rule
    states: tuple[SlotState, ...]
    master: MasterState | None
    entries: dict[str, Any]
    quantizers: dict[str, Quantizer]
    index: int
    lasting: bool = field(init=False)
    """Whether the binding lasts. It does not for shards, gathered tensors and wrappers, which are fetched each step."""
    binding: Binding | None = field(init=False, default=None)
    low: bool = field(init=False)
    """Whether any state is stored in less than fp32."""
    names: tuple[str, ...] = field(init=False)
    """The names of the states, and ``"param"``."""
    held: dict[str, Tensor] = field(init=False)
    """The codes and scales, by their keys in `entries`."""
    counted: list[str] = field(init=False)
    """The keys of the counters that each step increments: the step count and the states' ages."""
    scalars: Scalars = field(init=False, default_factory=dict)
    """The scalars of the last step."""
    counts: Tensor | None = field(init=False, default=None)
    """The counters of due and stalled updates. See :class:`~halfulp.kernels.binding.Step`."""
    version: int = field(init=False)
    """The version of the parameter after its last step. See :func:`version_of`."""
    written: Written = field(init=False)
    """Detects codes that are written between steps."""

    def __post_init__(self) -> None:
        self.low = any(not s.quantizer.format.is_float32 for s in self.states)
        self.names = (*(s.slot.name for s in self.states), "param")
        self.lasting = not is_sharded(self.param) and not is_wrapper(self.param)
        self.held = {key: self.entries[key] for s in self.states for key in s.tensor_keys}
        if self.master is not None:
            self.held[MASTER] = self.entries[MASTER]
        self.version = version_of(self.param)
        self.counted = ["step", *(s.age_key for s in self.states)]
        self._integers = [int] * len(self.counted)
        self.written = Written(self.states if self.lasting else ())
        if self.lasting:
            self.binding = self._bind(self.param)

    def follow_weights(self) -> None:
        """Update fp32 master weights to weights that were set since the last step, as ``load_state_dict`` does."""
        if self.master is None or version_of(self.param) == self.version:
            return
        if self.master.follow_(self.param):
            log_once(
                "16-bit weights were set between steps, and their fp32 master weights follow. Changes through .data "
                "are not noticed: call optimizer.reset_state(['master_param']) after them"
            )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that a step writes in place, each with its key; that of the parameter is empty."""
        if self.lasting:
            yield "", self.param
        for key, x in self.held.items():
            yield key, local(x)

    def current(self, entries: dict[str, Any] | None, quantizers: dict[str, Quantizer]) -> bool:
        """Whether ``optimizer.state`` still holds what was bound, with the same storage."""
        return (
            entries is self.entries
            and quantizers is self.quantizers
            and all(map(is_, map(entries.get, self.held), self.held.values()))
            and [*map(type, map(entries.get, self.counted))] == self._integers
        )

    def fetched(self) -> Binding:
        """Return the binding for one step, for parameters without a lasting one."""
        param = self.param.detach()
        return self._bind(local(param) if is_sharded(param) and self.rule.shardable else whole_values(param))

    def intact(self) -> bool:
        """Whether the tensors still have the address, shape and dtype that they had when bound."""
        return self.binding is None or self.binding.intact()

    def fetched_gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient as the rule reads it, for parameters without a lasting binding."""
        if not is_sharded(self.param):
            return whole_values(grad)
        grad = grad.redistribute(placements=self.param.placements)  # type: ignore[attr-defined]
        return local(grad) if self.rule.shardable else whole_values(grad)

    def take_back(self, binding: Binding) -> None:
        """Copy the result of a step on fetched values into the parameter."""
        if is_sharded(self.param) and self.rule.shardable:
            return
        assert binding.param is not None
        if is_sharded(self.param):
            copy_back_(self.param, binding.param)
        else:
            self.param.copy_(binding.param)

    def _bind(self, param: Tensor) -> Binding:
        part = local_part(self.param) if is_sharded(self.param) and self.rule.shardable else Part(param)
        master = None if self.master is None else self.master.codes
        states = tuple(s.stored() for s in self.states)
        return Binding(self.rule, param, states, part.first_element, part.row_stride, master)

    def due(self, schedule: ResetSchedule, group: dict[str, Any], count: int) -> tuple[str, ...]:
        """Return the slots that a schedule resets before the next step."""
        hyper = {**group, **self.scalars}
        sites = tuple(SlotSite.of(s, hyper, tuple(self.param.shape)) for s in self.states)
        due = schedule.due(Site(self.entries["step"], self.index, count, sites, self.param.grad))
        unknown = set(due) - {s.name for s in sites}
        if unknown:
            raise ValueError(f"the reset schedule names {sorted(unknown)}; slots are {[s.name for s in sites]}")
        return due


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place, as autograd counts it; 0 if it does not count."""
    return 0 if tensor.is_inference() else tensor._version


def bind(
    state: MutableMapping[Tensor, dict[str, Any]], param: Tensor, rule: Rule, plan: GroupPlan,
    states: Sequence[StatePlan], place: Place,
) -> Bound:  # fmt: skip
    """Bind a parameter to its entries in ``optimizer.state``, which are first created or repaired.

    Raise ``ValueError``, with nothing changed, if a step could not use the entries or the parameter. The message says
    what to do.
    """
    label = place.label
    check_memory(param, label)
    entries = state.get(param)
    if entries is not None and not isinstance(entries, dict):
        raise ValueError(f"{label}: optimizer.state holds a {type(entries).__name__} for it, not a dictionary")
    found: dict[str, Any] = {} if entries is None else entries
    sharded = is_sharded(param) and rule.shardable
    slots = tuple(SlotState(s.slot, s.quantizer, s.shape, found, sharded) for s in states)
    stored = [s for s in slots if s.slot.name in found]
    if stored and "step" not in found:
        raise ValueError(
            f"{label}: optimizer.state has its {stored[0].slot.name} but no step, on which bias correction and random "
            "bits depend: set the number of steps there, or delete optimizer.state[param] to start at zero"
        )
    fresh: dict[str, Any] = {"step": count(label, "step", found.get("step", 0))}
    master = MasterState.of(param, plan.master, found, rule, label)
    if master is not None:
        fresh.update(master.fitted(param, label))
    elif found.pop(MASTER, None) is not None:
        warn_once(
            f"{label} is {param.dtype} now: what master_weights={plan.master!r} kept of its fp32 weight is dropped, "
            "and training goes on from the weight as it is. halfulp.fp32_state_dict(model, optimizer) gives the fp32 "
            "weights before a cast"
        )
    for slot in slots:
        step = fresh["step"] if stored else 0  # forgetting all states is no surprise
        fresh.update(slot.fitted(param, label, plan.quantizers[slot.slot.name], step))
    drop_leftovers(found, {s.slot.name for s in slots} | {MASTER})
    found.update(fresh)
    for slot in slots:
        if slot.scale_key not in slot.keys:
            found.pop(slot.scale_key, None)
    if entries is None:
        state[param] = found
    return Bound(param, rule, slots, master, found, plan.quantizers, place.index)


def check_apart(held: Iterable[tuple[str, Iterable[tuple[str, Tensor]]]]) -> None:
    """Raise ``ValueError`` if parameters or states of a step share memory, which would then be updated twice.

    Two parameters share it after ``b.data = a.data``, and two states after a shallow copy of ``optimizer.state[param]``
    for another parameter. The tensors of each parameter come with its label, each with its key in ``optimizer.state``
    (:meth:`Bound.tensors`).
    """
    found: list[tuple[int, int, str, str]] = []  # start, end, label, and the key of a state
    for label, tensors in held:
        for key, x in tensors:
            if x.numel():
                # views with gaps may interleave, so that only their first elements are compared
                size = x.numel() * x.element_size() if x.is_contiguous() else x.element_size()
                found.append((x.data_ptr(), x.data_ptr() + size, label, key))
    found.sort()
    for (_, end, *before), (start, _, *after) in pairwise(found):
        if start < end:
            (label, key), (other_label, other_key) = (after, before) if after[1] else (before, after)
            if not key:
                raise ValueError(
                    f"{label} and {other_label} share memory, and a step would update it twice: tie the parameters "
                    "themselves (b.weight = a.weight), not their data, or put a clone() there"
                )
            raise ValueError(
                f"{label}: {key} in optimizer.state lies in the same memory as "
                f"{f'{other_key} of {other_label}' if other_key else other_label}, and a step would change both: "
                "put a clone() there, or copy.deepcopy(optimizer.state[param])"
            )


def drop_leftovers(entries: dict[str, Any], names: set[str]) -> list[str]:
    """Remove states of slots that no longer exist (a momentum that became zero). Other keys belong to the user."""
    gone = [k for k in entries if isinstance(k, str) and f"{k}_age" in entries and k not in names]
    for name in gone:
        for key in (name, f"{name}_scale", f"{name}_age"):
            entries.pop(key, None)
    return gone


def check_memory(param: Tensor, label: str) -> None:
    """Raise ``RuntimeError`` for a parameter whose elements have no memory, or share it."""
    part = local(param.detach()) if is_sharded(param) else param
    if is_wrapper(part):
        return
    if not has_memory(part):
        raise RuntimeError(f"{label} has no memory: its storage was freed or made smaller; gather the parameters first")
    if torch._debug_has_internal_overlap(part) == 1:
        raise RuntimeError(f"{label} is expanded: several of its elements share memory; use param.clone()")
