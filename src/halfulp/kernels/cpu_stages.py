"""What is computed before the last pass over tensors, for all tensors of a program and shape at once.

These are the uniform values of an elementwise update, and the measuring passes of an update that contains sums
(:mod:`halfulp.rules.stages`), with the values that depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from halfulp.kernels.binding import Binding, Step
from halfulp.kernels.compiled import Compiled, Passes
from halfulp.kernels.cpu_small import SmallState
from halfulp.kernels.cpu_sums import Inputs, Round, Vectors
from halfulp.rules.program import Floats
from halfulp.rules.stages import CourseInNumpy, Stage

__all__ = ["Groups", "Ready"]


@dataclass
class Ready:
    """Tensors that are ready for the last pass.

    Parameters
    ----------
    which, where
        Their places among the steps, and the same as an index of rows.
    uniforms, vectors
        The inputs of the last program; `uniforms` has a line for each tensor, or one for all.
    new
        The new values of states that are numbers or vectors.
    fine
        Which tensors are updated, ``None`` for all. The reference handles the others.
    """

    which: list[int]
    where: Any
    uniforms: Floats
    vectors: Vectors | None
    new: list[tuple[SmallState, Floats]]
    fine: npt.NDArray[np.bool_] | None

    @property
    def left(self) -> list[int]:
        """The places of the tensors that are not updated."""
        return [] if self.fine is None else [*compress(self.which, ~self.fine)]

    def store(self, steps: Sequence[Step]) -> None:
        """Store the new values after the last pass."""
        for state, values in self.new:
            state.write([steps[i] for i in self.which], values, self.fine.tolist())  # type: ignore[union-attr]


class Groups:
    """The tensors of steps by program and shape. The measuring passes of all groups share a call of C in each round."""

    def __init__(self, chosen: Sequence[Compiled | Passes], bindings: Sequence[Binding]) -> None:
        places: dict[Any, list[int]] = {}
        for i, (one, binding) in enumerate(zip(chosen, bindings, strict=True)):
            by_shape = isinstance(one, Passes) or one.program.numbers
            places.setdefault((one, binding.shape if by_shape else None), []).append(i)
        self.all = [_Group(one, which, bindings) for (one, _), which in places.items()]
        self.rounds: list[tuple[list[_Group], Round]] = []
        for level in range(max(len(group.rounds) for group in self.all)):
            going = [group for group in self.all if level < len(group.rounds)]
            self.rounds.append((going, Round([(group.rounds[level], group.bindings) for group in going])))

    def ready(self, steps: Sequence[Step], inputs: Inputs) -> list[Ready]:
        """Return the groups after all measuring passes."""
        for group in self.all:
            group.start(steps if group.where == slice(None) else [steps[i] for i in group.which])
        for level, (going, launch) in enumerate(self.rounds):
            for group, part in zip(going, launch.parts, strict=True):
                grads, kinds = ([of[i] for i in group.which] for of in (inputs.addresses, inputs.kinds))
                part.fill(grads, kinds, [step.maximize for step in group.steps], *group.taken(level))
            for group, sums in zip(going, launch.sums(), strict=True):
                group.proceed(level, sums)
        return [group.ready() for group in self.all]


class _Group:
    """Tensors that run the same program, and their progress through it."""

    def __init__(self, chosen: Compiled | Passes, which: list[int], bindings: Sequence[Binding]) -> None:
        self.which = which
        self.where: Any = slice(None) if len(which) == len(bindings) else which
        self.bindings = bindings = [bindings[i] for i in which]
        self.staged = chosen.staged if isinstance(chosen, Passes) else None
        self.rounds = chosen.rounds if isinstance(chosen, Passes) else ()
        self.last = chosen.update if isinstance(chosen, Passes) else chosen
        program = self.staged or self.last.program
        self.small = [SmallState(bindings, name) for name in (*program.numbers, *dict(program.vectors))]
        self.filled = np.array([binding.shape.numel() > 0 for binding in bindings])

    def start(self, steps: Sequence[Step]) -> None:
        """Begin a step."""
        self.steps, self.scalars, self.fine = steps, [step.scalars for step in steps], self.filled
        if self.staged is not None:
            values, numbers = [state.read() for state in self.small], len(self.staged.numbers)
            shape = self.bindings[0].shape
            self.course = CourseInNumpy(self.staged, self.scalars, values[:numbers], values[numbers:], shape)

    def taken(self, level: int) -> tuple[Floats, list[Floats], list[Floats]]:
        """Return the uniform values, rows and columns of a measuring pass."""
        assert self.staged is not None
        return self._taken(self.staged.rounds[level], self.rounds[level])

    def _taken(self, stage: Stage, compiled: Compiled) -> tuple[Floats, list[Floats], list[Floats]]:
        given = self.course.taken(stage)
        uniforms, _ = compiled.uniforms(self.scalars, [x[:, 0] for x in given["number"]])
        return uniforms, given["rows"], given["columns"]

    def proceed(self, level: int, sums: dict[str, npt.NDArray[np.float64]]) -> None:
        """Add the results of a measuring pass."""
        self._check(sums.values())
        self.course.proceed(level, sums)

    def _check(self, values: Any) -> None:
        """Take note of the tensors that have a value that is not finite."""
        for x in values:
            self.fine = self.fine & np.isfinite(x).reshape(len(x), -1).all(1)

    def ready(self) -> Ready:
        """Return the group before its last pass."""
        if self.staged is not None:
            uniforms, *vectors = self._taken(self.staged.update, self.last)
            new = [value for value, _ in self.course.new_small]
            self._check(new)
            return Ready(
                self.which, self.where, uniforms, Vectors(*vectors), [*zip(self.small, new, strict=True)], self.fine
            )  # fmt: skip
        uniforms, numbers = self.last.uniforms(self.scalars, [state.read()[:, 0] for state in self.small])
        if not self.small:
            return Ready(self.which, self.where, uniforms, None, [], None)
        new = [np.broadcast_to(x, len(self.which))[:, None] for x in numbers]
        self._check(new)
        return Ready(self.which, self.where, uniforms, None, [*zip(self.small, new, strict=True)], self.fine)
