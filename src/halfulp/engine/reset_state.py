"""Resets of states, when a schedule says so or a user asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from halfulp.engine.master import MASTER
from halfulp.engine.rows import reset_rows_, row_index
from halfulp.engine.slot_state import SlotState
from halfulp.numbers.log import log_once

if TYPE_CHECKING:
    from halfulp.engine.optimizer import RuleOptimizer

__all__ = ["reset", "reset_state"]


def reset(optimizer: RuleOptimizer, param: Tensor, states: Sequence[SlotState], names: tuple[str, ...]) -> None:
    """Reset some states of a parameter, and keep a record of it."""
    step = optimizer.state[param]["step"]
    for state in states:
        if state.slot.name in names:
            state.reset_(param)
    optimizer.reset_log.append((step, optimizer.place(param).index, names))
    log_once(f"{type(optimizer).__name__}: states reset (first at step {step}; all in optimizer.reset_log)")


def reset_state(
    optimizer: RuleOptimizer, names: Sequence[str] | None, params: Iterable[Tensor] | None, rows: Any
) -> None:
    """See :meth:`~halfulp.engine.optimizer.RuleOptimizer.reset_state`."""
    if isinstance(names, str):
        names = (names,)
    chosen = None if params is None else set(params)
    registry = optimizer.registry
    strangers = [tuple(p.shape) for p in chosen or () if p not in registry]
    if strangers:
        raise ValueError(f"reset_state got tensors of shape {strangers} that are not parameters of this optimizer")
    known = {s.name for group in optimizer.param_groups for s in optimizer.group_slots(group)}
    known |= {MASTER for group in optimizer.param_groups if optimizer.plan(group).master}
    if names is not None and not set(names) <= known:
        raise ValueError(f"unknown states {sorted(set(names) - known)}; there are {sorted(known)}")
    for p in registry:
        if (chosen is None or p in chosen) and optimizer.state.get(p):
            states = [s for s in optimizer.states(p) if names is None or s.slot.name in names]
            master, index = optimizer.master(p), None
            if rows is not None:
                with optimizer.place(p).naming():
                    index = row_index(rows, p)
                    reset_rows_(states, p, index)
            elif states:
                reset(optimizer, p, states, tuple(s.slot.name for s in states))
            if master is not None and names is not None and MASTER in names:
                master.reset_(p, index)
