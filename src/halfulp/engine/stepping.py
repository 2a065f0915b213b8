"""One step of an optimizer, from gradients to new states."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.autograd.graph import increment_version

from halfulp.engine import checks
from halfulp.engine.lineup import Share
from halfulp.engine.reset_state import reset
from halfulp.engine.states import version_of
from halfulp.engine.sums import combine
from halfulp.kernels import dispatch
from halfulp.kernels.binding import Step
from halfulp.rules.base import Rule
from halfulp.rules.checks import tell_negative

if TYPE_CHECKING:
    from halfulp.engine.optimizer import RuleOptimizer

__all__ = ["Groups", "make_step"]

Groups = list[tuple[dict[str, Any], list[Tensor]]]
"""Groups of an optimizer, each with the parameters of it that step."""


def make_step(
    optimizer: RuleOptimizer,
    groups: Groups,
    act: Callable[[Rule, list[Step]], None] | None = None,
    *,
    recording: bool = False,
) -> None:
    """Do one step. Nothing changes before the resets, so that an earlier error leaves everything as it was.

    `act` is what to do with the steps of each rule instead of running them. A step that is recorded into a graph resets
    nothing.
    """
    checks.check_gradients(optimizer, [p for _, params in groups for p in params])
    registry = optimizer.registry
    shares = [Share(group, optimizer.plan(group), params) for group, params in groups if params]
    optimizer._idle = 0 if shares else optimizer._idle + 1
    if not shares:
        checks.tell_idle(optimizer._idle, len(registry))
        return
    lineup = optimizer._bindings.line_up(shares)
    if not recording and checks.is_dry_run(groups, (b.entries["step"] for b in lineup.bounds)):
        return
    bounds_of = lineup.of_shares(shares) if any(share.plan.reset for share in shares) and not recording else []
    for share, bounds in zip(shares, bounds_of, strict=False):
        if share.plan.reset is not None:
            share.due = [b.due(share.plan.reset, share.group, len(registry)) for b in bounds]
    for share, bounds in zip(shares, bounds_of, strict=False):
        for bound, names in zip(bounds, share.due, strict=False):
            if names:
                reset(optimizer, bound.param, bound.states, names)
    if not recording:
        for bound in lineup.mastered:
            bound.follow_weights()
    try:
        lineup.prepare(shares)
        for rule, bounds, steps in lineup.by_rule:
            if act is not None:
                act(rule, steps)
            else:
                able = steps if rule.measure is None else combine(rule, steps, optimizer.backend)
                first = steps[0].binding
                tell_negative(rule, (s.slot for s in first.states), steps[0].scalars, len(first.shape))
                dispatch.step(rule, able, optimizer.backend)
                # kernels write without autograd's knowledge
                increment_version(lineup.in_place[id(rule)])
            for bound, step in zip(bounds, steps, strict=True):
                bound.scalars = step.scalars  # includes scalars that depend on sums
                if not bound.lasting:
                    bound.take_back(step.binding)
    finally:
        lineup.release()
    for bound in lineup.mastered:
        bound.version = version_of(bound.param)
    if not recording:
        optimizer._skipped.look()
