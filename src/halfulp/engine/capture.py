"""Steps in CUDA graphs: the device's part is recorded once, and the host's part is repeated before each replay.

The kernels read what a step needs from the host (random keys, ages, bias corrections in double precision) from tables.
The graph records only the launches. Before each replay, :meth:`halfulp.engine.optimizer.RuleOptimizer.advance` counts
the step, resets the states that are due, and updates the tables, as an ordinary step does. A replay therefore gives the
same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from halfulp.engine.stepping import Groups, make_step
from halfulp.kernels import dispatch
from halfulp.kernels.binding import Step
from halfulp.rules.base import Rule

if TYPE_CHECKING:
    from halfulp.engine.optimizer import RuleOptimizer

__all__ = ["Recording", "capturing"]


def capturing() -> bool:
    """Whether the current stream is recording a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


@dataclass(eq=False)
class Recording:
    """A recorded step of an optimizer: the parameters that step, by group.

    Raise ``RuntimeError`` if the step cannot be recorded; the message says why and what to do.
    """

    optimizer: RuleOptimizer
    groups: Groups

    def __post_init__(self) -> None:
        optimizer = self.optimizer
        if not optimizer.capturable:
            raise RuntimeError(
                "a step is being recorded into a CUDA graph, which would repeat the random keys and bias corrections "
                "of one step: build the optimizer with capturable=True, and call optimizer.advance() before each replay"
            )
        if optimizer.nonfinite == "raise":
            raise RuntimeError(
                "nonfinite='raise' reads gradients on the host, which a recorded step cannot do: use nonfinite='skip'"
            )
        self.params = [p for _, of_group in self.groups for p in of_group]
        strange = [p for p in self.params if not optimizer.state.get(p)]
        if strange:
            raise RuntimeError(
                f"{optimizer.place(strange[0]).label} has no states yet, and a graph would create them in every "
                "replay: run a few ordinary steps before recording one"
            )
        self.gradients = [p.grad for p in self.params]
        self.batches: list[Any] = []
        entries_of = [optimizer.state[p] for p in self.params]
        before = [{k: v for k, v in entries.items() if type(v) is int} for entries in entries_of]
        try:
            make_step(optimizer, self.groups, self._record, recording=True)
        finally:
            for entries, counted in zip(entries_of, before, strict=True):
                entries.update(counted)

    def _record(self, rule: Rule, steps: list[Step]) -> None:
        if rule.measure is not None:
            raise RuntimeError(f"the step of the rule {rule.name!r} cannot be recorded: it computes sums on the host")
        self.batches.append(dispatch.record(rule, steps))

    def advance(self) -> None:
        """Do the host's part of a step."""
        for param, grad in zip(self.params, self.gradients, strict=True):
            param.grad = grad  # the tensor that the graph writes, even if it was replaced since
        batches = iter(self.batches)
        make_step(self.optimizer, self.groups, lambda rule, steps: dispatch.refresh(rule, steps, next(batches)))
