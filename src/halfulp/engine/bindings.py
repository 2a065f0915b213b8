"""A cache, beside ``optimizer.state``, of an optimizer's parameters bound to their states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halfulp.engine.lineup import Lineup, Share
from halfulp.engine.memory import tell_kept_fp32
from halfulp.engine.plan import plan_states
from halfulp.engine.registry import Registry
from halfulp.engine.sharding import is_sharded, local
from halfulp.engine.slot_state import SlotState
from halfulp.engine.standing import standing
from halfulp.engine.states import Bound, bind, check_apart
from halfulp.engine.zeroed import mend_replaced_
from halfulp.numbers.log import log_once, warn_once
from halfulp.rules.base import Rule

if TYPE_CHECKING:
    from halfulp.engine.optimizer import RuleOptimizer

__all__ = ["Bindings"]


class Bindings:
    """The bound parameters of an optimizer, and the lineups of parameters that were stepped together.

    The optimizer's ``state`` is the truth; this cache is checked against it.
    """

    def __init__(self, optimizer: RuleOptimizer) -> None:
        self._optimizer = optimizer
        self._bounds: dict[Tensor, Bound] = {}
        self._lineups: dict[tuple[int, int], Lineup] = {}
        """Lineups by the ``id`` of their first parameter and the number of parameters."""
        self._warned = False
        """Whether the warning about stalled weights was given."""

    def get(self, param: Tensor) -> Bound | None:
        """Return the last binding of a parameter, which may be out of date."""
        return self._bounds.get(param)

    def drop(self, param: Tensor) -> None:
        """Forget a parameter."""
        self._bounds.pop(param, None)
        self._lineups.clear()

    def clear(self) -> None:
        """Forget every parameter."""
        self._bounds.clear()
        self._lineups.clear()

    def follow(self, registry: Registry) -> None:
        """Renumber the parameters after a change of groups, and forget those that are in no group any more."""
        self._bounds = {p: bound for p, bound in self._bounds.items() if p in registry}
        for p, bound in self._bounds.items():
            bound.index = registry[p].index
        self._lineups.clear()

    def line_up(self, shares: list[Share]) -> Lineup:
        """Return the parameters of a step, bound to their present states."""
        key = id(shares[0].params[0]), sum(len(share.params) for share in shares)
        lineup = self._lineups.get(key)
        if lineup is None or not lineup.is_of(shares) or not lineup.stands(self._optimizer.state):
            bounds = self._bind_all(shares)
            if len(self._lineups) > len(self._optimizer.registry):
                self._lineups.clear()
            lineup = self._lineups[key] = Lineup(shares, bounds, self._optimizer._skipped.counter)
        else:
            lineup.look()
        return lineup

    def _bind_all(self, shares: list[Share]) -> list[Bound]:
        """Bind every parameter to its present states. On an error, remove the states created for the others."""
        known, state = self._bounds, self._optimizer.state
        bounds, new = list[Bound](), list[Tensor]()
        try:
            for share in shares:
                for p in share.params:
                    entries, bound = state.get(p), known.get(p)
                    current = bound is not None and bound.current(entries, share.plan.quantizers) and bound.intact()
                    if bound is None or not current:
                        if entries is None:
                            new.append(p)
                        bound = self.bind(share.group, p)
                    bounds.append(bound)
            check_apart((self._optimizer.place(bound.param).label, bound.tensors()) for bound in bounds)
        except BaseException:
            for p in new:
                state.pop(p, None)
                known.pop(p, None)
            raise
        if len(new) == len(state):  # the first step
            tell_kept_fp32(self._optimizer.memory())
        return bounds

    def bind(self, group: dict[str, Any], param: Tensor) -> Bound:
        """Bind a parameter to its present states, which are first created or repaired."""
        optimizer, before = self._optimizer, self._bounds.get(param)
        place, rule, plan = optimizer.place(param), optimizer.active_rule(group, param), optimizer.plan(group)
        planned = plan_states(plan, rule, param, place, optimizer.storage)
        with place.naming():
            bound = self._bounds[param] = bind(optimizer.state, param, rule, plan, planned, place)
        self._lineups.clear()
        if before is not None:
            bound.scalars, bound.counts, bound.version = before.scalars, before.counts, before.version
            for state in bound.states:
                then = before.held.get(state.slot.name)
                if then is not None and then is not bound.held[state.slot.name]:
                    mend_replaced_(state, local(then))
        elif bound.master is not None:
            bound.version = -1  # loaded or copied: the weights may have been set since the master weights were stored
        if param.dtype != torch.float32 and group["param_rounding"] == "stochastic" and bound.master is None:
            log_once(
                f"parameters in {param.dtype} are rounded stochastically, which preserves small updates on average "
                "(param_rounding='nearest' drops those below half a gap)"
            )
        elif param.dtype != torch.float32 and bound.master is None and not bound.entries["step"]:
            self._warn_of_standing(group, param, rule, place.label)
        return bound

    def states(self, param: Tensor) -> tuple[SlotState, ...]:
        """See :meth:`~halfulp.engine.optimizer.RuleOptimizer.states`."""
        optimizer, bound = self._optimizer, self._bounds.get(param)
        place, entries = optimizer.place(param), optimizer.state.get(param)
        if not entries:
            raise KeyError(f"{place.label} has no state before its first step")
        if bound is not None and bound.current(entries, optimizer.plan(place.group).quantizers) and bound.intact():
            bound.written.look()
            return bound.states
        found = self.states_over(entries, param)
        if all(state.slot.name in entries for state in found):
            return self.bind(place.group, param).states
        return tuple(state for state in found if state.slot.name in entries)  # some may have been forgotten

    def states_over(self, entries: dict[str, Any], param: Tensor) -> tuple[SlotState, ...]:
        """Return the planned states of a parameter, over entries that may lack some."""
        optimizer, group = self._optimizer, self._optimizer.place(param).group
        sharded = is_sharded(param) and optimizer.active_rule(group, param).shardable
        planned = optimizer.slot_storage(group, param)
        return tuple(SlotState(s.slot, s.quantizer, s.shape, entries, sharded) for s in planned)

    def _warn_of_standing(self, group: dict[str, Any], param: Tensor, rule: Rule, label: str) -> None:
        share = standing(rule, group, param)
        if share is not None and share > 0.5 and not self._warned:
            self._warned = True
            warn_once(
                f"{label}: {share:.0%} of the weights in {param.dtype} would not move at "
                f"lr={float(group.get('initial_lr', group['lr'])):.3g}, since their updates are below half a gap: use "
                "param_rounding='stochastic', or master_weights='remainder16'"
            )
