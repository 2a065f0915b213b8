"""Parameters that step together, checked all at once by comparing whole lists.

A training loop steps the same parameters over and over. A :class:`Lineup` remembers how they were bound and tells
whether anything about them has changed. It also holds one step record per parameter, of which each step writes only
what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor

from halfulp.engine.plan import GroupPlan
from halfulp.engine.sharding import local
from halfulp.engine.states import Bound
from halfulp.kernels.binding import Binding, Seen, Step, look
from halfulp.numbers.log import log_once
from halfulp.numbers.quantizer import Rounding
from halfulp.numbers.rng import slot_id, step_keys
from halfulp.rules.base import Rule, Scalars
from halfulp.rules.checks import as_scalars

__all__ = ["Lineup", "Share"]

STREAM = slot_id("optimizer")


@dataclass(eq=False)
class Share:
    """A group's share of a step: its resolved arguments, and the parameters that step."""

    group: dict[str, Any]
    plan: GroupPlan
    params: list[Tensor]
    due: list[tuple[str, ...]] = field(default_factory=list)
    """The slots to reset, by parameter. Empty without a schedule."""


@dataclass(eq=False)
class _Family:
    """The parameters of a share that have the same rule and the same age keys."""

    rule: Rule
    low: bool
    counted: list[str]
    names: tuple[str, ...]
    exact: bool
    """Whether the master weights are exact, so that rounding affects only the visible weight."""
    bounds: list[Bound] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)

    def prepare(self, group: dict[str, Any], plan: GroupPlan) -> None:
        """Set the ages, scalars and random streams of the next step."""
        columns = [[entries[key] + 1 for entries in self.entries] for key in self.counted]
        found: dict[tuple[int, ...], Scalars] = {}
        scalars = []
        for ages in zip(*columns, strict=True):
            values = found.get(ages)
            if values is None:
                values = found[ages] = self._scalars(group, tuple(min(age, ages[0]) for age in ages))
            scalars.append(values)
        if any(max(ages) > ages[0] for ages in found):
            log_once(
                "a count of steps was set back in optimizer.state: the ages of its states, and with them bias "
                "correction, follow it"
            )
            columns[1:] = [[*map(min, column, columns[0])] for column in columns[1:]]
        keys = step_keys(group["seed"], self.indices, STREAM, columns[0])
        for key, column in zip(self.counted, columns, strict=True):
            for entries, age in zip(self.entries, column, strict=True):
                entries[key] = age
        lanes = [plan.streams[name] for name in self.names]
        rounding: Rounding = "nearest" if self.exact else group["param_rounding"]
        maximize = group["maximize"]
        for bound, step, values, (key0, key1) in zip(self.bounds, self.steps, scalars, keys, strict=True):
            grad = bound.param.grad
            assert grad is not None
            if not bound.lasting:
                step.binding, grad = bound.fetched(), bound.fetched_gradient(grad)
            bound.scalars = step.scalars = values
            step.inputs = (grad,)
            step.keys = [(key0, key1, lane) for lane in lanes]
            step.param_rounding, step.maximize, step.counts = rounding, maximize, bound.counts

    def _scalars(self, group: dict[str, Any], ages: tuple[int, ...]) -> Scalars:
        hyper = {**group, "bound_update": group["bound_update"] and self.low}
        ages_of = dict(zip(("step", *self.names), ages, strict=False))
        return as_scalars(self.rule.name, self.rule.scalars(hyper, ages_of))


class Lineup:
    """Bound parameters in the order of a step, and the records of their steps.

    `counter` returns the counter of skipped elements, given a parameter's number and a device.
    """

    def __init__(
        self, shares: Sequence[Share], bounds: Sequence[Bound], counter: Callable[[int, torch.device], Tensor]
    ) -> None:
        self.bounds = list(bounds)
        self.mastered = [b for b in bounds if b.master is not None and b.master.kind == "fp32"]
        """Bindings with fp32 master weights, which must follow weights that are set between steps."""
        self._params = [b.param for b in bounds]
        self._storage = [(share.plan.quantizers, len(share.params)) for share in shares]
        self._entries = [b.entries for b in bounds]
        self._of_held = [b.entries for b in bounds for _ in b.held]
        self._keys, self._held = [key for b in bounds for key in b.held], [x for b in bounds for x in b.held.values()]
        self._of_counted = [b.entries for b in bounds for _ in b.counted]
        self._counted = [key for b in bounds for key in b.counted]
        self._tensors = [x for b in bounds if b.binding is not None for x in b.binding.tensors]
        self._seen: Seen = look(self._tensors)
        self._watched = [(b.written, codes) for b in bounds if b.lasting for codes in b.written.codes]
        self._versions = self._versions_now()
        steps = [  # a binding that does not last is set when it is fetched
            Step(cast(Binding, b.binding), (), {}, [], skipped=counter(b.index, local(b.param).device)) for b in bounds
        ]
        self._families: list[list[_Family]] = []
        self.by_rule: list[tuple[Rule, list[Bound], list[Step]]] = []
        """The parameters and steps of each rule, in order."""
        self._group(shares, steps)
        self.in_place = {id(rule): [b.param for b in bounds if b.lasting] for rule, bounds, _ in self.by_rule}
        """The parameters of each rule that the backend updates in place."""

    def _group(self, shares: Sequence[Share], steps: list[Step]) -> None:
        rules: dict[int, tuple[Rule, list[Bound], list[Step]]] = {}
        pairs = iter(zip(self.bounds, steps, strict=True))
        for share in shares:
            families: dict[tuple[Any, ...], _Family] = {}
            for bound, step in (next(pairs) for _ in share.params):
                exact = bound.master is not None and bound.master.kind != "remainder8"
                key = (id(bound.rule), bound.low, bound.names, exact)
                family = families.setdefault(key, _Family(bound.rule, bound.low, bound.counted, bound.names, exact))
                family.bounds.append(bound)
                family.steps.append(step)
                family.entries.append(bound.entries)
                family.indices.append(bound.index)
                _, of_rule, steps_of_rule = rules.setdefault(id(bound.rule), (bound.rule, [], []))
                of_rule.append(bound)
                steps_of_rule.append(step)
            self._families.append(list(families.values()))
        self.by_rule = list(rules.values())

    def is_of(self, shares: Sequence[Share]) -> bool:
        """Whether the lineup has exactly the parameters of these shares, stored in the same way."""
        params = [*chain.from_iterable(share.params for share in shares)]
        return (
            len(params) == len(self._params)
            and all(map(is_, params, self._params))
            and len(shares) == len(self._storage)
            and all(
                s.plan.quantizers is q and len(s.params) == n for s, (q, n) in zip(shares, self._storage, strict=True)
            )
        )

    def stands(self, state: Mapping[Tensor, Any]) -> bool:
        """Whether ``optimizer.state`` still holds the bound tensors, with the same address, shape and dtype."""
        return (
            all(map(is_, map(state.get, self._params), self._entries))
            and all(map(is_, map(dict.get, self._of_held, self._keys), self._held))
            and {*map(type, map(dict.get, self._of_counted, self._counted))} == {int}
            and look(self._tensors) == self._seen
        )

    def _versions_now(self) -> list[int]:
        return [codes._version for _, codes in self._watched]

    def look(self) -> None:
        """Look at codes that were written between steps. Compiled steps do not change the version counters."""
        now = self._versions_now()
        if now != self._versions:
            for (written, _), version, then in zip(self._watched, now, self._versions, strict=True):
                if version != then:
                    written.look()
            self._versions = self._versions_now()

    def of_shares(self, shares: Sequence[Share]) -> list[list[Bound]]:
        """Split the bindings by share."""
        bounds = iter(self.bounds)
        return [[next(bounds) for _ in share.params] for share in shares]

    def prepare(self, shares: Sequence[Share]) -> None:
        """Prepare a step: everything except resets and arithmetic."""
        for share, families in zip(shares, self._families, strict=True):
            for family in families:
                family.prepare(share.group, share.plan)

    def release(self) -> None:
        """Release gradients and fetched values, so that the loop may free them before the next step."""
        for bound, step in ((b, s) for _, bounds, steps in self.by_rule for b, s in zip(bounds, steps, strict=True)):
            step.inputs = ()
            if not bound.lasting:
                step.binding = cast(Binding, None)
