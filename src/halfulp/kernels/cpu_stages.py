"""Updates that contain sums, in C: the measuring passes before the last pass, and the values that depend on them.

See :mod:`halfulp.rules.stages`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from halfulp.kernels import reference
from halfulp.kernels.binding import Step, plain
from halfulp.kernels.compiled import Compiled, Passes, numbers_of
from halfulp.kernels.cpu_codec import CODEC
from halfulp.kernels.cpu_sums import Vectors, sums_of
from halfulp.rules.stages import CourseInNumpy, Stage

__all__ = ["Measured", "measured"]


@dataclass
class Measured:
    """A step that is ready for the last pass over its tensor.

    Parameters
    ----------
    step, compiled
        The step, with contiguous inputs, and the remaining program.
    uniforms, vectors
        The inputs of the remaining program.
    numbers, new
        New values of the one-element states, and of the states that are vectors by name.
    """

    step: Step
    compiled: Compiled
    uniforms: list[float]
    vectors: Vectors
    numbers: list[np.float32]
    new: dict[str, Any]

    def write_vectors(self) -> None:
        """Store the new values of the states that are vectors."""
        for k, state in enumerate(self.step.binding.states):
            if state.slot.name in self.new:
                value = np.broadcast_to(self.new[state.slot.name], state.shape).astype(np.float32)
                reference.store(self.step, k, CODEC.read(state), torch.from_numpy(value), None, CODEC)


def measured(steps: list[Step]) -> list[Measured | Step]:
    """Measure what the updates of these steps need, all tensors together in each round.

    A step with a non-finite value is returned unchanged, to be handled by the reference.
    """
    courses = [_Course(replace(one, inputs=tuple(map(plain, one.inputs)))) for one in steps]
    level = 0
    while going := [one for one in courses if one.fine and level < len(one.passes.rounds)]:
        found = sums_of([one.round(level) for one in going])
        for one, sums in zip(going, found, strict=True):
            one.proceed(level, sums)
        level += 1
    return [course.measured() or one for course, one in zip(courses, steps, strict=True)]


class _Course:
    """The progress of one step through the rounds."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.passes: Passes = step.binding.plan.programs.choose(step.scalars)
        staged = self.passes.staged
        self.fine = step.binding.shape.numel() > 0
        stored = {s.slot.name: s for s in step.binding.states}
        numbers = numbers_of(staged.numbers, step.binding.states)
        vectors = [CODEC.read(stored[name]).numpy() for name, _ in staged.vectors]
        self.course = CourseInNumpy(staged, step.scalars, numbers, vectors, step.binding.shape)

    def _taken(self, stage: Stage, compiled: Compiled) -> tuple[list[float], Vectors]:
        given = self.course.taken(stage)
        return compiled.uniforms(self.step.scalars, given["number"])[0], Vectors(given["row"], given["column"])

    def round(self, level: int) -> tuple[Step, Compiled, list[float], Vectors]:
        """Return what C needs to measure a round."""
        compiled = self.passes.rounds[level]
        return (self.step, compiled, *self._taken(self.passes.staged.rounds[level], compiled))

    def proceed(self, level: int, sums: dict[str, Any]) -> None:
        """Add the results of a round."""
        self.fine = all(np.isfinite(value).all() for value in sums.values())
        if self.fine:
            self.course.proceed(level, sums)

    def measured(self) -> Measured | None:
        """Return the step before its last pass, or ``None`` if a value is not finite."""
        if not self.fine:
            return None
        numbers, vectors = self.course.new_small
        if not all(np.isfinite(x).all() for x in (*numbers, *vectors)):
            return None
        staged = self.passes.staged
        taken = self._taken(staged.update, self.passes.update)
        new = {name: value for (name, _), value in zip(staged.vectors, vectors, strict=True)}
        return Measured(self.step, self.passes.update, *taken, [np.float32(x) for x in numbers], new)
